// Bodies are copied completely, however they are cut, and whether or not they are streamed past the caches.
#include "kvc/transport/copy.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "kvc/memory/large_vector.hpp"
#include "random_source.hpp"

namespace {
using namespace kvc_test;

/// Cuts `bytes` at random places, and mixes the spans: some are empty, some of a few bytes, some of many cache lines.
template <class Byte>
std::vector<std::span<Byte>> cut(Random& random, std::span<Byte> bytes) {
  std::vector<std::span<Byte>> spans;
  while (!bytes.empty()) {
    const std::size_t most = random.one_in(2) ? 100 : 100'000;
    std::size_t count = random.between<std::size_t>(0, most);
    if (const auto beyond = (reinterpret_cast<std::uintptr_t>(bytes.data()) + count) % 64; beyond <= count) {
      count -= random.one_in(4) ? 0 : beyond;  // most begin at a cache line
    }
    spans.push_back(bytes.first(std::min(count, bytes.size())));
    bytes = bytes.subspan(spans.back().size());
  }
  for (std::size_t i = 1; i < spans.size(); ++i) {
    std::swap(spans[i], spans[random.between<std::size_t>(0, i)]);
  }
  return spans;
}
template <class Byte>
std::vector<std::byte> joined(const std::vector<std::span<Byte>>& spans) {
  std::vector<std::byte> all;
  for (const auto& span : spans) {
    all.insert(all.end(), span.begin(), span.end());
  }
  return all;
}
}  // namespace

TEST_CASE("A body is copied completely, however both sides cut it", "[transport]") {
  Random random(seed_or(30));
  const auto limit = static_cast<std::size_t>(kvc::transport::detail::streamed_body_bytes);
  for (const std::size_t bytes :
       {std::size_t{0}, std::size_t{1}, std::size_t{5000}, limit - 1, limit, 2 * limit + 77}) {
    std::vector<std::byte> source(bytes + 64);
    for (std::size_t i = 0; i < source.size(); ++i) {
      source[i] = static_cast<std::byte>(i * 2654435761U >> 13U);
    }
    constexpr std::size_t rim = 64;  // bytes that must not change
    kvc::detail::LargeVector<std::byte> target(bytes + 2 * rim, std::byte{0xee});
    const std::size_t shift = random.between<std::size_t>(0, 64);
    const auto from = cut(random, std::span<const std::byte>(source).subspan(shift, bytes));
    const auto to = cut(random, std::span(target).subspan(rim, bytes));
    kvc::transport::detail::copy_body(from, to);
    REQUIRE(joined(to) == joined(from));
    for (std::size_t i = 0; i < rim; ++i) {
      REQUIRE(target[i] == std::byte{0xee});
      REQUIRE(target[rim + bytes + i] == std::byte{0xee});
    }
  }
}
