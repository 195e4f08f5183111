// Layer groups: what models hold, and what several groups cost.
//
// held      64 sequences of 32,000 tokens, prefilled in passes of 2,048, in the real policy. Counters, in GiB of bf16:
//             needed      rows that the next query sees
//             held        blocks that sequences hold
//             over        held / needed
//             bound       (1.03 * needed + one block for each group, kind of states, and sequence) / needed
//             one_shape   one shape for all: every layer keeps every row (times needed)
//             padded      equal pages of as many layers as the smallest group has, the rest padded (times needed)
// match, append, fork   three groups beside one, by turns in the same loop; the counter `vs_one` is the ratio of the
//                       medians
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kvc/layout/layer_groups.hpp"
#include "kvc/policy/detail/block_sizes.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {
using namespace kvc;
using Clock = std::chrono::steady_clock;
using Tokens = std::vector<Token>;

// --- what models hold ------------------------------------------------------------------------------------------------

struct Model {
  const char* name;
  LayerGroups layers;
};

/// `count` layers of which every `period`-th is `full` and the others are `local`.
LayerGroups alternating(Index count, Index period, LayerKind local, LayerKind full) {
  LayerGroups layers;
  for (Index i = 0; i < count; ++i) {
    layers.add(i % period == period - 1 ? full : local);
  }
  return layers;
}

/// `count` layers of which one in every `period` stores rows, the first one number `first`, and the others have states.
LayerGroups hybrid(Index count, Index period, Index first, Index state_bytes, LayerKind rows) {
  LayerGroups layers;
  for (Index i = 0; i < count; ++i) {
    i % period == first ? layers.add(rows) : layers.add_state(state_bytes);
  }
  return layers;
}

std::vector<Model> models() {
  LayerGroups mllama;  // Llama 3.2 Vision 11B: every fifth layer reads the rows of an image of four tiles
  for (Index i = 0; i < 40; ++i) {
    mllama.add({.kv_heads = 8, .key_dim = 128, .cross_rows = i % 5 == 3 ? 4 * 1601 : 0});
  }
  LayerGroups deepseek;  // V3.2: latent rows, and beside each layer the keys of its indexer
  deepseek.add({.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true}, 61);
  deepseek.add({.kv_heads = 1, .key_dim = 128, .latent = true}, 61);
  LayerGroups kimi;  // K2: latent rows alone
  kimi.add({.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true}, 61);
  return {
      {"Gemma 3 27B",
       alternating(62, 6, {.kv_heads = 16, .key_dim = 128, .window = 1024}, {.kv_heads = 16, .key_dim = 128})},
      {"Gemma 3 270M",
       alternating(18, 6, {.kv_heads = 1, .key_dim = 256, .window = 512}, {.kv_heads = 1, .key_dim = 256})},
      {"gpt-oss 20B",
       alternating(24, 2, {.kv_heads = 8, .key_dim = 64, .window = 128}, {.kv_heads = 8, .key_dim = 64})},
      {"Ministral-like",
       alternating(36, 4, {.kv_heads = 8, .key_dim = 128, .window = 4096}, {.kv_heads = 8, .key_dim = 128})},
      {"Llama 4", alternating(48, 4, {.kv_heads = 8, .key_dim = 128, .chunk = 8192}, {.kv_heads = 8, .key_dim = 128})},
      {"mllama", mllama},
      {"DeepSeek V3.2", deepseek},
      {"Kimi K2", kimi},
      // 32 value heads of 128 x 128 in float, and three inputs of the convolution in bfloat16
      {"Qwen3-Next 80B", hybrid(48, 4, 3, 32 * 128 * 128 * 4 + 3 * 8192 * 2, {.kv_heads = 2, .key_dim = 256})},
      // 8192 channels of 16 numbers in float, and three inputs of the convolution in bfloat16
      {"Jamba", hybrid(32, 8, 4, 8192 * 16 * 4 + 3 * 8192 * 2, {.kv_heads = 8, .key_dim = 128})},
  };
}

