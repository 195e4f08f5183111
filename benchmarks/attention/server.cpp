// The steps of a server: many sequences of different lengths in one call, as continuous batching makes them.
//
//   server/<element>/decode/seqs:<n>      one new token of each of n sequences, whose lengths spread over 128 to 4096
//   server/<element>/lse/...              the same, with the log-sum-exp of each row
//   server/<element>/window:1024/...      the same of a layer with a window: W rows of each sequence are read, not all
//   server/<element>/window:1024+sinks    the same with a logit of each head beside its keys, and 4 kept positions
//   server/<element>/ragged/...           chunks of 512 rows of four sequences' prompts, one new token of each other
//
// Blocks of 16 in random order, 8 kv heads, 32 query heads, dimension 128. Beside the usual columns, of `decode`:
//
//   step_us            what a step costs beside attention: one token more per sequence, the batch's tables, commit
//   step_of_attention  that time over the time of attention in one layer
#include <cmath>

#include "cases.hpp"
#include "kvc/batch.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"

namespace kvc_bench {
namespace {

constexpr Pos server_block = 16, server_window = 1024, server_chunk = 512;

/// Of `count` sequences, evenly spread in their logarithms, in an order that is not theirs. Each leaves a slot of its
/// last block.
std::vector<Pos> server_lengths(Index count) {
  std::vector<Pos> lengths;
  for (Index i = 0; i < count; ++i) {
    const double part = static_cast<double>(i * 97 % count) / static_cast<double>(count - 1);
    const auto length = static_cast<Pos>(128 * std::pow(32.0, part));
    lengths.push_back(length - (length % server_block == 0 ? 1 : 0));
  }
  return lengths;
}

/// Times a step without attention: seconds, the median.
template <class Cache>
double step_seconds(Cache& cache, const std::vector<kvc::SeqId>& sequences) {
  std::vector<double> seconds;
  for (int i = 0; i < 101; ++i) {
    const auto start = Clock::now();
    std::vector<typename Cache::Append> appends;
    appends.reserve(sequences.size());
    for (const kvc::SeqId seq : sequences) {
      appends.push_back(cache.extend_without_tokens(seq, 1));
    }
    const kvc::BatchIndex batch = kvc::make_batch(cache, appends);
    keep(batch.block_table.data());
    for (auto& append : appends) {
      cache.commit(std::move(append));
    }
    seconds.push_back(seconds_between(start, Clock::now()));
    for (const kvc::SeqId seq : sequences) {
      cache.truncate(seq, cache.length(seq) - 1);
    }
  }
  std::ranges::nth_element(seconds, seconds.begin() + 50);
  return seconds[50];
}

template <class T>
class ServerCases {
 public:
  void add_all() const {
    add_case("decode", {}, false, false);
    add_case("lse", {}, true, false);
    add_case("window:1024", {.window = server_window}, false, false);
    add_case("window:1024+sinks", {.window = server_window, .kept = 4, .sinks = logits()}, false, false);
    add_case("ragged", {}, false, true);
  }

 private:
  using Rows = Filled<T, kvc::Paged>;

  static std::span<const float> logits() {
    static const std::vector<float> logits(32, 0.5F);
    return logits;
  }

  void add_case(const std::string& what, const kvc::AttentionOptions& options, bool with_lse, bool ragged) const {
    const Index count = 256;
    const std::string data = "server/" + std::string(kvc::Element<T>::name);
    const std::string name = data + "/" + what + "/seqs:" + std::to_string(count);
    for (const int threads : thread_counts()) {
      add(name + "/threads:" + std::to_string(threads), [=](benchmark::State& state) {
        const Heads heads;
        const std::vector<Pos> lengths = server_lengths(count);
        const auto filled = kept<Rows>(data, heads, Batch::of_lengths(lengths), server_block, 2 * working_set());
        std::vector<kvc::PosRange> queries;
        double positions = 0, pairs = 0;
        Index rows = 0;
        int chunks = 0;
        for (const Pos length : lengths) {
          const bool is_chunk = ragged && length > 2 * server_chunk && chunks < 4;
          chunks += is_chunk ? 1 : 0;
          queries.push_back({length - (is_chunk ? server_chunk : 1), length});
          rows += queries.back().size();
          const Pos seen = options.window == 0 ? length : std::min(length, options.window + options.kept);
          positions += seen;
          pairs += is_chunk ? server_chunk * (length - 0.5 * (server_chunk - 1)) : seen;
        }
        const std::vector<float> q = random_numbers(rows * heads.query * heads.key_dim, 4);
        std::vector<float> out(static_cast<std::size_t>(rows * heads.query * heads.value_dim));
        std::vector<float> lse(static_cast<std::size_t>(rows * heads.query));
        std::vector<std::vector<typename Rows::View>> layers;
        for (Index layer = 0; layer < filled->layers(); ++layer) {
          layers.push_back(filled->views(static_cast<std::size_t>(layer)));
        }
        const kvc::MatrixRef<float> to(out.data(), rows, heads.query * heads.value_dim);
        const kvc::AttentionOutput output =
            with_lse ? kvc::AttentionOutput(to, kvc::MatrixRef<float>(lse.data(), rows, heads.query))
                     : kvc::AttentionOutput(to);
        const auto call = [&](std::size_t i, std::optional<kvc::MemoryPlan> plan) {
          const std::span<const typename Rows::View> views = layers[i % layers.size()];
          kvc::AttentionOptions all = options;
          all.memory_plan = plan;
          const kvc::MatrixArg<float> from(q.data(), rows, heads.query * heads.key_dim);
          if (ragged) {
            kvc::prefill(views, std::span<const kvc::PosRange>(queries), from, output, all, executor(threads));
          } else {
            kvc::decode(views, from, output, all, executor(threads));
          }
        };
        decide_memory_plan(call);
        const Work work{positions * filled->position_bytes(), heads.operations(pairs), unit_of(element())};
        const double seconds = measure(state, threads, work, [&](std::size_t i) { call(i, std::nullopt); });
        if (what == "decode") {
          const double step = step_seconds(filled->cache(), filled->sequences());
          state.counters["step_us"] = 1e6 * step;
          state.counters["step_of_attention"] = step / seconds;
        }
      });
    }
  }
  static std::string element() { return std::string(kvc::Element<T>::name); }
};

const Cases cases(7, [] {
  ServerCases<Eigen::bfloat16>().add_all();
  ServerCases<kvc::Int8>().add_all();
});

}  // namespace
}  // namespace kvc_bench
