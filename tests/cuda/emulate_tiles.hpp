// Emulates what kernels with tiles in shared memory need beyond emulate.hpp: dynamic shared memory, asynchronous
// copies, and loads of matrices. Include this before any .cuh.
//
// An asynchronous copy may complete at any time between its start and the wait for it. Tests run with both extremes.
// With late copies, a read that comes too early finds old bytes; with early ones, a copy that starts too early
// overwrites bytes that are still needed.
#pragma once

#include "emulate.hpp"

namespace kvc_emulation {

/// Dynamic shared memory: the same 227 KiB (as on Hopper) for every block, initially NaN in every format.
inline std::byte* dynamic_shared() {
  struct alignas(1024) Memory {
    std::byte bytes[227 << 10];
    Memory() { std::memset(bytes, 0xff, sizeof bytes); }
  };
  static Memory memory;
  return memory.bytes;
}

/// Whether copies complete when they are waited for, rather than at once.
inline bool copies_are_late = true;

/// For each 16 bytes of dynamic_shared: whether a copy of threads has written them without a fence of the async proxy
/// since (emulate_hopper.hpp).
inline std::vector<bool>& unpublished() {
  static std::vector<bool> chunks((227 << 10) / 16, false);
  return chunks;
}

struct Copy {
  std::byte* to;
  const std::byte* from;
  bool there;
  void run() const {
    if (to >= dynamic_shared() && to < dynamic_shared() + (227 << 10)) {
      unpublished()[static_cast<std::size_t>(to - dynamic_shared()) / 16] = true;
    }
    if (there) {
      std::memcpy(to, from, 16);
    } else {
      std::memset(to, 0, 16);
    }
  }
};
/// The groups of copies of a thread that are in flight; the last group is still open.
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
inline void wait_copies(std::size_t in_progress) {
  auto& groups = copies_of_thread();
  while (groups.size() > in_progress + 1) {
    for (const Copy& copy : groups.front()) {
      copy.run();
    }
    groups.erase(groups.begin());
  }
}

/// ldmatrix.x4: lanes 8 i .. 8 i + 7 pass the addresses of the rows of matrix i.
inline void ldmatrix(std::uintptr_t row, std::uint32_t (&out)[4], bool transposed) {
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

}  // namespace kvc_emulation
