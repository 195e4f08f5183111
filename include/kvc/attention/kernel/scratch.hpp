// The working memory of attention: each thread has one buffer, and keeps it from call to call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Rows are padded to a multiple of 16 elements.
[[nodiscard]] constexpr Index padded(Index count) noexcept { return ceil_div(count, Index{16}) * 16; }

/// Aligned, uninitialised memory, taken part by part.
///
/// Comes from a buffer of this thread that grows to the largest size ever requested and is freed with the thread: fresh
/// memory costs a page fault every 4 KiB, more than the arithmetic done in it. A thread has three such buffers, for a
/// call, for an item of it that runs on the same thread, and for a call that makes such calls; if all are in use,
/// memory is allocated.
class Scratch {
 public:
  static constexpr std::size_t alignment = 64;

  /// Room for `floats` floats in parts that are multiples of 16. Throws std::bad_alloc.
  explicit Scratch(Index floats) : last_(floats) {
    pool_ = free_pool();
    if (pool_ == nullptr) {
      own_.reset(allocate(floats));
      next_ = own_.get();
      return;
    }
    if (pool_->size < floats) {
      pool_->data.reset();
      pool_->size = 0;
      pool_->data.reset(allocate(floats));
      pool_->size = floats;
    }
    pool_->taken = true;
    next_ = pool_->data.get();
  }
  ~Scratch() {
    if (pool_ != nullptr) {
      pool_->taken = false;
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  [[nodiscard]] float* take(Index floats) noexcept {
    KVC_ASSERT(floats % 16 == 0 && floats <= last_);
    last_ -= floats;
    return std::exchange(next_, next_ + floats);
  }
  /// `count` objects of a trivial type.
  template <class T>
  [[nodiscard]] T* take_as(Index count) noexcept {
    return ::new (take(floats_for<T>(count))) T[static_cast<std::size_t>(count)];
  }
  template <class T>
  [[nodiscard]] static constexpr Index floats_for(Index count) noexcept {
    return padded(ceil_div(count * Index{sizeof(T)}, Index{sizeof(float)}));
  }

 private:
  struct Free {
    void operator()(float* p) const noexcept { ::operator delete(p, std::align_val_t{alignment}); }
  };
  struct Pool {
    std::unique_ptr<float, Free> data;
    Index size = 0;
    bool taken = false;
  };
  static Pool* free_pool() noexcept {
    thread_local Pool pools[3];
    for (Pool& pool : pools) {
      if (!pool.taken) {
        return &pool;
      }
    }
    return nullptr;
  }
  static float* allocate(Index floats) {
    return static_cast<float*>(
        ::operator new(static_cast<std::size_t>(floats) * sizeof(float), std::align_val_t{alignment}));
  }

  Pool* pool_ = nullptr;
  std::unique_ptr<float, Free> own_;
  float* next_ = nullptr;
  Index last_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
