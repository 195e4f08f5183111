// An executor on oneTBB. Needs oneTBB: link TBB::tbb.
#pragma once

#if !__has_include(<tbb/parallel_for.h>)
#error "kvc/parallel/tbb.hpp needs oneTBB, which was not found, or do not include it"
#endif

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <tbb/partitioner.h>
#include <tbb/task_arena.h>

#include <atomic>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/parallel/executor.hpp"

namespace kvc {
inline namespace v0 {

/// Runs items in a task arena of `threads` threads; 0 stands for as many as the machine has. Make one and keep it.
class Tbb {
 public:
  /// Throws std::invalid_argument if `threads` is negative.
  explicit Tbb(int threads = 0) : arena_(concurrency_of(threads)) {}

  /// Threads that run the items.
  [[nodiscard]] Index concurrency() const noexcept { return arena_.max_concurrency(); }

  /// Throws one of the exceptions that items threw. Items that had not started by then are left out.
  template <class F>
  void parallel_for(Index n, F&& f) {
    std::atomic<Index> next = 0;  // items begin in ascending order, whichever half of the tasks a thread takes
    arena_.execute([&] {
      tbb::parallel_for(
          tbb::blocked_range<Index>(0, n, 1),
          [&](const tbb::blocked_range<Index>& tasks) {
            for (Index i = tasks.begin(); i != tasks.end(); ++i) {
              f(next.fetch_add(1, std::memory_order_relaxed));
            }
          },
          tbb::simple_partitioner{});  // one item per task: they differ in cost
    });
  }

 private:
  static int concurrency_of(int threads) {
    require(threads >= 0, "threads", threads, "at least 0");
    return threads == 0 ? tbb::task_arena::automatic : threads;
  }

  tbb::task_arena arena_;
};
static_assert(Executor<Tbb>);

}  // namespace v0
}  // namespace kvc
