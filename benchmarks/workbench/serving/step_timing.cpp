#include "step_timing.hpp"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"
#include "run_over.hpp"

namespace serving {

using TimedCache = kvc::KvCache<float, kvc::Paged>;
extern template void ModelExecutor::run(TimedCache& cache, Step<TimedCache>& step);  // real_paged.cpp

namespace {

constexpr Index most_sequences = 16;

/// The work of a step: `chunk` tokens of one sequence from position `first` on, and one token each of `decoding` others
/// that have `length` positions.
struct Kind {
  Pos chunk = 0;
  Pos first = 0;
  Index decoding = 0;
  Pos length = 0;

  friend auto operator<=>(const Kind&, const Kind&) = default;
};

/// Sequences whose steps are computed, timed and rolled back.
class Bench {
 public:
  explicit Bench(const RealMachine& machine)
      : positions_(static_cast<Pos>(machine.model->config.seq_len)),
        cache_(machine.model->config.cache_shape(),
               {.blocks = (most_sequences + 1) * kvc::ceil_div<Index>(positions_, 16), .block_tokens = 16}),
        executor_(*machine.model, machine.threads, machine.clock) {
    for (Pos p = 0; p < positions_; ++p) {
      tokens_.push_back(synthetic_token(1, p, static_cast<Token>(machine.model->config.vocab_size)));
    }
    for (Index i = 0; i <= most_sequences; ++i) {
      sequences_.push_back(cache_.open());
    }
  }

  [[nodiscard]] Pos positions() const noexcept { return positions_; }

  /// Measures each of these once, after one step that is not measured. The longest sequences come first, as positions
  /// are computed only once.
  void round(std::vector<Kind> kinds) {
    std::ranges::sort(kinds, std::greater{}, [](const Kind& kind) { return std::max(kind.first, kind.length); });
    for (const Kind& kind : kinds) {
      reach(sequences_.front(), kind.first);
      for (Index i = 1; i <= kind.decoding; ++i) {
        reach(sequences_[static_cast<std::size_t>(i)], kind.length);
      }
      Step<TimedCache> step;
      for (Index i = 1; i <= kind.decoding; ++i) {
        add(step, sequences_[static_cast<std::size_t>(i)], 1, 1);
      }
      if (kind.chunk > 0) {
        add(step, sequences_.front(), kind.chunk, 1);
      }
      step.sampled.resize(step.work.size());
      for (std::size_t i = 0; i < step.work.size(); ++i) {
        step.work[i].first_wanted = i;
      }
      // Small steps are measured more often: they take little time.
      const int times = kind.chunk >= 128 ? 1 : 5;
      executor_.run(cache_, step);
      for (int i = 0; i < times; ++i) {
        const Time begin = executor_.now();
        executor_.run(cache_, step);
        seconds_[kind].push_back(static_cast<double>(executor_.now() - begin) / second);
      }
      costs_[kind] = cost_of(step);
    }  // the appends are taken back
  }

  [[nodiscard]] StepTiming timing(const Kind& kind) const {
    std::vector<double> all = seconds_.at(kind);
    const auto middle = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
    std::ranges::nth_element(all, middle);
    return {costs_.at(kind), *middle};
  }

 private:
  void reach(kvc::SeqId seq, Pos length) {
    const Pos now = cache_.length(seq);
    if (now > length) {
      cache_.truncate(seq, length);
    } else if (now < length) {
      Step<TimedCache> step;
      add(step, seq, length - now, 0);
      executor_.run(cache_, step);
      cache_.commit(std::move(step.work.front().append));
    }
  }

  void add(Step<TimedCache>& step, kvc::SeqId seq, Pos count, std::size_t wanted) {
    const auto tokens = std::span<const Token>(tokens_).subspan(static_cast<std::size_t>(cache_.length(seq)),
                                                                static_cast<std::size_t>(count));
    step.work.push_back({0, 0, seq, cache_.extend(seq, tokens), tokens, count > 1, 0, wanted, 0, 0});
    (count > 1 ? step.prefill_tokens : step.decode_tokens) += count;
  }

  Pos positions_;
  TimedCache cache_;
  ModelExecutor executor_;
  std::vector<Token> tokens_;
  std::vector<kvc::SeqId> sequences_;
  std::map<Kind, std::vector<double>> seconds_;
  std::map<Kind, StepCost> costs_;
};

std::vector<StepTiming> timings_of(const Bench& bench, const std::vector<Kind>& kinds) {
  std::vector<StepTiming> timings;
  for (const Kind& kind : kinds) {
    timings.push_back(bench.timing(kind));
  }
  return timings;
}

/// A decoder that records the time between the beginnings of successive steps.
class StepTimer {
 public:
  explicit StepTimer(ModelExecutor& executor) : executor_(executor) {}