constexpr Index sequences = 64;
constexpr Pos length = 32'000;
constexpr Pos pass = 2'048;
constexpr Index element_bytes = 2;  // bf16

Index row_bytes(const LayerGroup& group) {
  const Shape& shape = group.shape;
  return shape.layers * shape.kv_heads * (shape.key_dim + (group.latent ? 0 : shape.value_dim)) * element_bytes;
}

/// Positions that the next query of a sequence sees.
Index rows_needed(const LayerGroup& group) {
  return group.cross_rows > 0
             ? group.cross_rows
             : length - std::min(std::max(group.retained.first_seen(length), group.retained.kept), length);
}

/// Bytes of as many sequences in groups of as many layers as the smallest group has, padded, in pages of 16 tokens.
Index padded_bytes(const LayerGroups& layers) {
  Index least = layers.layers();
  for (const LayerGroup& group : layers.groups()) {
    least = std::min(least, group.shape.layers);
  }
  Index bytes = 0;
  for (const LayerGroup& group : layers.groups()) {
    LayerGroup page = group;
    page.shape.layers = ceil_div(group.shape.layers, least) * least;
    bytes += ceil_div(rows_needed(group), Index{16}) * 16 * row_bytes(page);
  }
  return sequences * bytes;
}

template <class P>
void held(benchmark::State& state, const Model& model) {
  const GroupRules rules = model.layers.rules(row_bytes);
  const detail::BlockSizes sizes = detail::block_sizes(rules, 16);
  Index block_bytes = 0, needed = 0, one_shape = 0;
  for (std::size_t g = 0; g < rules.groups.size(); ++g) {
    const LayerGroup& group = model.layers.groups()[g];
    block_bytes = std::max(block_bytes, sizes.tokens[g] * rules.groups[g].row_weight);
    needed += sequences * rows_needed(group) * row_bytes(group);
    one_shape += sequences * std::max<Index>(length, group.cross_rows) * row_bytes(group);
  }
  Index states = 0;
  for (const StateGroup& kind : model.layers.states()) {
    states += sequences * kind.layers * kind.bytes;
  }
  needed += states;
  one_shape += states;
  const Index blocks = one_shape / block_bytes + 64 * sequences;
  Index held = 0;
  for (auto _ : state) {
    P policy({.blocks = blocks, .block_tokens = 16}, rules);
    for (Index i = 0; i < sequences; ++i) {
      Tokens tokens(static_cast<std::size_t>(length));
      std::iota(tokens.begin(), tokens.end(), static_cast<Token>(i * length));
      const SeqId seq = policy.try_open(tokens)->seq;
      for (Pos done = 0; done < length; done += pass) {
        const Pos count = std::min(pass, length - done);
        if (!policy.try_extend(
                seq, count,
                std::span(tokens).subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count)))) {
          state.SkipWithError("no room");
          return;
        }
        policy.commit(seq);
      }
    }
    held = policy.stats().blocks_referenced * block_bytes;
  }
  const auto gib = [](Index bytes) { return static_cast<double>(bytes) / static_cast<double>(Index{1} << 30); };
  const auto tables = static_cast<Index>(rules.groups.size() + rules.states.size());
  const double bound = 1.03 * gib(needed) + gib(sequences * tables * block_bytes);
  state.counters["needed"] = gib(needed);
  state.counters["held"] = gib(held);
  state.counters["over"] = gib(held) / gib(needed);
  state.counters["bound"] = bound / gib(needed);
  state.counters["one_shape"] = gib(one_shape) / gib(needed);
  state.counters["padded"] = gib(padded_bytes(model.layers) + states) / gib(needed);
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
  by_turns<P>(state, 4096, [](Bench<P>& bench) {
    static const Tokens tokens = random_tokens(4096, 99);
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
  for (const Model& model : models()) {
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
