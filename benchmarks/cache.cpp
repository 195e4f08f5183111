// The costs of a cache's bookkeeping: append, open with a prefix, fork, per policy. Attention is in attention/.
#include <benchmark/benchmark.h>

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
