// Every executor calls each item exactly once and hands an exception on.
#include <algorithm>
#include <atomic>
#include <span>
#include <stdexcept>
#include <vector>

#include "attend.hpp"
#include "catch.hpp"
#include "kvc/parallel/executor.hpp"
#ifdef KVC_HAVE_OPENMP
#include "kvc/parallel/openmp.hpp"
#endif
#ifdef KVC_HAVE_TBB
#include "kvc/parallel/tbb.hpp"
#endif

using namespace kvc;
using kvc_test::Attend;

namespace {

template <Executor Ex>
void keeps_the_contract(Ex&& executor) {
  for (const Index n : {0, 1, 2, 3, 1000}) {
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n));
    executor.parallel_for(n, [&](Index i) { ++calls[static_cast<std::size_t>(i)]; });
    for (const std::atomic<int>& count : calls) {
      CHECK(count == 1);
    }
  }
  CHECK_THROWS_WITH(executor.parallel_for(10, [](Index i) { i == 7 ? throw std::runtime_error("seven") : void(); }),
                    "seven");

  // Attention through it gives what it gives without.
  const Index length = 1000, dim = 16;
  std::vector<float> rows(static_cast<std::size_t>(length * dim));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = static_cast<float>(i * 7919 % 1000) / 500 - 1;
  }
  const MatrixRef<const float> k(rows.data(), length, dim);
  const DenseView<float> kv(k, k, 1);
  std::vector<float> expected(static_cast<std::size_t>(length * dim)), out(expected.size());
  const MatrixRef<float> expected_ref(expected.data(), length, dim), out_ref(out.data(), length, dim);
  Attend<float>::prefill(kv, {0, static_cast<Pos>(length)}, k, expected_ref);
  Attend<float>::prefill(kv, {0, static_cast<Pos>(length)}, k, out_ref, {}, executor);
  CHECK(out == expected);
  Attend<float>::decode(kv, k.middle_rows(length - 1, 1), out_ref.middle_rows(0, 1), {}, executor);
  CHECK(std::equal(out.begin(), out.begin() + dim, expected.end() - dim));
}

}  // namespace

TEST_CASE("The sequential executor", "[attention]") { keeps_the_contract(Sequential{}); }

TEST_CASE("The OpenMP executor", "[attention][threads]") {
#ifdef KVC_HAVE_OPENMP
  keeps_the_contract(OpenMp{});
  keeps_the_contract(OpenMp{3});
  CHECK_THROWS_AS(OpenMp{-1}.parallel_for(1, [](Index) {}), std::invalid_argument);
#else
  KVC_SKIP("compiled without OpenMP");
#endif
}

TEST_CASE("The oneTBB executor", "[attention][threads]") {
#ifdef KVC_HAVE_TBB
  keeps_the_contract(Tbb{});
  Tbb three(3);
  keeps_the_contract(three);
  CHECK_THROWS_AS(Tbb{-1}, std::invalid_argument);
#else
  KVC_SKIP("compiled without oneTBB");
#endif
}

namespace {

/// Says that it has `threads`, and remembers the numbers of items that it was given.
struct Counting {
  Index threads;
  std::vector<Index>* calls;
  [[nodiscard]] Index concurrency() const { return threads; }
  template <class F>
  void parallel_for(Index n, F&& f) const {
    calls->push_back(n);
    Sequential{}.parallel_for(n, f);
  }
};

/// Into how many items the decode of sequences of these lengths is cut: after rows of q are prepared, and before states
/// are merged.
Index items(const std::vector<Pos>& lengths, Index kv_heads, Index threads) {
  constexpr Index dim = 16, group = 4;
  std::vector<std::vector<float>> rows;  // apart, so that no sequence shares memory with another
  std::vector<kvc_test::AnyView<float>> views;
  for (const Pos length : lengths) {
    rows.emplace_back(static_cast<std::size_t>(length * kv_heads * dim), 0.5F);
    const MatrixRef<const float> k(rows.back().data(), length, kv_heads * dim);
    views.emplace_back(DenseView<float>(k, k, kv_heads));
  }
  const auto count = std::ssize(lengths);
  std::vector<float> q(static_cast<std::size_t>(count * kv_heads * group * dim), 0.25F), out(q.size());
  std::vector<Index> calls;
  Attend<float>::decode(std::span<const kvc_test::AnyView<float>>(views),
                        MatrixRef<const float>(q.data(), count, kv_heads * group * dim),
                        MatrixRef<float>(out.data(), count, kv_heads * group * dim), {}, Counting{threads, &calls});
  return calls.at(1);
}

}  // namespace

TEST_CASE("Decode is cut into at least two items for each thread", "[attention]") {
  for (const Index threads : {2, 3, 8, 16}) {
    CAPTURE(threads);
    CHECK(items({32768}, 1, threads) >= 2 * threads);  // one long sequence
    CHECK(items({8192}, 8, threads) >= 2 * threads);
    CHECK(items(std::vector<Pos>(64, 70), 1, threads) >= 2 * threads);  // many short ones
    CHECK(items(std::vector<Pos>(16, 70), 8, threads) >= 2 * threads);
    std::vector<Pos> mixed(20, 50);
    mixed[7] = 20000;
    CHECK(items(mixed, 2, threads) >= 2 * threads);
  }
}
