// Attention beside the limits of the machine: decode and prefill, per element type and policy, and other people's.
//
//   decode/<element>/<policy>/kv:<n>/threads:<t>           one new token of one sequence of n positions
//   prefill/<element>/<policy>/q:<n>/kv:<n>/threads:<t>    n new tokens, causal
//   decode_shared/<element>/<policy>/heads:<kv heads>/seqs:<n>/shared:<n>/kv:<n>/threads:<t>
//                                                          one new token of each sequence of a batch; they share a
//                                                          prefix ("unshared" instead of a policy: they do not)
//   decode_latent/<element>/<policy>/heads:<query heads>/kv:<n>/threads:<t>, prefill_latent/...
//                                                          the same of latent rows (MLA), absorbed: one kv head, 576
//                                                          elements of which the first 512 are the value
//   prefill_latent/.../expanded/threads:<t>                with keys of 192 and values of 128 elements for each head,
//                                                          made of the rows in the call
//   decode_selected/<element>/<policy>/positions:<n>/kv:<n>/threads:<t>, .../blocks:<n>/...
//                                                          one new token over a selection: n random positions, or those
//                                                          of random blocks of 16 ("-token-major" behind a policy: in
//                                                          that layout)
//   server/<element>/<what>/seqs:<n>/threads:<t>           a step of a server: many sequences of different lengths
//                                                          (server.cpp)
//   peer_eigen/decode/..., peer_ggml/decode/...            the same work by others, as far as they are installed
//
// 32 query heads, 8 kv heads, dimension 128 unless the name says dim:<key>[-<value>] or heads:<kv heads> (then four
// query heads for each). The number behind a policy is the
// tokens of a block; blocks lie in random order, or ("-served") as requests before left them: 400 that came and went,
// up to 32 at a time. A cache has so many layers that the calls, each on the next layer,
// read twice the last-level cache and 1 GiB at least before one comes again: keys and values come from memory. (In
// prefill they need not.)
//
//   build/release/benchmarks/attention                                               everything: half an hour
//   build/release/benchmarks/attention --benchmark_filter='^decode/f32/contiguous'   some cases, by regular expression
//   build/release/benchmarks/attention --benchmark_list_tests                        their names
//   build/release/benchmarks/attention --benchmark_out=FILE.json                     for benchmarks/peers/plot.py
//
// The columns, of the median call:
//
//   KV_GB/s   bytes of keys and values that must be read, over the time. Rows that sequences share count once.
//   GFLOP/s   2 * (key dim + value dim) operations for each pair of a query head's row and a key that it may see
//   limit_ms  the larger of bytes / read and operations / peak: no kernel is faster. The peak is that of the unit which
//             the processor has for the element: bf16 for bf16 and fp8, int8 for int8 and int4, else fp32.
//   of_best   limit over time, with the best limits that this run has seen so far
//   roofline  limit over time, with the limits measured by turns with the calls of the case: the median of both
//
// for selections on one thread, beside plain code that reads the same rows, by turns (plain_reads.hpp):
//
//   of_plain     time of the plain reads over that of decode
//   of_blocks    decode over positions, over decode over blocks
//   plain_ratio  the same of the plain reads
//
// and for decode, how it prefetches (kvc/attention/memory_plan.hpp):
//
//   plan          index in kvc::memory_plans of the plan that was chosen by measurement; the label is its text
//   of_best_plan  time with the fastest plan over time with the choice
//   ms[PLAN]      time with each plan, by turns: medians
//
// On a shared machine memory and clock change by a factor of two within minutes, and two virtual processors may find
// themselves on one core. So the limits are measured again and again between the calls of every case, on as many
// threads, and medians are compared. Where of_best is far below the roofline the machine was busy, for the case and the
// limits alike. The context of the output has the limits at the start; the program prints at the end how far they
// varied.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "measure.hpp"

namespace {
using namespace kvc_bench;

std::string text(double number) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.1f", number);
  return buffer;
}

void print_limits() {
  std::fprintf(stderr, "limits of this machine, now (bf16: %s, int8: %s)\n", bf16_unit, int8_unit);
  for (const int threads : thread_counts()) {
    const Limits now = machine().best(threads);
    const ReadWay way = machine().way(threads);
    const std::string suffix = "/threads:" + std::to_string(threads);
    std::fprintf(stderr,
                 "  %d thread%s: read %.1f GB/s (%d streams, prefetch to level %d, %d bytes ahead), "
                 "fp32 %.0f, bf16 %.0f, int8 %.0f GFLOP/s\n",
                 threads, threads > 1 ? "s" : " ", now.read / 1e9, way.streams, way.level, way.ahead, now.fp32 / 1e9,
                 now.bf16 / 1e9, now.int8 / 1e9);
    benchmark::AddCustomContext("read_GB/s" + suffix, text(now.read / 1e9));
    benchmark::AddCustomContext("fp32_GFLOP/s" + suffix, text(now.fp32 / 1e9));
    benchmark::AddCustomContext("bf16_GFLOP/s" + suffix, text(now.bf16 / 1e9));
    benchmark::AddCustomContext("int8_GFLOP/s" + suffix, text(now.int8 / 1e9));
  }
  benchmark::AddCustomContext("bf16_unit", bf16_unit);
  benchmark::AddCustomContext("int8_unit", int8_unit);
  benchmark::AddCustomContext("last_level_cache_MiB", std::to_string(last_level_cache() >> 20));
  benchmark::AddCustomContext("read_in_turn_MiB", std::to_string(working_set() >> 20));
}

void print_drift() {
  std::fprintf(stderr, "limits during the run, from the worst measurement to the best\n");
  for (const int threads : thread_counts()) {
    const Limits worst = machine().worst(threads), best = machine().best(threads);
    std::fprintf(
        stderr,
        "  %d thread%s: read %.1f to %.1f GB/s, fp32 %.0f to %.0f, bf16 %.0f to %.0f, int8 %.0f to %.0f GFLOP/s\n",
        threads, threads > 1 ? "s" : " ", worst.read / 1e9, best.read / 1e9, worst.fp32 / 1e9, best.fp32 / 1e9,
        worst.bf16 / 1e9, best.bf16 / 1e9, worst.int8 / 1e9, best.int8 / 1e9);
  }
}
}  // namespace

int main(int argc, char** argv) {
  bool list_only = false;
  for (int i = 1; i < argc; ++i) {
    list_only |= std::string(argv[i]).find("--benchmark_list_tests") == 0;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  auto& sources = Cases::all();
  std::ranges::sort(sources);
  for (const auto& [order, register_all] : sources) {
    register_all();
  }
  if (!list_only) {
    print_limits();
  }
  benchmark::RunSpecifiedBenchmarks();
  if (!list_only) {
    print_drift();
  }
  benchmark::Shutdown();
  return 0;
}
