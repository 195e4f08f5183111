// The contract of Space as a suite: testing::space_conformance(my_space).
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/memory/space.hpp"
#include "kvc/testing/contract.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

/// Checks the contract of Space: alignment, allocations apart from one another, copies. `name` is what errors call the
/// space. Memory that the CPU cannot read is checked by its addresses only. Needs about 10 MB of it. Throws
/// ContractError for the first law that does not hold.
template <Space S>
void space_conformance(S& space, std::string_view name = "the space") {
  struct Allocation {
    std::byte* data;
    std::size_t bytes;
  };
  struct Allocations {  // gives back what is allocated, also when a law does not hold
    S& space;
    std::vector<Allocation> all;
    ~Allocations() {
      for (const Allocation& each : all) {
        space.deallocate(each.data, each.bytes);
      }
    }
  } allocations{space, {}};
  std::vector<Allocation>& live = allocations.all;
  const auto address = [](const std::byte* p) { return reinterpret_cast<std::uintptr_t>(p); };
  const auto pattern = [](std::size_t allocation, std::size_t i) {
    return static_cast<std::byte>(allocation * 31 + i);
  };

  const auto allocate = [&](std::size_t bytes) {
    live.reserve(live.size() + 1);
    const Allocation made{space.allocate(bytes), bytes};
    live.push_back(made);
    const std::string size = std::to_string(bytes);
    expect(bytes == 0 || made.data != nullptr, name, {"allocate(", size, ") returns a null pointer"});
    expect(address(made.data) % 64 == 0, name, {"allocate(", size, ") returns memory that is not 64-byte aligned"});
    for (std::size_t i = 0; i + 1 < live.size(); ++i) {
      const Allocation& other = live[i];
      expect(
          address(made.data) >= address(other.data) + other.bytes || address(other.data) >= address(made.data) + bytes,
          name, {"allocate(", size, ") returns memory that overlaps an earlier allocation"});
    }
    return made.data;
  };
  // Room for nothing, for less and more than a cache line, and for more than a large page. Then again, after some are
  // gone.
  for (const std::size_t bytes :
       std::initializer_list<std::size_t>{0, 1, 63, 64, 65, 4096, 100000, (1 << 21) + 1, 64, 64}) {
    allocate(bytes);
  }
  for (const int round : {0, 1}) {
    if constexpr (S::host_accessible) {
      for (std::size_t a = 0; a < live.size(); ++a) {
        for (std::size_t i = 0; i < live[a].bytes; ++i) {
          live[a].data[i] = pattern(a, i);
        }
      }
      for (std::size_t a = 0; a < live.size(); ++a) {
        for (std::size_t i = 0; i < live[a].bytes; ++i) {
          expect(live[a].data[i] == pattern(a, i), name, {"memory does not keep the bytes that were written to it"});
        }
      }
    }
    if (round == 0) {
      for (const std::size_t gone : std::initializer_list<std::size_t>{1, 4, 7}) {
        space.deallocate(live[gone].data, live[gone].bytes);
      }
      for (const std::size_t gone : std::initializer_list<std::size_t>{7, 4, 1}) {
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(gone));
      }
      allocate(4096);
      allocate(100000);
    }
  }

  constexpr std::size_t room = 20000;
  std::byte* const from = allocate(room);
  std::byte* const to = allocate(room);
  const auto check_copy = [&](std::string_view what, auto copy, auto origin) {
    if constexpr (S::host_accessible) {
      for (std::size_t i = 0; i < room; ++i) {
        from[i] = pattern(1, i * 7 + i / 251);
        to[i] = std::byte{0xee};
      }
    }
    copy();
    if constexpr (S::host_accessible) {
      for (std::size_t i = 0; i < room; ++i) {
        const std::ptrdiff_t source = origin(static_cast<std::ptrdiff_t>(i));  // below 0: not copied
        const std::byte expected =
            source < 0 ? std::byte{0xee} : pattern(1, static_cast<std::size_t>(source * 7 + source / 251));
        expect(to[i] == expected, name, {what, source < 0 ? " writes a byte beyond its range" : " gives wrong bytes"});
      }
    }
  };
  struct Range {
    std::ptrdiff_t at, bytes;
  };
  for (const Range range : {Range{0, 1}, {3, 5}, {64, 4096}, {17, 19000}, {9, 0}}) {
    const std::ptrdiff_t at = range.at, bytes = range.bytes;
    check_copy(
        "copy(to, from, bytes)", [&] { space.copy(to + at, from + at + 1, static_cast<std::size_t>(bytes)); },
        [&](std::ptrdiff_t i) { return i >= at && i < at + bytes ? i + 1 : -1; });
  }
  const GridCopy grid{to + 8, from + 16, 24, {2, 3, 4}, {4000, 1000, 40}};
  check_copy(
      "a copy of a grid", [&] { kvc::copy_ranges(space, grid); },
      [&](std::ptrdiff_t i) -> std::ptrdiff_t {
        const std::ptrdiff_t x = i - 8, within = x % 1000 % 40;
        const bool copied = x >= 0 && x / 4000 < 2 && x % 4000 / 1000 < 3 && x % 1000 / 40 < 4 && within < 24;
        return copied ? i + 8 : -1;
      });

  // Memory stays where it is when the space moves.
  S moved = std::move(space);
  bool kept = true;
  if constexpr (S::host_accessible) {
    from[0] = std::byte{1};
    moved.copy(to, from, 1);
    kept = to[0] == std::byte{1};
  }
  space = std::move(moved);
  expect(kept, name, {"memory is lost when the space moves"});
}

}  // namespace testing
}  // namespace v0
}  // namespace kvc
