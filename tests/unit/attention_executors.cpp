// Every executor calls each item exactly once and hands an exception on.
#include <atomic>
#include <stdexcept>
#include <vector>

#include "attend.hpp"
#include "catch.hpp"
#include "kvc/attention/executor.hpp"
#ifdef KVC_HAVE_OPENMP
#include "kvc/attention/openmp.hpp"
#endif
#ifdef KVC_HAVE_TBB
#include "kvc/attention/tbb.hpp"
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
  const Index length = 2500, dim = 16;
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
