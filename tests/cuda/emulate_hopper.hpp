// Emulates what kernels for Hopper need beyond emulate_tiles.hpp: barriers in shared memory that count arrivals and
// bytes (mbarrier), bulk copies of boxes (TMA), named barriers, and products of a warpgroup (wgmma). Include this
// before any .cuh.
//
// Written from the PTX ISA: "mbarrier", "cp.async.bulk.tensor", "Asynchronous Warpgroup Level Matrix Instructions".
// Copies and products are asynchronous, so tests run with both extremes: at once, or as late as possible. Late copies
// complete when no thread can continue, newest or oldest first; late products are computed when they are waited for. A
// thread that arrives at a barrier lets all others run before it continues.
//
// It reports barriers with more arrivals, or other numbers of bytes, than expected; products that read what threads
// wrote without a fence of the async proxy; boxes and matrices that are not aligned; and, at the end of a block, copies
// and products that nobody waited for.
#pragma once

#include <map>

#include "emulate_tiles.hpp"

namespace kvc_emulation {

/// Whether products are computed when they are waited for, rather than at once.
inline bool products_are_late = true;
/// Whether late copies complete newest first.
inline bool last_copy_first = true;

// --- barriers

struct BarrierState {
  unsigned arrivals = 0;  // of each phase
  unsigned missing = 0;   // of this phase
  long long bytes = 0;    // announced, not yet there
  unsigned phase = 0;

