// Spmd: all threads of an engine enter an operation, thread 0 runs its body, and all of them work on its items.
#include "kvc/parallel/spmd.hpp"

#include <atomic>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "kvc/testing/executor_conformance.hpp"

namespace spmd_test {
namespace {
using namespace kvc;
using kvc_test::contains;

/// An engine: `threads` threads, each of which calls op(thread).
void on_all(int threads, const std::function<void(int)>& op) {
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) {
    others.emplace_back([&op, thread] { op(thread); });
  }
  op(0);
  for (std::thread& other : others) {
    other.join();
  }
}
}  // namespace

TEST_CASE("The team of an Spmd run keeps the contract of executors", "[executor][threads]") {
  for (const int threads : {1, 2, 3, 8}) {
    Spmd spmd;
    on_all(threads, [&](int thread) {
      spmd.run(thread, threads, [&](auto& team) {
        REQUIRE(team.concurrency() == threads);
        testing::executor_conformance(team, "the team");
      });
    });
  }
}

TEST_CASE("Runs follow each other without a barrier of the engine", "[executor][threads]") {
  Spmd spmd;
  constexpr int threads = 3, runs = 2000;
  std::vector<Index> sums(runs, 0);  // written by thread 0 at the end of each run, read by all after it
  std::atomic<int> wrong = 0;
  on_all(threads, [&](int thread) {
    for (int run = 0; run < runs; ++run) {
      spmd.run(thread, threads, [&](auto& team) {
        std::vector<Index> squares(20);
        team.parallel_for(20, [&](Index i) { squares[static_cast<std::size_t>(i)] = i * i; });
        team.parallel_for(run % 3, [&](Index i) { squares[static_cast<std::size_t>(i)] += 1000; });
        for (const Index square : squares) {
          sums[static_cast<std::size_t>(run)] += square;
        }
      });
      wrong += sums[static_cast<std::size_t>(run)] != 2470 + 1000 * (run % 3);  // on every thread: nobody leaves early
    }
  });
  REQUIRE(wrong == 0);
}

TEST_CASE("Each run may have another number of threads", "[executor][threads]") {
  Spmd spmd;
  std::atomic<Index> items = 0;
  for (int round = 0; round < 50; ++round) {
    for (const int threads : {4, 1, 2}) {
      on_all(threads, [&](int thread) {
        spmd.run(thread, threads, [&](auto& team) { team.parallel_for(10, [&](Index) { ++items; }); });
      });
    }
  }
  REQUIRE(items == 50 * 3 * 10);
}

TEST_CASE("Several threads of an Spmd run work at the same time", "[executor][threads]") {
  Spmd spmd;
  std::atomic<int> arrived = 0;
  on_all(3, [&](int thread) {
    spmd.run(thread, 3, [&](auto& team) {
      team.parallel_for(3, [&](Index) {  // each item waits for the other two
        ++arrived;
        while (arrived < 3) {
          std::this_thread::yield();
        }
      });
    });
  });
  REQUIRE(arrived == 3);
}

TEST_CASE("A run that throws ends on all threads, and another can follow", "[executor][threads]") {
  Spmd spmd;
  std::atomic<int> thrown = 0, left = 0, after = 0;
  on_all(3, [&](int thread) {
    try {  // the body
      spmd.run(thread, 3, [](auto&) { throw std::runtime_error("the body fails"); });
    } catch (const std::runtime_error&) {
      REQUIRE(thread == 0);
      ++thrown;
    }
    try {  // an item, on whichever thread
      spmd.run(thread, 3, [](auto& team) {
        team.parallel_for(100, [](Index i) { i == 50 ? throw std::runtime_error("an item fails") : void(); });
      });
    } catch (const std::runtime_error&) {
      REQUIRE(thread == 0);
      ++thrown;
    }
    ++left;
    spmd.run(thread, 3, [&](auto& team) { team.parallel_for(100, [&](Index) { ++after; }); });
  });
  REQUIRE(thrown == 2);
  REQUIRE(left == 3);
  REQUIRE(after == 100);
}

TEST_CASE("Spmd refuses a thread that is not one of them, and has not begun a run", "[executor]") {
  Spmd spmd;
  const auto body = [](auto&) {};
  REQUIRE_THROWS_WITH(spmd.run(0, 0, body), contains("threads is 0, must be at least 1"));
  REQUIRE_THROWS_WITH(spmd.run(2, 2, body), contains("thread is 2, must be between 0 and 1"));
  REQUIRE_THROWS_WITH(spmd.run(-1, 2, body), contains("thread is -1"));
  bool ran = false;
  spmd.run(0, 1, [&](auto&) { ran = true; });
  REQUIRE(ran);
}

}  // namespace spmd_test
