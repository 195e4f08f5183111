// Executors: who runs the work items of a call. An engine brings its own threads by satisfying one concept.
//
// Adapters for OpenMP and oneTBB are in parallel/openmp.hpp and parallel/tbb.hpp. Results never depend on
// the executor.
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

///   expression                   meaning
///   executor.parallel_for(n, f)  calls f(i) exactly once for each i in [0, n), in any order, on any threads, and returns
///                                when all calls have returned. What they wrote is then visible to the caller.
///
///   executor.concurrency()       optional: about how many calls of f run at the same time, at least 1; how finely work
///                                is cut
///
/// The items of a call differ in cost, and the larger ones come first: hand them out one by one rather than in equal
/// shares, and start them in ascending order where you can.
template <class E>
concept Executor =
    requires(std::remove_reference_t<E>& executor, Index n, detail::IgnoreItem f) { executor.parallel_for(n, f); };

/// One after the other, on the calling thread.
struct Sequential {
  [[nodiscard]] static constexpr Index concurrency() noexcept { return 1; }
  template <class F>
  void parallel_for(Index n, F&& f) const {
    for (Index i = 0; i < n; ++i) {
      f(i);
    }
  }
};
static_assert(Executor<Sequential>);

namespace detail {
/// How many items run at the same time; an executor that does not say is taken for a large one.
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
