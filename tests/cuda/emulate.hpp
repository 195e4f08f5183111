// Runs kernels of kvc/cuda on the CPU, without a GPU and without nvcc: include this before any .cuh.
//
// Every thread of a thread block is a fiber. At a shuffle or a product of tiles a fiber yields to the others of its
// warp until all of them have arrived. Blocks run one after another, and between barriers so do the warps of a block,
// in ascending or descending order. This finds wrong indices, sums and masks, missing cases, barriers in divergent code
// (reported as a deadlock), many missing barriers between warps, and, under AddressSanitizer, reads beyond an array. It
// does not find every race; compute-sanitizer on a GPU does.
//
// A kernel's __shared__ arrays are static here and keep the content of the block before, as they may on a GPU.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define KVC_EMULATION_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KVC_EMULATION_ASAN 1
#endif
#endif
#if defined(KVC_EMULATION_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

#define KVC_CUDA_EMULATION 1
#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  std::uint32_t x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct dim3 {
  constexpr dim3(unsigned of_x = 1, unsigned of_y = 1, unsigned of_z = 1)  // NOLINT: as CUDA's
      : x(of_x), y(of_y), z(of_z) {}
  unsigned x, y, z;
};

namespace kvc_emulation {

/// One block at a time.
class Block {
 public:
  static constexpr std::size_t stack_bytes = std::size_t{256} << 10;
  static inline bool last_warp_first = false;  ///< runs the warps of a block in descending order

  Block(dim3 grid, dim3 at, unsigned threads)
      : grid_(grid), at_(at), fibers_(threads), barrier_{threads}, warps_((threads + 31) / 32) {
    for (unsigned i = 0; i < threads; ++i) {
      ++warps_[i / 32].members;
      fibers_[i].thread = i;
      if (stacks().size() <= i) {
        stacks().push_back(std::make_unique<std::byte[]>(stack_bytes));
      }
    }
  }

