// BlockTable: the dense block table of a batch, kept from step to step instead of built anew.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace interop {

/// Entries first <= i < last of a row of a BlockTable.
struct EntryRange {
  Index first = 0;
  Index last = 0;
  /// Whether no entry lies in it.
  [[nodiscard]] bool empty() const noexcept { return last <= first; }
  friend bool operator==(const EntryRange&, const EntryRange&) = default;
};

/// A table  int32 [rows, max_blocks]  of the block ids of sequences, padded with -1, and  seq_lens int32 [rows],  as
/// FlashAttention and vLLM take them. It is allocated once and does not move, so that a captured graph can refer to it.
/// `update` changes one row and says which entries it wrote: only these need be copied to a device.
class BlockTable {
 public:
  static constexpr std::int32_t padding = -1;

  /// A table without sequences. Throws std::invalid_argument for negative sizes, std::bad_alloc.
  BlockTable(Index rows, Index max_blocks) : rows_(rows), max_blocks_(max_blocks) {
    constexpr Index most = Index{1} << 40;
    require(rows >= 0 && rows <= max_pos, "rows", rows, "between 0 and 2^31 - 1");
    require(max_blocks >= 0 && max_blocks <= most / std::max(rows, Index{1}), "max_blocks", max_blocks,
            "at least 0, with at most 2^40 entries in the table");
    entries_.assign(static_cast<std::size_t>(rows * max_blocks), padding);
    seq_lens_.assign(static_cast<std::size_t>(rows), 0);
    used_.assign(static_cast<std::size_t>(rows), 0);
  }

  /// Makes a row that of a sequence, with the positions of an uncommitted extension: call it after each step that
  /// changed the sequence, and in any state. Returns the entries that it wrote; mostly none or one. It compares the
  /// blocks of the sequence with those that are there, since a commit may replace earlier ones by equal ones that are
  /// cached. Throws std::invalid_argument if there is no such row, the handle is stale, or the sequence has more than
  /// max_blocks blocks; nothing has changed then. O(blocks of the sequence) comparisons; writes what differs.
  template <BlockTablePolicy P>
  EntryRange update(Index row, const P& policy, SeqId seq) {
    require_between(row, Index{0}, rows_ - 1, "row");
    EntryRange changed;
    with_shared_lock(policy, [&](const auto& bare) {
      const std::span<const BlockId> blocks = bare.block_table(seq);
      const auto count = static_cast<Index>(blocks.size());
      require(count <= max_blocks_, "blocks of the sequence", count, "at most max_blocks of the table");
      std::int32_t* const entries = entries_.data() + row * max_blocks_;
      Index& used = used_[static_cast<std::size_t>(row)];
      const Index end = std::max(count, used);
      const auto wanted = [&](Index i) {
        return i < count ? static_cast<std::int32_t>(blocks[static_cast<std::size_t>(i)]) : padding;
      };
      changed = {0, end};
      while (!changed.empty() && entries[changed.first] == wanted(changed.first)) {
        ++changed.first;
      }
      while (!changed.empty() && entries[changed.last - 1] == wanted(changed.last - 1)) {
        --changed.last;
      }
      for (Index i = changed.first; i < changed.last; ++i) {
        entries[i] = wanted(i);
      }
      used = count;
      seq_lens_[static_cast<std::size_t>(row)] = bare.reserved(seq);
    });
    return changed.empty() ? EntryRange{} : changed;
  }
  /// Makes a row that of no sequence. Returns the entries that it wrote. Throws std::invalid_argument if there is no
  /// such row. O(blocks that the row had).
  EntryRange clear(Index row) {
    require_between(row, Index{0}, rows_ - 1, "row");
    Index& used = used_[static_cast<std::size_t>(row)];
    const EntryRange changed{0, used};
    std::fill_n(entries_.begin() + row * max_blocks_, used, padding);
    seq_lens_[static_cast<std::size_t>(row)] = 0;
    used = 0;
    return changed;
  }

  /// All entries:  [rows, max_blocks].
  [[nodiscard]] std::span<const std::int32_t> entries() const noexcept { return entries_; }
  /// Positions of the sequence of each row; 0 if there is none:  [rows].
  [[nodiscard]] std::span<const std::int32_t> seq_lens() const noexcept { return seq_lens_; }
  /// Entries of a row.
  [[nodiscard]] Index max_blocks() const noexcept { return max_blocks_; }

 private:
  Index rows_;
  Index max_blocks_;
  std::vector<std::int32_t> entries_;   // [rows, max_blocks]
  std::vector<std::int32_t> seq_lens_;  // [rows]
  std::vector<Index> used_;             // [rows]; entries that are not padding
};

}  // namespace interop
}  // namespace v0
}  // namespace kvc
