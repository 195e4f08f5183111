// The contract of Space: ours keeps it, a minimal model does, and the suite rejects wrong ones.
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/memory/borrowed_space.hpp"
#include "kvc/memory/space.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/testing/space_conformance.hpp"

namespace {
using namespace kvc;
using kvc_test::contains;
using testing::space_conformance;

/// A minimal space.
struct Plain {
  static constexpr bool host_accessible = true;
  std::byte* allocate(std::size_t bytes) {
    return static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64}));
  }
  void deallocate(std::byte* p, std::size_t) { ::operator delete(p, std::align_val_t{64}); }
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
};
static_assert(Space<Plain>);

// Spaces that compile and are wrong.

struct Misaligned : Plain {
  std::byte* allocate(std::size_t bytes) { return Plain::allocate(bytes + 64) + 16; }
  void deallocate(std::byte* p, std::size_t bytes) { Plain::deallocate(p - 16, bytes); }
};
/// Hands out one arena, and moves on by half of what was asked for.
struct Overlapping : Plain {
  std::shared_ptr<std::vector<std::byte>> arena = std::make_shared<std::vector<std::byte>>(16 << 20);
  std::size_t used = 0;
  std::byte* allocate(std::size_t bytes) {
    void* p = arena->data() + used;
    std::size_t room = arena->size() - used;
    std::align(64, bytes, p, room);
    used = arena->size() - room + bytes / 2;
    return static_cast<std::byte*>(p);
  }
  void deallocate(std::byte*, std::size_t) {}
};
/// Copies whole words only.
struct Rounding : Plain {
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes / 8 * 8); }
};
/// Copies whole words, and more than was asked for.
struct Overrunning : Plain {
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, (bytes + 7) / 8 * 8); }
};
/// Takes the strides of a grid in the wrong order.
struct Transposing : Plain {
  using Plain::copy;
  void copy(GridCopy grid) {
    std::swap(grid.strides[0], grid.strides[1]);
    for (Index i = 0; i < grid.extents[0]; ++i) {
      for (Index j = 0; j < grid.extents[1]; ++j) {
        for (Index k = 0; k < grid.extents[2]; ++k) {
          const Index at = i * grid.strides[0] + j * grid.strides[1] + k * grid.strides[2];
          std::memcpy(grid.to + at, grid.from + at, static_cast<std::size_t>(grid.bytes));
        }
      }
    }
  }
};
struct WithoutCopy {
  static constexpr bool host_accessible = true;
  std::byte* allocate(std::size_t bytes);
  void deallocate(std::byte* p, std::size_t);
};
static_assert(!Space<WithoutCopy>);

template <class S>
void check_space() {
  S space;
  space_conformance(space);
}
}  // namespace

TEMPLATE_TEST_CASE("A space keeps the contract", "[space][contract]", HostSpace, Plain) { check_space<TestType>(); }

TEST_CASE("A space that breaks the contract is found", "[space][contract]") {
  REQUIRE_THROWS_WITH(check_space<Misaligned>(),
                      contains("the space breaks its contract") && contains("not 64-byte aligned"));
  REQUIRE_THROWS_WITH(check_space<Overlapping>(), contains("overlaps an earlier allocation"));
  REQUIRE_THROWS_WITH(check_space<Rounding>(), contains("copy(to, from, bytes) gives wrong bytes"));
  REQUIRE_THROWS_WITH(check_space<Overrunning>(), contains("copy(to, from, bytes) writes a byte beyond its range"));
  REQUIRE_THROWS_WITH(check_space<Transposing>(), contains("a copy of a grid"));
}

TEST_CASE("A cache lies in a space of the caller's", "[space][cache]") {
  KvCache<float, Paged, HeadMajor, Plain> cache({.key_dim = 3}, {.blocks = 4, .block_tokens = 4}, Plain{});
  const SeqId seq = cache.open();
  auto step = cache.extend(seq, 3);
  const std::vector<float> rows{1, 2, 3, 4, 5, 6, 7, 8, 9};
  cache.write(0, step, {rows.data(), 3, 3}, {rows.data(), 3, 3});
  cache.commit(std::move(step));
  const SeqId child = cache.fork(seq, 2);
  cache.commit(cache.extend(child, 1));  // copies the shared tail
  std::vector<float> k(6), v(6);
  cache.gather(0, child, {0, 2}, {k.data(), 2, 3}, {v.data(), 2, 3});
  REQUIRE(std::equal(k.begin(), k.end(), rows.begin()));
  REQUIRE(k == v);
}

