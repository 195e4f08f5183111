// The contract of Executor: ours keep it, a minimal model does, and the suite rejects wrong ones.
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "kvc/parallel/executor.hpp"
#include "kvc/testing/executor_conformance.hpp"
#ifdef _OPENMP
#include "kvc/parallel/openmp.hpp"
#endif

namespace {
using namespace kvc;
using kvc_test::contains;
using testing::executor_conformance;

/// A minimal executor: two threads that halve the items.
struct TwoThreads {
  template <class F>
  void parallel_for(Index n, F&& f) const {
    std::exception_ptr error;
    std::mutex mutex;
    const auto run = [&](Index first) {
      try {
        for (Index i = first; i < n; i += 2) {
          f(i);
        }
      } catch (...) {
        const std::lock_guard lock(mutex);
        error = std::current_exception();
      }
    };
    std::thread other(run, 1);
    run(0);
    other.join();
    if (error) {
      std::rethrow_exception(error);
    }
  }
};
static_assert(Executor<TwoThreads>);

// Executors that compile and are wrong.

struct Skips {
  template <class F>
  void parallel_for(Index n, F&& f) const {
    for (Index i = 0; i < n - n % 2; ++i) {
      f(i);
    }
  }
};
struct Repeats {
  template <class F>
  void parallel_for(Index n, F&& f) const {
    for (Index i = 0; i < n; ++i) {
      f(i);
    }
    if (n > 3) {
      f(3);
    }
  }
};
struct FromOne {
  template <class F>
  void parallel_for(Index n, F&& f) const {
    for (Index i = 1; i <= n; ++i) {
      f(i);
    }
  }
};
struct SwallowsExceptions {
  template <class F>
  void parallel_for(Index n, F&& f) const {
    try {
      Sequential{}.parallel_for(n, f);
    } catch (const std::out_of_range&) {
    }
  }
};
struct NoThreads : Sequential {
  static Index concurrency() { return 0; }
};
struct WithoutItems {
  void parallel_for(Index) const {}
};
static_assert(!Executor<WithoutItems>);

template <class E>
void check_executor() {
  E executor;
  executor_conformance(executor);
}
}  // namespace

TEMPLATE_TEST_CASE("An executor keeps the contract", "[executor][contract][threads]", Sequential, TwoThreads) {
  check_executor<TestType>();
}
#if defined(_OPENMP) && !defined(__SANITIZE_THREAD__)  // a sanitizer does not see the barriers of OpenMP
TEST_CASE("OpenMp keeps the contract of executors", "[executor][contract]") {
  for (const int threads : {0, 1, 3}) {
    const OpenMp executor{threads};
    executor_conformance(executor);
  }
}
#endif

TEST_CASE("An executor that breaks the contract is found", "[executor][contract]") {
  REQUIRE_THROWS_WITH(check_executor<Skips>(), contains("runs item 0 of 1 0 times instead of once"));
  REQUIRE_THROWS_WITH(check_executor<Repeats>(), contains("runs item 3 of 7 2 times instead of once"));
  REQUIRE_THROWS_WITH(check_executor<FromOne>(), contains("runs an item that is not one of 1"));
  REQUIRE_THROWS_WITH(check_executor<SwallowsExceptions>(), contains("loses the exception of an item"));
  REQUIRE_THROWS_WITH(check_executor<NoThreads>(), contains("concurrency() is 0"));
}
