// LoadEnds: where a prefix of several layer groups can end that tiers and pool have together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/core/group_rule.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// Integers only. A prefix of n nodes is a hit if each group has what its next row sees, in whole blocks, and each kind
/// of recurrent states has those behind its last token:
///
///   group that keeps everything   all nodes
///   window, chunk                 its kept positions, and all from the block of first_seen(length) on
///   states                        the last node
class LoadEnds {
 public:
  /// The part of a column: nodes of a block, and the group's rule; of states nullptr.
  struct Column {
    std::size_t block_nodes = 1;
    const Retained* retained = nullptr;
  };

  explicit LoadEnds(Pos node_tokens) : node_tokens_(node_tokens) {}

  /// Adds the next column.
  void add(Column column) { columns_.push_back(column); }
  [[nodiscard]] std::size_t columns() const noexcept { return columns_.size(); }

  /// The ends above `begin`, ascending, of a prefix of at most `nodes` nodes of which has(node, column) says what there
  /// is. Valid until the next call. O(nodes * columns).
  template <class F>
  [[nodiscard]] std::span<const std::size_t> find(std::size_t begin, std::size_t nodes, F&& has) {
    ends_.clear();
    from_zero_.assign(columns_.size(), 0);  // nodes [0, from_zero) are there
    run_.assign(columns_.size(), 0);        // nodes [run, end) are there
    for (std::size_t end = 1; end <= nodes; ++end) {
      bool is_hit = true;
      for (std::size_t s = 0; s < columns_.size(); ++s) {
        if (!has(end - 1, s)) {
          run_[s] = end;
        } else if (from_zero_[s] == end - 1) {
          from_zero_[s] = end;
        }
        is_hit = is_hit && covers(s, end);
      }
      if (is_hit && end > begin) {
        ends_.push_back(end);
      }
    }
    return ends_;
  }
  /// The first node, behind those of kept positions, that a hit of so many nodes needs in a column.
  [[nodiscard]] std::size_t first_needed(std::size_t column, std::size_t end) const noexcept {
    const Column& s = columns_[column];
    if (s.retained == nullptr) {
      return end - 1;
    }
    if (s.retained->everything()) {
      return 0;
    }
    const Pos seen = s.retained->first_seen(static_cast<Pos>(end) * node_tokens_);
    const std::size_t node = static_cast<std::size_t>(seen / node_tokens_);
    return std::min(node / s.block_nodes * s.block_nodes, end);
  }
  /// Nodes of kept positions that a hit of so many nodes needs.
  [[nodiscard]] std::size_t kept(std::size_t column, std::size_t end) const noexcept {
    const Column& s = columns_[column];
    if (s.retained == nullptr || s.retained->everything()) {
      return 0;
    }
    const Pos tokens = node_tokens_ * static_cast<Pos>(s.block_nodes);
    return std::min(static_cast<std::size_t>(ceil_div(s.retained->kept, tokens)) * s.block_nodes, end);
  }

 private:
  [[nodiscard]] bool covers(std::size_t column, std::size_t end) const noexcept {
    return run_[column] <= first_needed(column, end) && from_zero_[column] >= kept(column, end);
  }

  Pos node_tokens_;
  std::vector<Column> columns_;
  std::vector<std::size_t> ends_;
  std::vector<std::size_t> from_zero_;
  std::vector<std::size_t> run_;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