  void run(const std::function<void()>& body) {
    body_ = &body;
    current() = this;
    for (Fiber& fiber : fibers_) {
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stacks()[fiber.thread].get();
      fiber.context.uc_stack.ss_size = stack_bytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    for (std::size_t done = 0; done < fibers_.size();) {
      ++turn_;
      // Each warp runs as far as it can before the next one, which reveals missing barriers between them.
      bool moved = false;
      for (std::size_t i = 0; i < fibers_.size(); i += 32) {
        const std::size_t first = last_warp_first ? (fibers_.size() - 1 - i) / 32 * 32 : i;
        for (bool more = true; more;) {
          more = false;
          for (std::size_t f = first; f < std::min(first + 32, fibers_.size()); ++f) {
            if (!fibers_[f].done && ready(fibers_[f])) {
              more = moved = true;
              resume(fibers_[f]);
            }
          }
        }
      }
      done = 0;
      for (const Fiber& fiber : fibers_) {
        done += fiber.done ? 1 : 0;
      }
      if (error_) {
        std::rethrow_exception(error_);  // the other fibers are left where they are
      }
      if (!moved && done < fibers_.size() && !(when_stalled && when_stalled())) {
        throw std::logic_error("a barrier or warp operation that not all threads reach");
      }
    }
    if (at_end) {
      at_end();
    }
    current() = nullptr;
  }
  /// when_stalled() is called when no thread can continue; it returns whether that has changed. at_end() is called when
  /// all threads have ended.
  static inline bool (*when_stalled)() = nullptr;
  static inline void (*at_end)() = nullptr;

  static Block*& current() {
    static Block* block = nullptr;
    return block;
  }
  [[nodiscard]] unsigned thread() const { return running_->thread; }
  [[nodiscard]] unsigned threads() const { return static_cast<unsigned>(fibers_.size()); }
  [[nodiscard]] dim3 grid() const { return grid_; }
  [[nodiscard]] dim3 at() const { return at_; }

  void sync_block() {
    ++running_->block_round;
    barrier_.arrive();
    wait();
  }
  /// Blocks this thread only, until `condition` holds.
  void wait_until(const std::function<bool()>& condition) {
    if (!condition()) {
      running_->condition = &condition;
      wait();
      running_->condition = nullptr;
    }
  }
  /// Lets every other thread that can run do so before this one continues.
  void give_way() {
    const unsigned turn = turn_;
    wait_until([this, turn] { return turn_ != turn; });
  }
  /// Collects one value from each lane of the warp. All lanes must call it with the same `operation`.
  template <class T>
  std::array<T, 32> exchange(const T& mine, int operation) {
    static_assert(sizeof(T) <= 64 && std::is_trivially_copyable_v<T>);
    Exchange& exchange =
        running_->exchanges[running_->warp_round % 2];  // a lane is at most one operation ahead of another
    std::memcpy(exchange.bytes, &mine, sizeof(T));
    exchange.operation = operation;
    const unsigned round = running_->warp_round++;
    warps_[running_->thread / 32].arrive();
    wait();
    std::array<T, 32> all{};
    const unsigned first = running_->thread / 32 * 32;
    for (unsigned lane = 0; lane < 32; ++lane) {
      const Exchange& other = fibers_[first + lane].exchanges[round % 2];
      if (other.operation != operation) {
        throw std::logic_error("the lanes of a warp are at different operations");
      }
      std::memcpy(&all[lane], other.bytes, sizeof(T));
    }
    return all;
  }

 private:
  struct Exchange {
    std::byte bytes[64];
    int operation;
  };
  /// Of threads that wait for each other, again and again.
  struct Rounds {
    unsigned members = 0;
    unsigned round = 0;    // how often all have arrived
    unsigned arrived = 0;  // since then

    void arrive() {
      ++arrived;
      next_round();
    }
    void leave() {  // for ever: nobody waits for it
      --members;
      next_round();
    }
    void next_round() {
      if (arrived == members) {
        ++round;
        arrived = 0;
      }
    }
  };
  struct Fiber {
    ucontext_t context;
    Exchange exchanges[2];
    unsigned thread = 0;
    unsigned block_round = 0;  // barriers reached
    unsigned warp_round = 0;   // warp operations reached
    bool done = false;
    const std::function<bool()>* condition = nullptr;  // that it waits for
    void* fake_stack = nullptr;
  };

  /// Whether all threads that the fiber waits for have arrived.
  [[nodiscard]] bool ready(const Fiber& fiber) const {
    return fiber.warp_round == warps_[fiber.thread / 32].round && fiber.block_round == barrier_.round &&
           (fiber.condition == nullptr || (*fiber.condition)());
  }

  static std::vector<std::unique_ptr<std::byte[]>>& stacks() {
    static std::vector<std::unique_ptr<std::byte[]>> all;
    return all;
  }

  void resume(Fiber& fiber) {
    running_ = &fiber;
#if defined(KVC_EMULATION_ASAN)
    __sanitizer_start_switch_fiber(&scheduler_fake_, stacks()[fiber.thread].get(), stack_bytes);
#endif
    swapcontext(&scheduler_, &fiber.context);
#if defined(KVC_EMULATION_ASAN)
    __sanitizer_finish_switch_fiber(scheduler_fake_, nullptr, nullptr);
#endif
  }
  void wait() {
    Fiber& me = *running_;
#if defined(KVC_EMULATION_ASAN)
    __sanitizer_start_switch_fiber(&me.fake_stack, scheduler_stack_, scheduler_bytes_);
#endif
    swapcontext(&me.context, &scheduler_);
#if defined(KVC_EMULATION_ASAN)
    __sanitizer_finish_switch_fiber(me.fake_stack, &scheduler_stack_, &scheduler_bytes_);
#endif
  }
  static void enter() {
    Block& block = *current();
#if defined(KVC_EMULATION_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack_, &block.scheduler_bytes_);
#endif
    try {
      (*block.body_)();
    } catch (...) {
      block.error_ = std::current_exception();
    }
    block.running_->done = true;
    block.warps_[block.running_->thread / 32].leave();
    block.barrier_.leave();
#if defined(KVC_EMULATION_ASAN)
    __sanitizer_start_switch_fiber(nullptr, block.scheduler_stack_, block.scheduler_bytes_);
#endif
    swapcontext(&block.running_->context, &block.scheduler_);
  }

  dim3 grid_, at_;
  std::vector<Fiber> fibers_;
  Rounds barrier_;
  std::vector<Rounds> warps_;
  ucontext_t scheduler_{};
  Fiber* running_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr error_;
  unsigned turn_ = 0;  // counts rounds in which each thread that can run does
#if defined(KVC_EMULATION_ASAN)
  void* scheduler_fake_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_bytes_ = 0;
#endif
};

/// kernel<<<grid, threads>>>: calls `body` once for each thread. Blocks run from the last to the first, so that no
/// kernel can rely on ascending order.
inline void launch(dim3 grid, unsigned threads, const std::function<void()>& body) {
  for (unsigned z = grid.z; z-- > 0;) {
    for (unsigned y = grid.y; y-- > 0;) {
      for (unsigned x = grid.x; x-- > 0;) {
        Block(grid, {x, y, z}, threads).run(body);
      }
    }
  }
}

/// What a launch waits for that may begin before those before it have ended: their writes appear, by appear(), when all
/// threads of a block wait for them, and not before.
struct LaunchesBefore {
  std::function<void()> appear;
  unsigned waiting = 0;  // threads of the block
};
inline LaunchesBefore*& launches_before() {
  static LaunchesBefore* before = nullptr;
  return before;
}
inline void wait_for_launches_before() {
  if (LaunchesBefore* const before = launches_before()) {
    Block& block = *Block::current();
    if (++before->waiting == block.threads()) {
      before->appear();
    }
    block.wait_until([before, &block] { return before->waiting >= block.threads(); });
  }
}

struct ThreadIndex {
  struct X {
    operator unsigned() const { return Block::current()->thread(); }  // NOLINT: as threadIdx.x converts
  } x;
};
struct BlockSize {
  struct X {
    operator unsigned() const { return Block::current()->threads(); }  // NOLINT
  } x;
};
template <unsigned dim3::* member, dim3 (Block::*of)() const>
struct Of {
  operator unsigned() const { return (Block::current()->*of)().*member; }  // NOLINT
};
template <dim3 (Block::*of)() const>
struct Three {
  Of<&dim3::x, of> x;
  Of<&dim3::y, of> y;
  Of<&dim3::z, of> z;
};

// --- 16-bit elements, and products of tiles

inline float from_f16(std::uint32_t bits) {
  const std::uint32_t sign = (bits & 0x8000U) << 16, magnitude = (bits & 0x7fffU) << 13;
  if (magnitude >= 0x0f800000U) {  // infinite or NaN
    return std::bit_cast<float>(sign | 0x7f800000U | magnitude);
  }
  return std::bit_cast<float>(sign | magnitude) * 0x1p112F;  // from one bias to the other, exact for subnormals, too
}
inline std::uint32_t to_16_bits(bool bf16, float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) {
    return 0x7fffU;
  }
  if (bf16) {
    return (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
  }
  const std::uint32_t sign = bits >> 16 & 0x8000U, magnitude = bits & 0x7fffffffU;
  const float size = std::bit_cast<float>(magnitude);
  if (size >= 65520.0F) {
    return sign | 0x7c00U;
  }
  if (size < 0x1p-14F) {  // subnormal: the unit is that of floats from 0.5 on
    return sign | (std::bit_cast<std::uint32_t>(size + 0.5F) - std::bit_cast<std::uint32_t>(0.5F));
  }
  return sign | ((magnitude - (112U << 23) + 0xfffU + (magnitude >> 13 & 1U)) >> 13);
}
inline float from_16_bits(bool bf16, std::uint32_t bits) {
  return bf16 ? std::bit_cast<float>(bits << 16) : from_f16(bits & 0xffffU);
}

enum Operation { shuffling, voting, multiplying, transposing, synchronising };

inline void mma(bool bf16, float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  struct Operands {  // as floats: each lane converts its own, and not all lanes those of all
    float a[4][2], b[2][2];
  };
  const auto halves = [bf16](std::uint32_t pair, float(&to)[2]) {
    to[0] = from_16_bits(bf16, pair & 0xffffU);
    to[1] = from_16_bits(bf16, pair >> 16);
  };
  Operands mine;
  for (unsigned i = 0; i < 4; ++i) {
    halves(a[i], mine.a[i]);
  }
  halves(b[0], mine.b[0]);
  halves(b[1], mine.b[1]);
  const auto all = Block::current()->exchange(mine, multiplying);
  const unsigned lane = Block::current()->thread() % 32, g = lane / 4, t = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned high_row = i / 2, column = 2 * t + i % 2;  // c[i] is row g + 8 high_row
    float sum = c[i];
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned other = k % 8 / 2, high = k / 8;  // which lane of the row, of the column, holds k
      sum = std::fma(all[4 * g + other].a[high_row + 2 * high][k % 2], all[4 * column + other].b[high][k % 2], sum);
    }
    c[i] = sum;
  }
}
inline int count_lanes(bool condition) {
  const auto all = Block::current()->exchange(condition, voting);
  return static_cast<int>(std::count(all.begin(), all.end(), true));
}
inline std::uint32_t transpose(std::uint32_t pair) {
  const auto all = Block::current()->exchange(pair, transposing);
  const unsigned lane = Block::current()->thread() % 32, g = lane / 4, t = lane % 4;
  const auto at = [&](unsigned row, unsigned column) {
    const std::uint32_t word = all[4 * row + column / 2];
    return column % 2 == 0 ? word & 0xffffU : word >> 16;
  };
  return at(2 * t, g) | at(2 * t + 1, g) << 16;
}

}  // namespace kvc_emulation