  void progress() {
    if (missing == 0 && bytes == 0) {
      ++phase;
      missing = arrivals;
    }
  }
};
inline std::map<const void*, BarrierState>& barrier_states() {
  static std::map<const void*, BarrierState> all;
  return all;
}
inline BarrierState& state_of(const void* barrier) {
  const auto at = barrier_states().find(barrier);
  if (at == barrier_states().end()) {
    throw std::logic_error("a barrier in shared memory that was not made");
  }
  return at->second;
}
inline void arrive(const void* barrier, unsigned bytes) {
  BarrierState& state = state_of(barrier);
  if (state.missing == 0) {
    throw std::logic_error("a phase of a barrier with more arrivals than it was made for");
  }
  state.bytes += bytes;
  --state.missing;
  state.progress();
}
inline void arrive_and_give_way(const void* barrier) {
  arrive(barrier, 0);
  Block::current()->give_way();
}
inline void complete(const void* barrier, unsigned bytes) {
  BarrierState& state = state_of(barrier);
  state.bytes -= bytes;
  if (state.bytes < 0) {
    throw std::logic_error("a bulk copy of more bytes than were announced");
  }
  state.progress();
}
inline void wait(const void* barrier, unsigned parity) {
  Block::current()->wait_until([=] { return state_of(barrier).phase % 2 != parity; });
}

// --- what is in flight in a block

inline std::vector<std::function<void()>>& deliveries() {
  static std::vector<std::function<void()>> all;
  return all;
}
inline std::vector<std::vector<std::function<void()>>>& products_of_thread(unsigned thread) {
  static std::vector<std::vector<std::function<void()>>> all[1024];
  if (all[thread].empty()) {
    all[thread].emplace_back();  // the group that is open
  }
  return all[thread];
}
struct Meeting {
  int arrived = 0;
  unsigned round = 0;
  bool any = false, result = false;
};
inline std::map<int, Meeting>& meetings() {
  static std::map<int, Meeting> all;
  return all;
}
inline bool deliver() {
  if (deliveries().empty()) {
    return false;
  }
  const auto next = last_copy_first ? deliveries().end() - 1 : deliveries().begin();
  const auto run = std::move(*next);
  deliveries().erase(next);
  run();
  return true;
}
inline void require_quiet() {
  bool quiet = deliveries().empty();
  for (const auto& [barrier, state] : barrier_states()) {
    quiet = quiet && state.bytes == 0 && (state.missing == 0 || state.missing == state.arrivals);
  }
  for (unsigned thread = 0; thread < Block::current()->threads(); ++thread) {
    quiet = quiet && products_of_thread(thread).size() == 1 && products_of_thread(thread).front().empty();
  }
  for (const auto& [id, meeting] : meetings()) {
    quiet = quiet && meeting.arrived == 0;
  }
  barrier_states().clear();
  if (!quiet) {
    throw std::logic_error("a block has ended with copies, products, phases or arrivals in flight");
  }
}
inline void init_barrier(const void* barrier, unsigned arrivals) {
  Block::when_stalled = &deliver;
  Block::at_end = &require_quiet;
  barrier_states()[barrier] = {arrivals, arrivals, 0, 0};
}

// --- copies

/// The arguments of cuTensorMapEncodeTiled: four dimensions, the innermost first, of elements of 16 bits, with the
/// swizzle of 128 bytes.
struct TensorMap {
  std::byte* base = nullptr;
  std::array<std::uint64_t, 4> extents{};
  std::array<std::uint64_t, 3> strides{};  // in bytes, of dimensions 1 to 3
  std::array<std::uint32_t, 4> box{};
};
inline void tma_copy_box(std::uintptr_t to, const TensorMap& map, const std::int32_t (&at)[4], const void* barrier) {
  const auto offset = to - reinterpret_cast<std::uintptr_t>(dynamic_shared());
  const std::size_t rows = std::size_t{map.box[1]} * map.box[2] * map.box[3];
  if (offset % 1024 != 0 || map.box[0] != 64 || offset + rows * 128 > 227 << 10) {
    throw std::logic_error("a box that does not fit where it is copied to");
  }
  for (std::size_t d = 0; d < 3; ++d) {
    if (map.strides[d] % 16 != 0 || map.strides[d] >> 40 != 0) {
      throw std::logic_error("a stride that a tensor cannot have");
    }
  }
  const std::array<std::int64_t, 4> from{at[0], at[1], at[2], at[3]};
  const auto run = [=] {
    for (std::size_t row = 0; row < rows; ++row) {
      const std::array<std::size_t, 4> in_box{0, row % map.box[1], row / map.box[1] % map.box[2],
                                              row / map.box[1] / map.box[2]};
      const std::byte* source = map.base;
      bool there = true;
      for (std::size_t d = 1; d < 4; ++d) {
        const auto index = static_cast<std::uint64_t>(from[d]) + in_box[d];
        there = there && index < map.extents[d];
        source += there ? index * map.strides[d - 1] : 0;
      }
      for (std::size_t i = 0; i < 64; ++i) {
        const auto index = static_cast<std::uint64_t>(from[0]) + i;
        std::size_t place = offset + row * 128 + 2 * i;
        place ^= (place >> 7 & 7U) << 4;
        if (there && index < map.extents[0]) {
          std::memcpy(dynamic_shared() + place, source + 2 * index, 2);
        } else {
          std::memset(dynamic_shared() + place, 0, 2);
        }
        unpublished()[place / 16] = false;
      }
    }
    complete(barrier, static_cast<unsigned>(rows * 128));
  };
  if (copies_are_late) {
    deliveries().push_back(run);
  } else {
    run();
  }
}
inline void arrive_after_copies(const void* barrier) {
  auto groups = std::move(copies_of_thread());
  copies_of_thread().clear();
  const auto run = [=, groups = std::move(groups)] {
    for (const auto& group : groups) {
      for (const Copy& copy : group) {
        copy.run();
      }
    }
    arrive(barrier, 0);
  };
  if (copies_are_late) {
    deliveries().push_back(run);
  } else {
    run();
  }
}
inline void fence_async_proxy() { unpublished().assign(unpublished().size(), false); }

// --- named barriers

inline void arrive_named(int id, int threads, bool condition = false) {
  Meeting& meeting = meetings()[id];
  meeting.any = meeting.any || condition;
  if (id < 1 || id > 15 || threads % 32 != 0 || ++meeting.arrived > threads) {
    throw std::logic_error("a barrier that there is not, or with more threads than it is for");
  }
  if (meeting.arrived == threads) {
    meeting = {0, meeting.round + 1, false, meeting.any};
  }
}
inline bool sync_named(int id, int threads, bool condition) {
  Meeting& meeting = meetings()[id];
  const unsigned round = meeting.round;
  arrive_named(id, threads, condition);
  Block::current()->wait_until([&meeting, round] { return meeting.round != round; });
  return meeting.result;  // the next round cannot end before all have left this one
}

// --- products

/// Where element (row, column) of a described matrix is, in dynamic_shared: rows of 64 elements, eight of them and the
/// next eight, and then the next 64 columns; bits 7 to 9 of an address go into its bits 4 to 6.
inline float described(bool bf16, std::uint64_t matrix, unsigned row, unsigned column) {
  const auto field = [matrix](int bit) { return static_cast<std::uint32_t>(matrix >> bit & 0x3fffU) << 4; };
  const std::uint32_t start = field(0), panels = field(16), eights = field(32);
  if (matrix >> 62 != 1 || (matrix >> 49 & 7U) != 0) {
    throw std::logic_error("a swizzle that is not emulated");
  }
  if (start % 1024 >= 128 || (column < 64 && start % 128 / 2 + column >= 64) || (column >= 64 && start % 128 != 0)) {
    throw std::logic_error("a matrix that begins where the pattern of its swizzle does not");
  }
  std::uint32_t at = start + row / 8 * eights + row % 8 * 128 + column / 64 * panels + column % 64 * 2;
  at ^= (at >> 7 & 7U) << 4;
  if (unpublished()[at / 16]) {
    throw std::logic_error("a product that reads what a thread wrote, and nobody published");
  }
  std::uint16_t x;
  std::memcpy(&x, dynamic_shared() + at, 2);
  return from_16_bits(bf16, x);
}
inline void wgmma_commit() { products_of_thread(Block::current()->thread()).emplace_back(); }
inline void wgmma_wait(std::size_t in_progress) {
  auto& groups = products_of_thread(Block::current()->thread());
  while (groups.size() > in_progress + 1) {
    const auto group = std::move(groups.front());
    groups.erase(groups.begin());
    for (const auto& product : group) {
      product();
    }
  }
}
inline void start_wgmma(std::function<void()> product) {
  if (products_are_late) {
    products_of_thread(Block::current()->thread()).back().push_back(std::move(product));
  } else {
    product();
  }
}
/// Rows g and g + 8 of a lane, a[k] of each, times a described matrix: b_at(k, column).
template <class At>
void multiply_rows(int columns, float (*c)[4], const std::array<std::array<float, 16>, 2>& a, bool add, At b_at) {
  const unsigned t = Block::current()->thread() % 4;
  for (unsigned n = 0; n < static_cast<unsigned>(columns) / 8; ++n) {
    for (unsigned e = 0; e < 2; ++e) {
      float sums[2] = {add ? c[n][e] : 0.0F, add ? c[n][2 + e] : 0.0F};
      for (unsigned k = 0; k < 16; ++k) {
        const float b = b_at(k, 8 * n + 2 * t + e);
        sums[0] = std::fma(a[0][k], b, sums[0]);
        sums[1] = std::fma(a[1][k], b, sums[1]);
      }
      c[n][e] = sums[0];
      c[n][2 + e] = sums[1];
    }
  }
}
/// wgmma.m64nNk16, of which a warp computes its own 16 rows. Both operands described, b transposed.
inline void wgmma(bool bf16, int columns, float (*c)[4], std::uint64_t a, std::uint64_t b, bool add) {
  start_wgmma([=] {
    __syncwarp();
    const unsigned thread = Block::current()->thread(), row = thread / 32 % 4 * 16 + thread % 32 / 4;
    std::array<std::array<float, 16>, 2> rows;
    for (unsigned k = 0; k < 16; ++k) {
      rows[0][k] = described(bf16, a, row, k);
      rows[1][k] = described(bf16, a, row + 8, k);
    }
    multiply_rows(columns, c, rows, add, [=](unsigned k, unsigned column) { return described(bf16, b, column, k); });
  });
}
/// The same with a in registers, and rows of b described.
inline void wgmma(bool bf16, int columns, float (*c)[4], const std::uint32_t (&a)[4], std::uint64_t b) {
  const std::uint32_t* const registers = a;  // as they are when the product is computed
  start_wgmma([=] {
    struct Operand {
      std::uint32_t a[4];
    };
    constexpr int multiplying_by_warpgroup = 101;
    const auto all = Block::current()->exchange(Operand{{registers[0], registers[1], registers[2], registers[3]}},
                                                multiplying_by_warpgroup);
    const unsigned g = Block::current()->thread() % 32 / 4;
    std::array<std::array<float, 16>, 2> rows;
    for (unsigned half = 0; half < 2; ++half) {
      for (unsigned k = 0; k < 16; ++k) {
        const std::uint32_t pair = all[4 * g + k % 8 / 2].a[half + 2 * (k / 8)];
        rows[half][k] = from_16_bits(bf16, k % 2 == 0 ? pair & 0xffffU : pair >> 16);
      }
    }
    multiply_rows(columns, c, rows, true, [=](unsigned k, unsigned column) { return described(bf16, b, k, column); });
  });
}

/// After a block that was reported: nothing is in flight any more.
inline void forget() {
  barrier_states().clear();
  deliveries().clear();
  meetings().clear();
  for (unsigned thread = 0; thread < 1024; ++thread) {
    products_of_thread(thread).clear();
  }
  fence_async_proxy();
}

}  // namespace kvc_emulation