namespace {
/// Memory of an engine, aligned to cache lines.
struct Memory {
  explicit Memory(std::size_t bytes) : bytes_(bytes), data(HostSpace{}.allocate(bytes)) {}
  ~Memory() { HostSpace{}.deallocate(data, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::size_t bytes_;
  std::byte* data;
};
}  // namespace

TEST_CASE("A borrowed space keeps the contract", "[space][contract]") {
  Memory memory(16 << 20);
  BorrowedSpace space(memory.data, 16 << 20);
  space_conformance(space);
}

TEST_CASE("A borrowed space hands out memory from the front, in cache lines", "[space]") {
  Memory memory(1000);
  BorrowedSpace space(std::span(memory.data, 1000));
  REQUIRE(space.size() == 1000);
  std::byte* const first = space.allocate(1);
  REQUIRE(first == memory.data);
  std::byte* const second = space.allocate(64);
  REQUIRE(second == memory.data + 64);
  REQUIRE(space.available() == 1000 - 128);
  space.deallocate(first, 1);  // not the latest
  REQUIRE(space.available() == 1000 - 128);
  space.deallocate(second, 64);
  REQUIRE(space.available() == 1000 - 64);
  std::byte* const rest = space.allocate(1000 - 64);  // ends within a line, as the memory does
  REQUIRE(rest == memory.data + 64);
  REQUIRE(space.available() == 0);
  REQUIRE_THROWS_AS(space.allocate(1), std::bad_alloc);
  space.deallocate(rest, 1000 - 64);
  std::byte* const nothing = space.allocate(0);
  REQUIRE(space.allocate(1000 - 64) == rest);
  space.deallocate(nothing, 0);  // it has the address of `rest`, which stays allocated
  REQUIRE(space.available() == 0);

  BorrowedSpace moved = std::move(space);
  REQUIRE(moved.size() == 1000);
  moved.deallocate(rest, 1000 - 64);
  REQUIRE(moved.available() == 1000 - 64);
  static_assert(!std::is_copy_constructible_v<BorrowedSpace>, "two caches must not get the same memory");
}

TEST_CASE("A borrowed space refuses memory that is not aligned, and says what is missing", "[space]") {
  Memory memory(4096);
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data);
  REQUIRE_THROWS_WITH(BorrowedSpace(memory.data + 8, 64),
                      contains("memory is " + std::to_string(address + 8) + ", must be aligned to 64 bytes"));
  REQUIRE_THROWS_WITH(BorrowedSpace(nullptr, 64), contains("memory is null"));
  REQUIRE_NOTHROW(BorrowedSpace(nullptr, 0));

  using Cache = KvCache<float, Paged, HeadMajor, BorrowedSpace>;
  const Shape shape{.layers = 2, .key_dim = 4};
  const Paged::Config config{.blocks = 4, .block_tokens = 4};
  REQUIRE(Cache::pool_bytes(shape, config) == 4 * 4 * 2 * 8 * 4);  // slots x layers x (key and value) x float
  REQUIRE_THROWS_WITH(Cache(shape, config, BorrowedSpace(memory.data, 1000)),
                      "kvc: 1024 bytes are wanted of borrowed memory, of whose 1000 bytes 1000 are left");
  {
    Cache cache(shape, config, BorrowedSpace(memory.data, 1024));
    REQUIRE(cache.pool_bytes() == 1024);
    REQUIRE(reinterpret_cast<std::byte*>(cache.data()) == memory.data);
    const SeqId seq = cache.open();
    auto step = cache.extend(seq, 1);
    const std::array<float, 4> row{1, 2, 3, 4};
    for (Index layer = 0; layer < 2; ++layer) {
      cache.write(layer, step, {row.data(), 1, 4}, {row.data(), 1, 4});
    }
    cache.commit(std::move(step));
  }
  float first = 0;  // the memory is still there, with what the cache left in it
  std::memcpy(&first, memory.data, sizeof first);
  REQUIRE(first == 1);
}
