// Executors: they run the work items of a call. An engine brings its own threads by satisfying one concept.
//
//   parallel/executor.hpp   Sequential
//   parallel/openmp.hpp     OpenMp
//   parallel/tbb.hpp        Tbb
//   parallel/spmd.hpp       Spmd, for engines whose threads all enter an operation
#pragma once

#include <algorithm>
#include <concepts>
#include <type_traits>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {
struct IgnoreItem {
  void operator()(Index) const noexcept {}
};
}  // namespace detail

/// Runs the items of a call, on one thread or many. The results of kvc never depend on the executor.
///
///   expression           | requires           | returns, does                   | throws                  | complexity
///   ---------------------+--------------------+---------------------------------+-------------------------+-----------
///   e.parallel_for(n, f) | n >= 0; f(i) may   | calls f(i) exactly once for     | one of the exceptions   | O(n), and
///                        | be called from     | each i in [0, n), in any order, | that items threw, after | the items
///                        | several threads    | on any threads; returns when    | all items that started  |
///                        |                    | all calls have returned, and    | have ended; items that  |
///                        |                    | the caller sees what they wrote | did not start may be    |
///                        |                    |                                 | left out                |
///   e.concurrency()      |                    | optional: Index, about how many | nothing                 | O(1)
///                        |                    | items run at the same time, at  |                         |
///                        |                    | least 1. Work is cut            |                         |
///                        |                    | accordingly; for an executor    |                         |
///                        |                    | without it, for 16              |                         |
///
/// Items differ in cost, and the more expensive ones come first: hand them out one by one rather than in equal shares,
/// and start them in ascending order if possible. parallel_for is not called from within an item.
/// testing/executor_conformance.hpp checks the contract; a minimal executor is in tests/conformance/executors.cpp.
template <class E>
concept Executor =
    requires(std::remove_reference_t<E>& executor, Index n, detail::IgnoreItem f) { executor.parallel_for(n, f); };

/// Runs the items one after the other, on the calling thread.
struct Sequential {
  /// One item at a time.
  [[nodiscard]] static constexpr Index concurrency() noexcept { return 1; }
  /// Calls f(0) .. f(n - 1), in this order. Throws what f throws, without the calls after it.
  template <class F>
  void parallel_for(Index n, F&& f) const {
    for (Index i = 0; i < n; ++i) {
      f(i);
    }
  }
};
static_assert(Executor<Sequential>);

namespace detail {
/// About how many items run at the same time. 16 for an executor that does not say.
template <class E>
[[nodiscard]] Index concurrency(E& executor) {
  if constexpr (requires {
                  { executor.concurrency() } -> std::convertible_to<Index>;
                }) {
    return std::max(static_cast<Index>(executor.concurrency()), Index{1});
  } else {
    return 16;
  }
}
}  // namespace detail

}  // namespace v0
}  // namespace kvc
