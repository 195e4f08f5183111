// What kernels that keep tiles in shared memory need beyond emulate.hpp: shared memory of a launch, asynchronous
// copies, and loads of matrices. Include this before any .cuh.
//
// An asynchronous copy may arrive at any time between its beginning and the wait for it. Tests run with both extremes:
// one that reads too early finds old bytes where copies are `late`, and one that is overwritten too early finds new
// ones where they are not.
#pragma once

#include "emulate.hpp"

namespace kvc_emulation {

/// The same 227 KiB in every block, as Hopper has them; NaN in any format before the first.
inline std::byte* dynamic_shared() {
  struct alignas(1024) Memory {
    std::byte bytes[227 << 10];
    Memory() { std::memset(bytes, 0xff, sizeof bytes); }
  };
  static Memory memory;
  return memory.bytes;
}

/// Whether copies arrive when they are waited for, rather than at once.
inline bool copies_are_late = true;

struct Copy {
  std::byte* to;
  const std::byte* from;
  bool there;
  void run() const {
    if (there) {
      std::memcpy(to, from, 16);
    } else {
      std::memset(to, 0, 16);
    }
  }
};
/// The groups of copies under way of a thread; the last is the one that is still open.
inline std::vector<std::vector<Copy>>& copies_of_thread() {
  static std::vector<std::vector<Copy>> all[1024];
  auto& mine = all[Block::current()->thread()];
  if (mine.empty()) {
    mine.emplace_back();
  }
  return mine;
}
inline void copy_async(std::uintptr_t to, const std::byte* from, bool there) {
  if (to % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0) {
    throw std::logic_error("an asynchronous copy that is not aligned");
  }
  const Copy copy{reinterpret_cast<std::byte*>(to), from, there};
  if (copies_are_late) {
    copies_of_thread().back().push_back(copy);
  } else {
    copy.run();
  }
}
inline void commit_copies() { copies_of_thread().emplace_back(); }
inline void wait_copies(std::size_t pending) {
  auto& groups = copies_of_thread();
  while (groups.size() > pending + 1) {
    for (const Copy& copy : groups.front()) {
      copy.run();
    }
    groups.erase(groups.begin());
  }
}

/// ldmatrix.x4: matrix i has its rows where lanes 8 i .. 8 i + 7 say.
inline void load_matrices(std::uintptr_t row, std::uint32_t (&out)[4], bool transposed) {
  constexpr int loading_matrices = 100;
  const auto rows = Block::current()->exchange(row, loading_matrices);
  const unsigned lane = Block::current()->thread() % 32, g = lane / 4, t = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const auto at = [&](unsigned r, unsigned column) -> std::uint32_t {
      if (rows[8 * i + r] % 16 != 0) {
        throw std::logic_error("a row of a matrix that is not aligned");
      }
      std::uint16_t x;
      std::memcpy(&x, reinterpret_cast<const std::byte*>(rows[8 * i + r]) + 2 * column, 2);
      return x;
    };
    out[i] = transposed ? at(2 * t, g) | at(2 * t + 1, g) << 16 : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
  }
}

/// Where number (row, column) of a described matrix is, by the PTX ISA: rows of 128 bytes, bits 7 to 9 of an address
/// into its bits 4 to 6. Addresses are those within dynamic_shared.
inline std::uint32_t described(std::uint64_t matrix, unsigned row, unsigned column) {
  if (matrix >> 62 != 1) {
    throw std::logic_error("a swizzle that is not emulated");
  }
  const auto start = static_cast<std::uint32_t>(matrix & 0x3fffU) << 4;
  const auto eights = static_cast<std::uint32_t>(matrix >> 32 & 0x3fffU) << 4;
  std::uint32_t at = start + row / 8 * eights + row % 8 * 128 + column * 2;
  at ^= (at >> 7 & 7U) << 4;
  std::uint16_t x;
  std::memcpy(&x, dynamic_shared() + at, 2);
  return x;
}
/// wgmma.m64n64k16, of which a warp computes its own 16 rows. Both operands described, b transposed.
inline void multiply_by_warpgroup(bool bf16, float (*c)[4], std::uint64_t a, std::uint64_t b, bool add) {
  __syncwarp();
  const unsigned thread = Block::current()->thread(), first = thread / 32 % 4 * 16, g = thread % 32 / 4, t = thread % 4;
  for (unsigned n = 0; n < 8; ++n) {
    for (unsigned i = 0; i < 4; ++i) {
      float sum = add ? c[n][i] : 0.0F;
      for (unsigned k = 0; k < 16; ++k) {
        sum = std::fma(from_16_bits(bf16, described(a, first + g + 8 * (i / 2), k)),
                       from_16_bits(bf16, described(b, 8 * n + 2 * t + i % 2, k)), sum);
      }
      c[n][i] = sum;
    }
  }
}
/// The same with a in registers, and rows of b described.
inline void multiply_by_warpgroup(bool bf16, float (*c)[4], const std::uint32_t (&a)[4], std::uint64_t b) {
  struct Operand {
    std::uint32_t a[4];
  };
  constexpr int multiplying_by_warpgroup = 101;
  const auto all = Block::current()->exchange(Operand{{a[0], a[1], a[2], a[3]}}, multiplying_by_warpgroup);
  const unsigned g = Block::current()->thread() % 32 / 4, t = Block::current()->thread() % 4;
  for (unsigned n = 0; n < 8; ++n) {
    for (unsigned i = 0; i < 4; ++i) {
      for (unsigned k = 0; k < 16; ++k) {
        const std::uint32_t pair = all[4 * g + k % 8 / 2].a[i / 2 + 2 * (k / 8)];
        c[n][i] = std::fma(from_16_bits(bf16, k % 2 == 0 ? pair & 0xffffU : pair >> 16),
                           from_16_bits(bf16, described(b, k, 8 * n + 2 * t + i % 2)), c[n][i]);
      }
    }
  }
}

}  // namespace kvc_emulation
