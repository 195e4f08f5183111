// BitMasks: which keys the rows of a batch see, one bit each, for kernels of others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace interop {

/// The masks of a batch, packed as FlashInfer takes custom masks: of sequence i, with `rows` query rows over `keys`
/// keys, bit (row * keys + key) % 8 of byte indptr[i] + (row * keys + key) / 8, counted from the least significant one,
/// says whether the row sees the key. Each sequence begins with a new byte; bits behind its last are 0.
struct BitMasks {
  std::vector<std::uint8_t> bits;       ///< [indptr.back()]
  std::vector<std::int32_t> indptr{0};  ///< [sequences + 1]; bytes before sequence i
  std::vector<std::int32_t> rows;       ///< [sequences]
  std::vector<std::int32_t> keys;       ///< [sequences]

  /// Whether a row of sequence i sees a key; all are in range.
  [[nodiscard]] bool sees(std::size_t i, Pos row, Pos key) const {
    const std::size_t bit =
        static_cast<std::size_t>(row) * static_cast<std::size_t>(keys[i]) + static_cast<std::size_t>(key);
    return (bits[static_cast<std::size_t>(indptr[i]) + bit / 8] >> bit % 8 & 1) != 0;
  }

  /// Adds a sequence of `count` rows over `length` keys, of which row r sees those with sees(r, key). O(rows x keys).
  /// Throws std::invalid_argument for negative counts, or if the masks exceed 2^31 - 1 bytes, std::bad_alloc, and what
  /// `sees` throws; nothing has changed then.
  template <class F>
  void add(Pos count, Pos length, F sees) {
    const Index bytes = bytes_of(count, length);
    kvc::detail::ScopeGuard undo([this, sequences = rows.size()]() noexcept {
      bits.resize(static_cast<std::size_t>(indptr[sequences]));
      indptr.resize(sequences + 1);
      rows.resize(sequences);
      keys.resize(sequences);
    });
    bits.resize(bits.size() + static_cast<std::size_t>(bytes));
    std::uint8_t* const first = bits.data() + indptr.back();
    Index bit = 0;
    for (Pos row = 0; row < count; ++row) {
      for (Pos key = 0; key < length; ++key, ++bit) {
        first[bit / 8] = static_cast<std::uint8_t>(first[bit / 8] | (sees(row, key) ? 1U : 0U) << bit % 8);
      }
    }
    indptr.push_back(static_cast<std::int32_t>(indptr.back() + bytes));
    rows.push_back(count);
    keys.push_back(length);
    undo.dismiss();
  }
  /// Adds a sequence whose rows are its last `count` positions: each sees itself and all positions before it.
  /// Throws std::invalid_argument as add, and if it has fewer than `count` positions.
  void add_causal(Pos count, Pos length) {
    require(count <= length, "rows", count, "at most the number of keys");
    add(count, length, [&](Pos row, Pos key) { return key <= length - count + row; });
  }
  /// Adds a sequence whose rows are a tree of drafts behind `prefix` positions: row i is position prefix + i, and sees
  /// the prefix, itself, and its ancestors. parents[i] < i is the row of its parent; -1: the last position of the
  /// prefix. Throws std::invalid_argument as add, and for a parent that is not an earlier row. O(rows x (prefix +
  /// rows)).
  void add_tree(Pos prefix, std::span<const Pos> parents) {
    const auto count = checked_count(parents.size(), "parents.size()");
    require(prefix >= 0 && prefix <= max_pos - count, "prefix", prefix, "between 0 and 2^31 - 1 less the drafts");
    (void)bytes_of(count, prefix + count);  // before a table of as many bits is made
    std::vector<bool> is_ancestor(static_cast<std::size_t>(count) * static_cast<std::size_t>(count));
    for (Pos row = 0; row < count; ++row) {
      const auto at = static_cast<std::size_t>(row) * static_cast<std::size_t>(count);
      const Pos parent = parents[static_cast<std::size_t>(row)];
      require(parent >= -1 && parent < row, "parent", parent, "an earlier row, or -1");
      for (Pos other = 0; other <= parent; ++other) {
        is_ancestor[at + static_cast<std::size_t>(other)] =
            is_ancestor[static_cast<std::size_t>(parent) * static_cast<std::size_t>(count) +
                        static_cast<std::size_t>(other)];
      }
      is_ancestor[at + static_cast<std::size_t>(row)] = true;
    }
    add(count, prefix + count, [&](Pos row, Pos key) {
      return key < prefix || is_ancestor[static_cast<std::size_t>(row) * static_cast<std::size_t>(count) +
                                         static_cast<std::size_t>(key - prefix)];
    });
  }

 private:
  /// Bytes of one more mask. Throws std::invalid_argument unless there is room for it.
  [[nodiscard]] Index bytes_of(Pos count, Pos length) const {
    require(count >= 0, "rows", count, "at least 0");
    require(length >= 0, "keys", length, "at least 0");
    const Index bytes = ceil_div(Index{count} * length, Index{8});
    require(bytes <= max_pos - Index{indptr.back()}, "bytes of the masks", indptr.back() + bytes, "at most 2^31 - 1");
    return bytes;
  }
};

}  // namespace interop
}  // namespace v0
}  // namespace kvc
