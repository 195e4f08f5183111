// The contract of ElementType as a suite: testing::element_conformance<MyType>().
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/testing/contract.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

namespace detail {

/// Rows that element types find hard: of all magnitudes, constant, with an outlier, of one sign, of zeros.
inline std::vector<std::vector<float>> rows_of(Index dim) {
  std::uint32_t state = 1;
  const auto random = [&] {  // in [-1, 1)
    state = state * 1664525U + 1013904223U;
    return static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31F;
  };
  std::vector<std::vector<float>> rows;
  const auto add = [&](auto element) {
    std::vector<float>& row = rows.emplace_back();
    for (Index d = 0; d < dim; ++d) {
      row.push_back(element(d));
    }
  };
  for (const float scale : {0x1p-140F, 1e-30F, 1e-3F, 1.0F, 30.0F, 1e4F, 1e30F, 1e38F}) {
    add([&](Index) { return scale * random(); });
    add([&](Index) { return scale * (2 + random()); });
  }
  add([&](Index) { return 0.0F; });
  add([&](Index) { return -3.25F; });
  add([&](Index d) { return d == dim / 2 ? 100.0F : random(); });
  add([&](Index d) { return d % 2 == 0 ? 1.0F : -1.0F; });
  return rows;
}

}  // namespace detail

/// Checks the laws of ElementType: `encode` and `decode` write what they must and nothing else, equal rows give equal
/// bytes, the first elements of a row are the same numbers alone, and the error is within Element<T>::max_error, or,
/// where the type states none, within `max_error(from, dim)`. Throws ContractError for the first law that does not
/// hold. Takes milliseconds.
template <ElementType T, class MaxError>
void element_conformance(MaxError max_error) {
  using E = Element<T>;
  using Storage = StorageOf<T>;
  const std::string subject = kvc::detail::concat({"element type ", E::name});
  constexpr std::size_t margin = 64;  // bytes around a row, and floats
  constexpr float untouched = 12345.0F;
  for (const Index dim : {1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 33, 64, 80, 100, 128, 129}) {
    const std::string at_dim = kvc::detail::concat({" at dim ", std::to_string(dim)});
    const Index units = E::row_size(dim);
    expect(units >= 0, subject, {"row_size is ", std::to_string(units), at_dim});
    expect(units == E::row_size(dim), subject, {"row_size gives two values", at_dim});
    const std::size_t bytes = static_cast<std::size_t>(units) * sizeof(Storage);
    for (const std::vector<float>& row : detail::rows_of(dim)) {
      // Two copies of the row between margins, in memory that had different bytes.
      std::vector<std::byte> memory[2];
      for (const int i : {0, 1}) {
        const auto fill = i == 0 ? std::byte{0x55} : std::byte{0xaa};
        std::vector<Storage> storage(static_cast<std::size_t>(units) + 2 * margin);
        std::memset(static_cast<void*>(storage.data()), static_cast<int>(fill), storage.size() * sizeof(Storage));
        E::encode(row.data(), dim, storage.data() + margin);
        const auto* const all = reinterpret_cast<const std::byte*>(storage.data());
        for (std::size_t b = 0; b < storage.size() * sizeof(Storage); ++b) {
          const bool inside = b >= margin * sizeof(Storage) && b < margin * sizeof(Storage) + bytes;
          expect(inside || all[b] == fill, subject, {"encode writes beyond the row_size units of the row", at_dim});
        }
        memory[i].assign(all + margin * sizeof(Storage), all + margin * sizeof(Storage) + bytes);

        std::vector<float> back(static_cast<std::size_t>(dim) + 2 * margin, untouched);
        E::decode(storage.data() + margin, dim, back.data() + margin);
        for (std::size_t f = 0; f < margin; ++f) {
          expect(back[f] == untouched && back[back.size() - 1 - f] == untouched, subject,
                 {"decode writes beyond the dim elements of the row", at_dim});
        }
        for (const Index count : {Index{1}, ceil_div(dim, Index{2}), dim}) {
          const auto prefix = static_cast<std::size_t>(count);
          std::vector<float> first(prefix + margin, untouched);
          decode_prefix<T>(storage.data() + margin, dim, count, first.data());
          expect(std::memcmp(first.data(), back.data() + margin, prefix * sizeof(float)) == 0, subject,
                 {"the first ", std::to_string(count), " elements are read as other numbers alone", at_dim});
          expect(std::all_of(first.begin() + static_cast<std::ptrdiff_t>(prefix), first.end(),
                             [](float x) { return x == untouched; }),
                 subject, {"decode_prefix writes beyond the elements that are asked for", at_dim});
        }
        const float bound = max_error(row.data(), dim);
        expect(bound >= 0, subject, {"max_error is ", std::to_string(bound), at_dim});
        for (std::size_t d = 0; d < row.size() && std::isfinite(bound); ++d) {
          const float read = back[margin + d];
          expect(std::abs(read - row[d]) <= bound, subject,
                 {"decode gives ", std::to_string(read), " for ", std::to_string(row[d]), ", where max_error is ",
                  std::to_string(bound), at_dim});
        }
      }
      expect(memory[0] == memory[1], subject, {"encode leaves a part of the row as it was", at_dim});
    }
  }
}

/// With the error that Element<T>::max_error states.
template <ElementType T>
void element_conformance() {
  static_assert(
      requires(const float* row, Index dim) {
        { Element<T>::max_error(row, dim) } -> std::same_as<float>;
      }, "kvc: Element<T> has no max_error(from, dim): add it, or pass a function to element_conformance");
  element_conformance<T>([](const float* row, Index dim) { return Element<T>::max_error(row, dim); });
}

}  // namespace testing
}  // namespace v0
}  // namespace kvc
