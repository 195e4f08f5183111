// Layer groups: what models hold, and what several groups cost.
//
// held      64 sequences of 32,000 tokens, prefilled in passes of 2,048, in the real policy. Counters, in GiB of bf16:
//             needed      rows that the next query sees
//             held        blocks that sequences hold
//             over        held / needed
//             bound       (1.03 * needed + one block for each group, kind of states, and sequence) / needed
//             one_shape   one shape for all: every layer keeps every row (times needed)
//             padded      equal blocks of as many layers as the smallest group has, the rest padded (times needed)
// match, append, fork   three groups beside one, by turns in the same loop; the counter `vs_one` is the ratio of the
//                       medians
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "held_memory.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {
using namespace kvc;
using Clock = std::chrono::steady_clock;
using Tokens = std::vector<Token>;

// --- what models hold ------------------------------------------------------------------------------------------------

template <class P>
void held(benchmark::State& state, const kvc_bench::GroupedModel& model) {
  constexpr kvc_bench::HeldMemory memory;
  constexpr Pos block_tokens = 16;
  std::optional<Index> held;
  for (auto _ : state) {
    held = memory.held_bytes<P>(model.layers, block_tokens);
  }
  if (!held) {
    state.SkipWithError("no room");
    return;
  }
  const auto needed = static_cast<double>(memory.needed_bytes(model.layers));
  const auto gib = [](double bytes) { return bytes / static_cast<double>(Index{1} << 30); };
  const auto over_needed = [&](Index bytes) { return static_cast<double>(bytes) / needed; };
  state.counters["needed"] = gib(needed);
  state.counters["held"] = gib(static_cast<double>(*held));
  state.counters["over"] = over_needed(*held);
  state.counters["bound"] = over_needed(memory.bound_bytes(model.layers, block_tokens));
  state.counters["one_shape"] = over_needed(memory.one_shape_bytes(model.layers));
  state.counters["padded"] = over_needed(memory.padded_bytes(model.layers));
}

// --- what groups cost ------------------------------------------------------------------------------------------------

double median(std::vector<double>& values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

GroupRules one_group() { return {}; }
GroupRules three_groups() { return {{GroupRule{}, GroupRule{{1024, 0, 0}, 0, 1}, GroupRule{{0, 2048, 0}, 0, 1}}, 0}; }

Tokens random_tokens(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Tokens tokens(count);
  for (Token& token : tokens) {
    token = static_cast<Token>(random() % 128'000);
  }
  return tokens;
}

template <class P>
struct Bench {
  P policy;
  Tokens prompt = random_tokens(8192, 1);
  SeqId parent{};  // of forks
  explicit Bench(const GroupRules& rules) : policy({.blocks = 20'000, .block_tokens = 16}, rules) {
    for (std::uint64_t i = 2; i < 12; ++i) {  // others, so that the index is not empty
      policy.close(fill(random_tokens(8192, i)));
    }
    policy.close(fill(prompt));
    prompt.push_back(-1);
  }
  SeqId fill(const Tokens& tokens) {
    const Opened opened = *policy.try_open(tokens);
    const auto rest = std::span(tokens).subspan(static_cast<std::size_t>(opened.cached));
    if (policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest)) {
      policy.commit(opened.seq);
    }
    return opened.seq;
  }
};

/// Seconds of f(bench) with one group and with three, by turns. prepare(bench) comes first, once, and does not count.
template <class P, class F, class Prepare>
void by_turns(benchmark::State& state, double per, F f, Prepare prepare) {
  Bench<P> one(one_group()), three(three_groups());
  prepare(one);
  prepare(three);
  std::array<std::vector<double>, 2> times;
  const auto time = [&](std::size_t which, Bench<P>& bench) {
    const auto start = Clock::now();
    f(bench);
    times[which].push_back(std::chrono::duration<double>(Clock::now() - start).count());
  };
  for (auto _ : state) {
    time(0, one);
    time(1, three);
  }
  const double of_one = median(times[0]), of_three = median(times[1]);
  state.counters["one_ns"] = of_one * 1e9 / per;
  state.counters["three_ns"] = of_three * 1e9 / per;
  state.counters["vs_one"] = of_three / of_one;
}

template <class P, class F>
void by_turns(benchmark::State& state, double per, F f) {
  by_turns<P>(state, per, f, [](const Bench<P>&) {});
}

template <class P>
void append(benchmark::State& state) {
  by_turns<P>(state, 5000, [](Bench<P>& bench) {  // as most answers, it does not end at the boundary of a chunk
    static const Tokens tokens = random_tokens(5000, 99);
    const SeqId seq = bench.policy.try_open()->seq;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      benchmark::DoNotOptimize(bench.policy.try_extend(seq, 1, std::span(tokens).subspan(i, 1)));
      bench.policy.commit(seq);
    }
    bench.policy.close(seq);
  });
}
template <class P>
void fork(benchmark::State& state) {
  by_turns<P>(
      state, 64,
      [](Bench<P>& bench) {
        std::array<SeqId, 64> children;
        for (SeqId& child : children) {
          child = bench.policy.try_fork(bench.parent, bench.policy.length(bench.parent))->seq;
        }
        for (const SeqId child : children) {
          bench.policy.close(child);
        }
      },
      [](Bench<P>& bench) { bench.parent = bench.fill(bench.prompt); });
}
void match(benchmark::State& state) {
  by_turns<PrefixShared<Lru>>(state, 8192.0 / 16, [](Bench<PrefixShared<Lru>>& bench) {
    benchmark::DoNotOptimize(bench.policy.match_length(bench.prompt));
  });
}
void open_and_close(benchmark::State& state) {
  by_turns<PrefixShared<Lru>>(state, 8192.0 / 16, [](Bench<PrefixShared<Lru>>& bench) {
    bench.policy.close(bench.policy.try_open(bench.prompt)->seq);
  });
}

void register_all() {
  for (const kvc_bench::GroupedModel& model : kvc_bench::grouped_models()) {
    benchmark::RegisterBenchmark((std::string("held/paged/") + model.name).c_str(),
                                 [=](benchmark::State& state) { held<Paged>(state, model); })
        ->Unit(benchmark::kMillisecond)
        ->Iterations(1);
    benchmark::RegisterBenchmark((std::string("held/prefix-shared/") + model.name).c_str(),
                                 [=](benchmark::State& state) { held<PrefixShared<Lru>>(state, model); })
        ->Unit(benchmark::kMillisecond)
        ->Iterations(1);
  }
  benchmark::RegisterBenchmark("match", match)->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("open_and_close", open_and_close)->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("append/paged", append<Paged>)->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("append/prefix-shared", append<PrefixShared<Lru>>)->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("fork/paged", fork<Paged>)->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("fork/prefix-shared", fork<PrefixShared<Lru>>)->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 1;
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
