// A base line for every operation of a cache: append, open with a prefix, fork, decode and prefill, per policy.
//
// Attention stands beside the machine's own limits, measured at the start of the same run: `roofline` is the share of
// max(bytes / read bandwidth, operations / fp32 peak) that the kernel reaches, on one thread.
#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "kvc/attention/decode.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/cache.hpp"
#include "kvc/core/half.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "machine.hpp"

namespace {
using namespace kvc;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr Index query_heads = 32;
constexpr Shape shape{.layers = 1, .kv_heads = 8, .key_dim = 128};

struct Limits {
  double bandwidth = kvc_bench::read_bandwidth(std::size_t{1} << 30);
  double peak = kvc_bench::fp32_peak();
};
const Limits& limits() {
  static const Limits measured;
  return measured;
}

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
  cache.commit(cache.extend(seq, n));
  for (auto _ : state) {
    const SeqId child = cache.fork(seq);
    benchmark::DoNotOptimize(child);
    cache.close(child);
  }
}

/// A cache of one sequence of n random rows.
template <class T, class P>
struct Filled {
  KvCache<T, P> cache;
  SeqId seq;
  explicit Filled(Pos n) : cache(shape, config_for<P>(n)), seq(cache.open()) {
    const Pos piece = 1024;
    const Matrix k = Matrix::Random(piece, shape.kv_heads * shape.key_dim);
    for (Pos done = 0; done < n; done += piece) {
      auto step = cache.extend(seq, std::min(piece, static_cast<Pos>(n - done)));
      cache.write(0, step, k.topRows(step.size()), k.topRows(step.size()));
      cache.commit(std::move(step));
    }
  }
};

/// Runs `kernel` for as long as Google Benchmark wants; `bytes` and `operations` are those of one run.
template <class F>
void measure(benchmark::State& state, double bytes, double operations, F&& kernel) {
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    kernel();
    benchmark::ClobberMemory();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
                         static_cast<double>(state.iterations());
  state.counters["KV_GB/s"] = bytes / seconds / 1e9;
  state.counters["GFLOP/s"] = operations / seconds / 1e9;
  state.counters["roofline"] = std::max(bytes / limits().bandwidth, operations / limits().peak) / seconds;
}

template <class T, class P>
void decode_one(benchmark::State& state) {
  const auto n = static_cast<Pos>(state.range(0));
  const Filled<T, P> filled(n);
  const Matrix q = Matrix::Random(1, query_heads * shape.key_dim);
  Matrix out(1, query_heads * shape.key_dim);
  measure(state, static_cast<double>(n) * static_cast<double>(filled.cache.bytes_per_token()),
          4.0 * static_cast<double>(n) * query_heads * static_cast<double>(shape.key_dim),
          [&] { kvc::decode(filled.cache.view(0, filled.seq), q, out); });
}

template <class T, class P>
void prefill_all(benchmark::State& state) {
  const auto n = static_cast<Pos>(state.range(0));
  const Filled<T, P> filled(n);
  const Matrix q = Matrix::Random(n, query_heads * shape.key_dim);
  Matrix out(n, query_heads * shape.key_dim);
  const double pairs = 0.5 * static_cast<double>(n) * (static_cast<double>(n) + 1);  // unmasked
  measure(state, static_cast<double>(n) * static_cast<double>(filled.cache.bytes_per_token()),
          4.0 * pairs * query_heads * static_cast<double>(shape.key_dim), [&] {
            kvc::prefill(filled.cache.view(0, filled.seq), PosRange{0, n}, q, out);
          });
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
  benchmark::RegisterBenchmark(("decode/f32/" + policy).c_str(), decode_one<float, P>)
      ->ArgName("kv")
      ->Arg(4096)
      ->Arg(65536)
      ->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark(("decode/f16/" + policy).c_str(), decode_one<Eigen::half, P>)
      ->ArgName("kv")
      ->Arg(65536)
      ->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark(("decode/bf16/" + policy).c_str(), decode_one<Eigen::bfloat16, P>)
      ->ArgName("kv")
      ->Arg(65536)
      ->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark(("prefill/f32/" + policy).c_str(), prefill_all<float, P>)
      ->ArgName("q")
      ->Arg(512)
      ->Arg(2048)
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
  std::fprintf(stderr, "limits of one thread: read %.1f GB/s, fp32 %.0f GFLOP/s\n", limits().bandwidth / 1e9,
               limits().peak / 1e9);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
