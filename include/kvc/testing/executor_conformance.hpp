// The contract of Executor as a suite: testing::executor_conformance(my_executor).
#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/parallel/executor.hpp"
#include "kvc/testing/contract.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

/// Checks the contract of Executor: every item runs exactly once, its writes are seen, its exceptions arrive. `name` is
/// what errors call the executor. Throws ContractError for the first law that does not hold. Takes milliseconds.
template <Executor E>
void executor_conformance(E& executor, std::string_view name = "the executor") {
  if constexpr (requires { executor.concurrency(); }) {
    static_assert(std::convertible_to<decltype(executor.concurrency()), Index>, "kvc: concurrency() must be an Index");
    expect(executor.concurrency() >= 1, name, {"concurrency() is ", std::to_string(executor.concurrency())});
  }
  for (int round = 0; round < 20; ++round) {  // threads may go wrong rarely
    for (const Index n : {0, 1, 2, 3, 7, 64, 1000}) {
      const std::string of = kvc::detail::concat({" of ", std::to_string(n)});
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n));
      std::vector<Index> written(static_cast<std::size_t>(n), -1);
      std::atomic<Index> outside = 0;
      executor.parallel_for(n, [&](Index i) {
        if (i < 0 || i >= n) {
          ++outside;
          return;
        }
        ++calls[static_cast<std::size_t>(i)];
        written[static_cast<std::size_t>(i)] = 3 * i;
      });
      expect(outside == 0, name, {"parallel_for runs an item that is not one", of});
      for (Index i = 0; i < n; ++i) {
        const int count = calls[static_cast<std::size_t>(i)];
        expect(
            count == 1, name,
            {"parallel_for runs item ", std::to_string(i), of, " ", std::to_string(count), " times instead of once"});
        expect(written[static_cast<std::size_t>(i)] == 3 * i, name,
               {"the caller does not see what item ", std::to_string(i), of, " wrote"});
      }
    }
#if KVC_HAS_EXCEPTIONS
    for (const Index n : {1, 2, 100}) {
      bool thrown = false;
      std::atomic<int> running = 0;
      try {
        executor.parallel_for(n, [&](Index i) {
          ++running;
          struct Leave {
            std::atomic<int>& count;
            ~Leave() { --count; }
          } leave{running};
          if (i == n / 2) {
            throw std::out_of_range("an item fails");
          }
        });
      } catch (const std::out_of_range&) {
        thrown = true;
      }
      expect(thrown, name, {"parallel_for loses the exception of an item"});
      expect(running == 0, name, {"parallel_for throws while items are running"});
    }
#endif
  }
}

}  // namespace testing
}  // namespace v0
}  // namespace kvc
