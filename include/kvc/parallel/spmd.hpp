// Spmd: an executor for engines whose threads all enter an operation, such as a custom operator of ggml.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <type_traits>
#include <utility>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/spin_pause.hpp"
#include "kvc/core/types.hpp"
#include "kvc/parallel/executor.hpp"

namespace kvc {
inline namespace v0 {

/// Runs a call of kvc on the threads that an engine sends into an operation: single program, multiple data. Every one
/// of the n threads calls `run` with its number; thread 0 runs the body, and the others work on the items of its calls:
///
///   kvc::Spmd spmd;  // one for each set of threads; it outlives their calls
///
///   void attend(ggml_tensor* out, const ggml_tensor* q, int ith, int nth, void* data) {  // on each of nth threads
///     spmd.run(ith, nth, [&](auto& team) { kvc::decode(views, rows(q), rows(out), {}, team); });
///   }
///
/// `team` is an Executor. Threads take items one by one, in ascending order. They wait for items and for one another by
/// spinning briefly, then block. A run allocates nothing.
///
/// All n threads must enter each run, with the same n: thread 0 leaves when its body has returned and all others have
/// entered; the others leave when thread 0 does. Then all see what the body and its items wrote. Runs follow each other
/// without a barrier of the engine between them, also with other numbers of threads. One set of threads at a time.
class Spmd {
 public:
  /// The threads of a run, as the Executor that its body gets. Valid during the run, for thread 0.
  class Team {
   public:
    /// Threads that entered the run, or will.
    [[nodiscard]] Index concurrency() const noexcept { return threads_; }
    /// Calls f(i) exactly once for each i in [0, n), on the threads of the run. Throws one of the exceptions that items
    /// threw, once all items that started have ended; items that had not started by then are left out.
    template <class F>
    void parallel_for(Index n, F&& f) const {
      if (n <= 1 || threads_ <= 1) {
        Sequential{}.parallel_for(n, f);
        return;
      }
      using Function = std::remove_reference_t<F>;
      spmd_->work_on({[](void* function, Index i) { (*static_cast<Function*>(function))(i); },
                      const_cast<void*>(static_cast<const void*>(&f)), n});
    }

   private:
    friend Spmd;
    Team(Spmd& spmd, int threads) : spmd_(&spmd), threads_(threads) {}
    Spmd* spmd_;
    int threads_;
  };

  Spmd() = default;
  Spmd(const Spmd&) = delete;  // threads wait on its members
  Spmd& operator=(const Spmd&) = delete;

  /// Enters a run as thread `thread` of `threads`. Thread 0 calls body(team), with a Team&, and throws what it throws;
  /// on the others `body` is not called, and nothing is thrown.
  /// Throws std::invalid_argument unless 0 <= thread < threads: then the thread has not entered.
  template <class F>
  void run(int thread, int threads, F&& body) {
    require(threads >= 1, "threads", threads, "at least 1");
    require_between(thread, 0, threads - 1, "thread");
    if (thread != 0) {
      help();
      return;
    }
    const detail::ScopeGuard end([&]() noexcept { end_run(threads); });
    Team team(*this, threads);
    std::forward<F>(body)(team);
  }

 private:
  /// The items of one parallel_for.
  struct Job {
    void (*call)(void* function, Index i) = nullptr;
    void* function = nullptr;
    Index items = 0;
  };

  // A phase is the number of the run in its upper bits, and in its lower ones a number that every change increments:
  // odd while there is a job. Both wrap around: no thread can be more than one run behind, and one that comes back to
  // an equal phase finds the job of that phase.
  static constexpr std::uint32_t one_run = std::uint32_t{1} << 24;
  [[nodiscard]] static std::uint32_t run_of(std::uint32_t phase) noexcept { return phase / one_run; }
  [[nodiscard]] static bool has_job(std::uint32_t phase) noexcept { return phase % 2 == 1; }

  void set_phase(std::uint32_t phase) noexcept {
    phase_.store(phase, std::memory_order_seq_cst);
    phase_.notify_all();
  }
  void next_phase() noexcept {
    const std::uint32_t now = phase_.load(std::memory_order_relaxed);
    set_phase(run_of(now) * one_run + (now + 1) % one_run);
  }
  /// Spins briefly, then blocks, while `value` is `old`. Returns the other value, with all that was written before it.
  template <class V>
  static V wait_while(const std::atomic<V>& value, V old) noexcept {
    for (int i = 0; i < spins; ++i) {
      if (const V now = value.load(std::memory_order_seq_cst); now != old) {
        return now;
      }
      detail::spin_pause();
    }
    V now = old;
    while (now == old) {
      value.wait(old, std::memory_order_seq_cst);
      now = value.load(std::memory_order_seq_cst);
    }
    return now;
  }

  /// A thread other than 0, from where it enters to where it leaves.
  void help() noexcept {
    // The run must be known before the thread counts as entered: from then on the run can end.
    std::uint32_t phase = phase_.load(std::memory_order_seq_cst);
    const std::uint32_t run = run_of(phase);
    entered_.fetch_add(1, std::memory_order_seq_cst);
    entered_.notify_one();
    while (run_of(phase) == run) {
      if (has_job(phase)) {
        // Thread 0 closes the job, then waits until nobody works on it: whoever still sees it open, counts.
        working_.fetch_add(1, std::memory_order_seq_cst);
        if (phase_.load(std::memory_order_seq_cst) == phase) {
          take_items();
        }
        if (working_.fetch_sub(1, std::memory_order_seq_cst) == 1) {
          working_.notify_one();
        }
      }
      phase = wait_while(phase_, phase);
    }
  }
  /// Thread 0: the items of one call, with the help of the others.
  void work_on(const Job& job) {
    job_ = job;
    next_.store(0, std::memory_order_relaxed);
    next_phase();
    take_items();
    next_phase();
    for (int left = working_.load(std::memory_order_seq_cst); left != 0;) {
      left = wait_while(working_, left);
    }
#if KVC_HAS_EXCEPTIONS
    if (error_) {
      std::rethrow_exception(std::exchange(error_, nullptr));
    }
#endif
  }
  void take_items() noexcept {
    for (Index i = next_.fetch_add(1, std::memory_order_relaxed); i < job_.items;
         i = next_.fetch_add(1, std::memory_order_relaxed)) {
#if KVC_HAS_EXCEPTIONS
      try {
        job_.call(job_.function, i);
      } catch (...) {
        const std::lock_guard lock(error_mutex_);
        error_ = std::current_exception();
        next_.store(job_.items, std::memory_order_relaxed);
      }
#else
      job_.call(job_.function, i);
#endif
    }
  }
  void end_run(int threads) noexcept {
    for (int entered = entered_.load(std::memory_order_seq_cst); entered != threads - 1;) {
      entered = wait_while(entered_, entered);
    }
    entered_.store(0, std::memory_order_relaxed);
    set_phase((run_of(phase_.load(std::memory_order_relaxed)) + 1) * one_run);
  }

  static constexpr int spins = 2000;
  static constexpr std::size_t line = 64;  // what threads write is apart from what others wait for

  alignas(line) std::atomic<std::uint32_t> phase_ = 0;
  alignas(line) std::atomic<Index> next_ = 0;   // item
  alignas(line) std::atomic<int> working_ = 0;  // threads other than 0 that may look at the job
  std::atomic<int> entered_ = 0;                // threads other than 0 that entered the run
  alignas(line) Job job_;
#if KVC_HAS_EXCEPTIONS
  std::mutex error_mutex_;
  std::exception_ptr error_;
#endif
};
static_assert(Executor<Spmd::Team>);

}  // namespace v0
}  // namespace kvc