inline constexpr kvc_emulation::ThreadIndex threadIdx{};
inline constexpr kvc_emulation::BlockSize blockDim{};
inline constexpr kvc_emulation::Three<&kvc_emulation::Block::at> blockIdx{};
inline constexpr kvc_emulation::Three<&kvc_emulation::Block::grid> gridDim{};

inline void __syncthreads() { kvc_emulation::Block::current()->sync_block(); }
inline void __syncwarp() { (void)kvc_emulation::Block::current()->exchange(0, kvc_emulation::synchronising); }
template <class T>
T __shfl_sync(unsigned, T x, int lane) {
  return kvc_emulation::Block::current()->exchange(x, kvc_emulation::shuffling)[static_cast<std::size_t>(lane) % 32];
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  const unsigned lane = kvc_emulation::Block::current()->thread() % 32;
  return kvc_emulation::Block::current()->exchange(x, kvc_emulation::shuffling)[lane ^ static_cast<unsigned>(mask)];
}
inline int __any_sync(unsigned, int predicate) {
  const auto all = kvc_emulation::Block::current()->exchange(predicate, kvc_emulation::voting);
  return std::any_of(all.begin(), all.end(), [](int p) { return p != 0; }) ? 1 : 0;
}
inline std::uint32_t __byte_perm(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t bytes = a | static_cast<std::uint64_t>(b) << 32;
  std::uint32_t out = 0;
  for (unsigned i = 0; i < 4; ++i) {
    out |= static_cast<std::uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7U)) & 0xffU) << (8 * i);
  }
  return out;
}
inline float __uint_as_float(std::uint32_t x) { return std::bit_cast<float>(x); }
inline std::uint32_t __float_as_uint(float x) { return std::bit_cast<std::uint32_t>(x); }
// Compiled with -ffp-contract=off, these round as on a GPU.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
