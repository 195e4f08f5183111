// Attention: several sequences in one call, window, softcap and masks, executors, and results that are merged.
#include <Eigen/Core>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <future>
#include <span>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "../usage.hpp"
#include "kvc/attention/decode.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/attention/selection.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/parallel/spmd.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/testing/executor_conformance.hpp"

#ifdef _OPENMP
#include "kvc/parallel/openmp.hpp"
#endif

namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Cache = kvc::KvCache<float, kvc::Paged>;
constexpr kvc::Shape shape{.layers = 1, .kv_heads = 2, .key_dim = 16};
constexpr kvc::Index query_heads = 8;
constexpr kvc::Index kv_row = 32;      // kv_heads * key_dim
constexpr kvc::Index query_row = 128;  // query_heads * key_dim

kvc::SeqId sequence_of(Cache& cache, kvc::Pos tokens) {
  const kvc::SeqId seq = cache.open();
  auto step = cache.extend(seq, tokens);
  const Matrix k = Matrix::Random(tokens, kv_row), v = Matrix::Random(tokens, kv_row);
  cache.write(0, step, k, v);
  cache.commit(std::move(step));
  return seq;
}

void decode_several(Cache& cache) {
  std::vector<Cache::View> views;  // one layer of each sequence, of any lengths
  for (const kvc::Pos tokens : {40, 7, 600}) {
    views.push_back(cache.view(0, sequence_of(cache, tokens)));
  }
  const Matrix q = Matrix::Random(3, query_row);  // row b is the newest position of views[b]
  Matrix out(3, query_row);
  kvc::decode(views, q, out);

  Matrix alone(1, query_row);
  kvc::decode(views[2], q.row(2), alone);
  std::printf("a batch of %zu; the third row alone has %s bits\n", views.size(),
              alone == out.row(2) ? "the same" : "other");
}

void prefill_ragged(Cache& cache) {
  // A whole prompt, a chunk of another, and one token that decodes: their rows lie one after the other in q.
  struct Part {
    kvc::Pos length, rows;
  };
  std::vector<Cache::View> views;
  std::vector<kvc::PosRange> queries;  // usually step.range() of each Append
  kvc::Pos rows = 0;
  for (const Part& part : {Part{40, 40}, Part{300, 64}, Part{7, 1}}) {
    views.push_back(cache.view(0, sequence_of(cache, part.length)));
    queries.push_back({part.length - part.rows, part.length});
    rows += part.rows;
  }
  const Matrix q = Matrix::Random(rows, query_row);
  Matrix out(rows, query_row);
  kvc::prefill(views, queries, q, out);

  Matrix alone(1, query_row);
  kvc::decode(views[2], q.bottomRows(1), alone);
  std::printf("%d rows of %zu sequences; the last row alone has %s bits\n", rows, views.size(),
              alone == out.bottomRows(1) ? "the same" : "other");
}

void merge_parts(Cache& cache) {
  const kvc::Pos tokens = 1500;
  const Cache::View kv = cache.view(0, sequence_of(cache, tokens));
  const Matrix q = Matrix::Random(1, query_row);
  Matrix out(1, query_row), lse(1, query_heads);
  kvc::decode(kv, q, {out, lse});  // lse: log-sum-exp of each row and head, natural logarithm

  // Two parts of the keys, each anywhere: on another thread, device or machine.
  Matrix o1(1, query_row), m1(1, query_heads), l1(1, query_heads);
  Matrix o2(1, query_row), m2(1, query_heads), l2(1, query_heads);
  const kvc::AttentionStates first{o1, m1, l1}, second{o2, m2, l2};
  kvc::decode(kv, q, first, {.keys = {0, 1000}});
  kvc::decode(kv, q, second, {.keys = {1000, tokens}});
  first.merge(second);
  Matrix merged(1, query_row), merged_lse(1, query_heads);
  first.write_output(merged, merged_lse);
  std::printf("merged: outputs within 1e-5: %s, log-sum-exp within 1e-5: %s\n",
              (merged - out).cwiseAbs().maxCoeff() < 1e-5F ? "yes" : "no",
              (merged_lse - lse).cwiseAbs().maxCoeff() < 1e-5F ? "yes" : "no");
}

