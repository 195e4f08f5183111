// The costs of a cache's bookkeeping: append, open with a prefix, fork, and a checkpoint of recurrent states, per
// policy. Attention is in attention/.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {
using namespace kvc;

constexpr Shape shape{.layers = 1, .kv_heads = 8, .key_dim = 128};

template <class P>
typename P::Config config_for(Pos tokens) {
  if constexpr (std::is_same_v<P, Contiguous>) {
    return {.sequences = 4, .max_tokens = tokens, .pool_tokens = 4 * Index{tokens}};
  } else {
    return {.blocks = 4 * ceil_div(Index{tokens}, Index{16}), .block_tokens = 16};
  }
}

std::vector<Token> iota(Pos count) {
  std::vector<Token> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

/// One token: extend, commit. No rows are written: this is the bookkeeping.
template <class P>
void append(benchmark::State& state) {
  const Pos most = 4096;
  P policy(config_for<P>(most));
  SeqId seq = policy.try_open()->seq;
  for (auto _ : state) {
    if (policy.length(seq) == most) {
      policy.truncate(seq, 0);
    }
    benchmark::DoNotOptimize(policy.try_extend(seq, 1));
    policy.commit(seq);
  }
}

/// A prompt of n tokens, all of them but the last cached where the policy can do that; closed again.
template <class P>
void open_with_prefix(benchmark::State& state) {
  const auto n = static_cast<Pos>(state.range(0));
  P policy(config_for<P>(n));
  const std::vector<Token> prompt = iota(n);
  const SeqId first = policy.try_open(prompt)->seq;
  (void)policy.try_extend(first, n, prompt);
  policy.commit(first);
  for (auto _ : state) {
    const auto opened = policy.try_open(prompt);
    benchmark::DoNotOptimize(opened);
    policy.close(opened->seq);
  }
  state.counters["cached"] = static_cast<double>(policy.try_open(prompt)->cached);
}

/// A fork of n tokens, and its end. Contiguous copies its rows; the bytes are those of one layer of the benchmark's
/// shape.
template <class P>
void fork(benchmark::State& state) {
  const auto n = static_cast<Pos>(state.range(0));
  KvCache<float, P> cache(shape, config_for<P>(n));
  const SeqId seq = cache.open();
  cache.commit(cache.extend_without_tokens(seq, n));
  for (auto _ : state) {
    const SeqId child = cache.fork(seq);
    benchmark::DoNotOptimize(child);
    cache.close(child);
  }
}

/// The states of Qwen3-Next's 36 recurrent layers after one more token: extend, write, commit. `of_memcpy` is the time
/// of a memcpy of as many bytes, into memory that was not touched for as long, over that of the checkpoint: medians of
/// measurements by turns.
template <class P>
void checkpoint(benchmark::State& state) {
  using Clock = std::chrono::steady_clock;
  constexpr Index layers = 36, bytes = 32 * 128 * 128 * 4 + 3 * 8192 * 2;
  LayerGroups model;
  model.add({.kv_heads = 2, .key_dim = 256});
  model.add_state(bytes, layers);
  typename P::Config config{};
  if constexpr (std::is_same_v<P, Contiguous>) {
    config = {.sequences = 1, .max_tokens = 1 << 16, .states = 4};
  } else {
    config = {.blocks = 5 * layers, .block_tokens = 16};
  }
  KvCache<float, P> cache(model, config);
  const SeqId seq = cache.open();
  const std::vector<std::byte> from(static_cast<std::size_t>(layers * bytes), std::byte{1});
  std::vector<std::vector<std::byte>> to(4, std::vector<std::byte>(from.size(), std::byte{2}));
  std::vector<double> copies, checkpoints;
  const auto timed = [](auto&& f) {
    const auto start = Clock::now();
    f();
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  for (auto _ : state) {
    checkpoints.push_back(timed([&] {
      auto step = cache.extend_without_tokens(seq, 1);
      for (const Pos length : cache.states_to_write(step)) {
        for (Index layer = 0; layer < layers; ++layer) {
          const std::span<std::byte> target = cache.state_to_write(1 + layer, step, length);
          std::memcpy(target.data(), from.data() + layer * bytes, target.size());
        }
      }
      cache.commit(std::move(step));
    }));
    state.SetIterationTime(checkpoints.back());
    std::vector<std::byte>& target = to[copies.size() % to.size()];
    copies.push_back(timed([&] {
      std::memcpy(target.data(), from.data(), from.size());
      benchmark::DoNotOptimize(target.data());
      benchmark::ClobberMemory();
    }));
  }
  const auto median = [](std::vector<double>& all) {
    std::ranges::nth_element(all, all.begin() + std::ssize(all) / 2);
    return all[all.size() / 2];
  };
  state.counters["MiB"] = static_cast<double>(from.size()) / (1 << 20);
  state.counters["of_memcpy"] = median(copies) / median(checkpoints);
}

template <class P>
void add_policy() {
  const std::string policy(P::name);
  const auto name = [&](const char* what) { return std::string(what) + "/" + policy; };
  benchmark::RegisterBenchmark(name("append").c_str(), append<P>);
  benchmark::RegisterBenchmark(name("open_with_prefix").c_str(), open_with_prefix<P>)
      ->ArgName("tokens")
      ->Arg(1024)
      ->Arg(16384);
  benchmark::RegisterBenchmark(name("fork").c_str(), fork<P>)->ArgName("tokens")->Arg(1024)->Arg(16384);
  benchmark::RegisterBenchmark(name("checkpoint").c_str(), checkpoint<P>)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}
}  // namespace

int main(int argc, char** argv) {
  add_policy<Contiguous>();
  add_policy<Paged>();
  add_policy<PrefixShared<>>();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