  [[nodiscard]] Time now() const noexcept { return executor_.now(); }
  void wait_until(Time t) noexcept { executor_.wait_until(t); }
  void run(TimedCache& cache, Step<TimedCache>& step) {
    end_step();
    cost_ = cost_of(step);
    executor_.run(cache, step);
  }
  /// Called after the last step.
  void end_step() {
    const Time now = executor_.now();
    if (cost_) {
      timings.push_back({*cost_, static_cast<double>(std::max<Time>(1, now - begin_)) / second});
      cost_.reset();
    }
    begin_ = now;
  }

  std::vector<StepTiming> timings;

 private:
  ModelExecutor& executor_;
  std::optional<StepCost> cost_;
  Time begin_ = 0;
};

/// Requests that all arrive at once: the contents of a step do not depend on how long steps take.
Scenario calibration_traffic(const kvc::llama::Model& model, Index at_a_time) {
  const auto positions = static_cast<Pos>(model.config.seq_len);
  Scenario scenario;
  scenario.name = "calibration";
  scenario.requests = at_a_time + 4;
  scenario.seed = 1234;
  scenario.watermark = 0;
  scenario.scheduler.max_sequences = at_a_time;
  scenario.scheduler.chunk_tokens = std::max(1, positions / 8);
  TrafficClass c;
  c.name = "calibration";
  c.every = 1;
  c.burst = scenario.requests;
  c.prompt.low = std::max(1, positions / 32);
  c.prompt.high = std::max(c.prompt.low, positions * 3 / 4);
  c.output.low = 2;
  c.output.high = std::max(2, positions / 8);
  scenario.traffic = {c};
  scenario = fit_to(std::move(scenario), model, "");
  // Bounds the memory for any model; sequences that find no room wait.
  constexpr double most_bytes = 512e6;
  const auto room = static_cast<Index>(most_bytes / scenario.model.kv_bytes_per_token());
  scenario.pool_tokens = std::max<Index>(positions, std::min(at_a_time * positions, room));
  scenario.watch = {1, 0};  // no timeline
  return scenario;
}

/// One round.
std::vector<StepTiming> serve_to_calibrate(const RealMachine& machine) {
  std::vector<StepTiming> timings;
  for (Index at_a_time = 1; at_a_time <= 32; at_a_time *= 2) {
    const Scenario scenario = calibration_traffic(*machine.model, at_a_time);
    for (const bool chunked : {false, true}) {
      RunResult result;
      const SchedulerConfig scheduling = begin_run(scenario, PolicyKind::paged, chunked, 1, result);
      TimedCache cache(machine.model->config.cache_shape(), pool_config<kvc::Paged>(scenario, result, scheduling));
      ModelExecutor executor(*machine.model, machine.threads, machine.clock);
      StepTimer timer(executor);
      serve_over(cache, timer, scenario, scheduling, {}, result);
      timer.end_step();
      timings.insert(timings.end(), timer.timings.begin(), timer.timings.end());
    }
  }
  return timings;
}

}  // namespace

std::vector<StepTiming> time_steps(const RealMachine& machine, int rounds) {
  std::vector<std::vector<StepTiming>> all;
  for (int i = 0; i < rounds; ++i) {
    all.push_back(serve_to_calibrate(machine));
  }
  return median_of(all);
}

CostCurve time_curve(const RealMachine& machine, int rounds) {
  Bench bench(machine);
  const Pos all = bench.positions();
  CostCurve curve;
  curve.prompt = all * 7 / 8;
  curve.decoding = 8;
  std::vector<Kind> prefill, decode;
  for (Pos rows = 1; rows <= curve.prompt; rows *= 2) {
    prefill.push_back({.chunk = rows});
  }
  prefill.push_back({.chunk = curve.prompt});
  for (Index rows = 1; rows <= most_sequences; rows *= 2) {
    decode.push_back({.decoding = rows, .length = all / 2});
  }
  std::vector<std::pair<Pos, std::vector<Kind>>> chunked;
  for (Pos chunk = 16;; chunk *= 2) {
    std::vector<Kind> steps;
    for (Pos first = 0; first < curve.prompt; first += chunk) {
      steps.push_back({.chunk = std::min(chunk, curve.prompt - first),
                       .first = first,
                       .decoding = curve.decoding,
                       .length = all / 2});
    }
    const bool whole = steps.size() == 1;
    chunked.emplace_back(std::min(chunk, curve.prompt), std::move(steps));
    if (whole) {
      break;
    }
  }
  for (int i = 0; i < rounds; ++i) {
    bench.round(prefill);
    bench.round(decode);
    for (const auto& [chunk, steps] : chunked) {
      bench.round(steps);
    }
  }
  curve.prefill = timings_of(bench, prefill);
  curve.decode = timings_of(bench, decode);
  for (const auto& [chunk, steps] : chunked) {
    curve.chunked.push_back({chunk, timings_of(bench, steps)});
  }
  return curve;
}

}  // namespace serving