void restrict_keys(Cache& cache) {
  const kvc::Pos tokens = 100;
  const kvc::SeqId seq = sequence_of(cache, tokens);
  const Matrix q = Matrix::Random(tokens, query_row);
  Matrix out(tokens, query_row);
  const kvc::PosRange all{0, tokens};

  kvc::prefill(cache.view(0, seq), all, q, out, {.window = 32});             // each query sees its last 32 keys
  kvc::prefill(cache.view(0, seq), all, q, out, {.window = 32, .kept = 4});  // and the first 4 (StreamingLLM)
  kvc::prefill(cache.view(0, seq), all, q, out, {.chunk = 64});              // those from the last multiple of 64 on
  kvc::prefill(cache.view(0, seq), all, q, out, {.softcap = 50.0F});         // scores become 50 tanh(s / 50)
  kvc::prefill(cache.view(0, seq), all, q, out, {.causal = false});          // an encoder, or an image in a prompt

  // A learned logit for each query head, which takes its part of the softmax and has no value (gpt-oss).
  const std::vector<float> sinks(query_heads, -1.0F);
  kvc::prefill(cache.view(0, seq), all, q, out, {.sinks = sinks});

  // A mask of booleans [rows, keys] for all heads: here every second key.
  Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> seen(tokens, tokens);
  for (kvc::Index i = 0; i < tokens; ++i) {
    for (kvc::Index j = 0; j < tokens; ++j) {
      seen(i, j) = j % 2 == 0;
    }
  }
  kvc::prefill(cache.view(0, seq), all, q, out, {.mask = kvc::AttentionMask::boolean(seen)});

  // A bias that is added to the scores [heads, rows, keys]: ALiBi, one slope for each head.
  std::vector<float> bias;
  for (kvc::Index head = 0; head < query_heads; ++head) {
    for (kvc::Index i = 0; i < tokens; ++i) {
      for (kvc::Index j = 0; j < tokens; ++j) {
        bias.push_back(-std::exp2(-static_cast<float>(head + 1)) * static_cast<float>(std::abs(i - j)));
      }
    }
  }
  const auto alibi = kvc::AttentionMask::additive(bias.data(), query_heads, tokens, tokens);
  kvc::prefill(cache.view(0, seq), all, q, out, {.mask = alibi});
  std::printf("restricted: finite %s\n", out.allFinite() ? "outputs" : "?");
  cache.close(seq);
}

/// Threads of your own: one function template is all that an executor needs.
struct MyThreads {
  int threads;  // at least 1
  [[nodiscard]] kvc::Index concurrency() const { return threads; }
  template <class F>
  void parallel_for(kvc::Index n, F&& f) const {
    std::atomic<kvc::Index> next = 0;
    const auto work = [&] {
      for (kvc::Index item = next++; item < n; item = next++) {
        f(item);
      }
    };
    std::vector<std::future<void>> others;
    for (int i = 1; i < threads; ++i) {
      others.push_back(std::async(std::launch::async, work));
    }
    work();
    for (std::future<void>& other : others) {
      other.get();  // throws what an item threw
    }
  }  // waits for all threads, also when an exception leaves: ~future() of std::async does
};
static_assert(kvc::Executor<MyThreads>);

void use_threads(Cache& cache) {
  const kvc::SeqId seq = sequence_of(cache, 2000);
  const Matrix q = Matrix::Random(1, query_row);
  Matrix one(1, query_row), two(1, query_row);
  kvc::decode(cache.view(0, seq), q, one);  // on this thread
  const MyThreads threads{.threads = 2};
  kvc::testing::executor_conformance(threads, "MyThreads");  // in your tests: throws if it breaks the contract
  kvc::decode(cache.view(0, seq), q, two, {}, threads);
#ifdef _OPENMP
  kvc::decode(cache.view(0, seq), q, two, {}, kvc::OpenMp{.threads = 2});  // compiled with -fopenmp
#endif
  std::printf("two threads: %s bits\n", one == two ? "the same" : "other");
  cache.close(seq);
}

