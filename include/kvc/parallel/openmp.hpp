// An executor on OpenMP threads. Needs OpenMP: compile and link with -fopenmp.
#pragma once

#ifndef _OPENMP
#error "kvc/parallel/openmp.hpp needs OpenMP: compile with -fopenmp, or do not include it"
#endif

#include <omp.h>

#include <algorithm>
#include <exception>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/parallel/executor.hpp"

namespace kvc {
inline namespace v0 {

/// Runs items on a team of `threads` OpenMP threads; 0 stands for omp_get_max_threads().
struct OpenMp {
  int threads = 0;

  /// Threads that run the items.
  [[nodiscard]] Index concurrency() const noexcept { return threads > 0 ? threads : omp_get_max_threads(); }

  /// Throws one of the exceptions that items threw, once all items are done; std::invalid_argument if `threads` is
  /// negative.
  template <class F>
  void parallel_for(Index n, F&& f) const {
    require(threads >= 0, "threads", threads, "at least 0");
    const Index team = std::min(n, concurrency());
    if (team <= 1) {
      Sequential{}.parallel_for(n, f);
      return;
    }
#if KVC_HAS_EXCEPTIONS
    std::exception_ptr error;  // an exception must not leave the parallel region
#endif
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(team))
    for (Index i = 0; i < n; ++i) {
#if KVC_HAS_EXCEPTIONS
      try {
        f(i);
      } catch (...) {
#pragma omp critical(kvc_openmp_error)
        error = std::current_exception();
      }
#else
      f(i);
#endif
    }
#if KVC_HAS_EXCEPTIONS
    if (error) {
      std::rethrow_exception(error);
    }
#endif
  }
};
static_assert(Executor<OpenMp>);

}  // namespace v0
}  // namespace kvc
