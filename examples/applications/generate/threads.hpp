// The executor of the program: one thread, or a pool of OpenMP or oneTBB, whichever the build found.
#pragma once

#if defined(KVC_HAVE_OPENMP)
#include "kvc/parallel/openmp.hpp"
#elif defined(KVC_HAVE_TBB)
#include "kvc/parallel/tbb.hpp"
#endif

#include <memory>
#include <utility>

#include "kvc/core/types.hpp"
#include "kvc/parallel/executor.hpp"

namespace generate {

#if defined(KVC_HAVE_OPENMP)
inline constexpr bool have_threads = true;
using Pool = kvc::OpenMp;
#elif defined(KVC_HAVE_TBB)
inline constexpr bool have_threads = true;
using Pool = kvc::Tbb;
#else
inline constexpr bool have_threads = false;
struct Pool : kvc::Sequential {
  explicit Pool(int /*threads*/) {}
};
#endif

/// Selects the executor at run time, so that the decoder is compiled once. Copies share their threads.
class Threads {
 public:
  explicit Threads(int count = 1) : pool_(count == 1 ? nullptr : std::make_shared<Pool>(Pool{count})) {}

  template <class F>
  void parallel_for(kvc::Index n, F&& f) const {
    if (pool_ == nullptr) {
      kvc::Sequential{}.parallel_for(n, f);
    } else {
      pool_->parallel_for(n, f);
    }
  }

 private:
  std::shared_ptr<Pool> pool_;
};
static_assert(kvc::Executor<Threads>);

}  // namespace generate