/// An engine whose threads all enter an operation, as those of ggml enter a custom operator.
void enter_with_all_threads(Cache& cache) {
  const kvc::SeqId seq = sequence_of(cache, 2000);
  const Matrix q = Matrix::Random(1, query_row);
  Matrix one(1, query_row), all(1, query_row);
  kvc::decode(cache.view(0, seq), q, one);

  kvc::Spmd spmd;  // one for the engine
  const auto operation = [&](int thread, int threads) {
    spmd.run(thread, threads, [&](auto& team) { kvc::decode(cache.view(0, seq), q, all, {}, team); });
  };
  {
    std::vector<std::jthread> engine;
    for (int thread = 0; thread < 3; ++thread) {
      engine.emplace_back(operation, thread, 3);
    }
  }  // joins
  std::printf("all threads of an engine: %s bits\n", one == all ? "the same" : "other");
  cache.close(seq);
}

/// `attention time`: how long one decode takes with the options that this file was compiled with.
void attend_to_selected(Cache& cache) {
  const kvc::Pos tokens = 1000;
  const Cache::View kv = cache.view(0, sequence_of(cache, tokens));
  const Matrix q = Matrix::Random(1, query_row);
  Matrix out(1, query_row), same(1, query_row);
  std::vector<float> scores(tokens);  // those of the query row, as an indexer computes them from its own rows
  std::generate(scores.begin(), scores.end(), [n = 0]() mutable { return std::sin(0.7F * static_cast<float>(n++)); });

  const auto top = kvc::Selection::of_positions(kvc::top_positions(scores, 200));
  kvc::decode(kvc::SelectedView(kv, top), q, out);  // reads 200 rows. Other layers may reuse `top`

  const auto first = std::span(scores).first(63);  // of the blocks: one for 16 positions each
  const auto blocks = kvc::Selection::of_blocks(kvc::top_positions(first, 10), 16, tokens);
  kvc::decode(kvc::SelectedView(kv, blocks), q, out);

  const auto all = kvc::Selection::of_positions(kvc::top_positions(scores, tokens));
  kvc::decode(kvc::SelectedView(kv, all), q, same);
  kvc::decode(kv, q, out);
  std::printf("%d positions, %d in blocks; a selection of all %d gives %s bits\n", top.size(), blocks.size(),
              all.size(), same == out ? "the same" : "other");
}

void time_a_decode() {
  const kvc::Pos tokens = 4096;
  kvc::KvCache<Eigen::bfloat16, kvc::Paged> cache({.layers = 1, .kv_heads = 8, .key_dim = 128},
                                                  {.blocks = tokens / 16, .block_tokens = 16});
  const kvc::SeqId seq = cache.open();
  auto step = cache.extend(seq, tokens);
  const Matrix rows = Matrix::Random(tokens, 8 * 128);
  cache.write(0, step, rows, rows);
  cache.commit(std::move(step));
  const Matrix q = Matrix::Random(1, 32 * 128);
  Matrix out(1, 32 * 128);
  double best = 1e9;
  for (int i = 0; i < 20; ++i) {
    const std::clock_t begin = std::clock();
    kvc::decode(cache.view(0, seq), q, out);
    best = std::min(best, 1e3 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
  }
  std::printf("bf16, 32 query heads on 8 kv heads of 128, %d positions: %.2f ms of processor time\n", tokens, best);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "time") {
    time_a_decode();
    return 0;
  }
  return run_example(
      argc, argv, "Attention: sequences in one call, masks, executors, merged results. With \"time\": times a decode.",
      [] {
        Cache cache(shape, {.blocks = 512, .block_tokens = 16});
        decode_several(cache);
        prefill_ragged(cache);
        restrict_keys(cache);
        merge_parts(cache);
        use_threads(cache);
        enter_with_all_threads(cache);
        attend_to_selected(cache);
      });
}
