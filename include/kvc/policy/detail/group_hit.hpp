// GroupHit: the longest prefix that is there in every layer group.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/group_nodes.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Layer groups of a policy that finds prefixes over all of them.
inline constexpr std::size_t max_groups = 16;

/// Walks down the nodes of a prefix, once, and finds the longest length that is a valid hit in every group. With the
/// rows that a group has of the nodes so far, a hit of length L is valid in it if it has
///
///   its kept positions before L, and
///   every position in [first_seen(L), L), and, where L is no multiple of its block size, the whole block before L
///
/// For each group, the walk carries from where on all rows up to the present node are there. O(groups) per node.
template <class Hash>
class GroupHit {
  using Nodes = GroupNodes<Hash>;
  using Node = typename Nodes::Node;

 public:
  GroupHit(const Nodes& nodes, const GroupRules& rules) : nodes_(nodes), rules_(rules) {}

  /// The next node of the prefix.
  void add(Node node) noexcept {
    const Pos end = nodes_.end(typename Nodes::Parent(node));
    last_ = node;
    if (is_valid(node, end, true)) {
      length_ = end;
      node_ = node;
    }
  }
  /// A child of the last node, or of the root, that has its first `count` tokens in common with the prompt. The node is
  /// not the last one afterwards.
  void add_partial(Node child, Pos count) noexcept {
    const Pos start = nodes_.end(typename Nodes::Parent(child)) - nodes_.node_tokens();
    if (count > 0 && start + count > length_ && is_valid(child, start + count, false)) {
      length_ = start + count;
      node_ = last_;
      partial_ = child;
    }
  }

  /// The length of the longest valid hit.
  [[nodiscard]] Pos length() const noexcept { return length_; }
  /// The last node that it has whole, or no node.
  [[nodiscard]] Node node() const noexcept { return node_; }
  /// The node that it has in part, or no node.
  [[nodiscard]] Node partial() const noexcept { return partial_; }
  /// How many tokens longer it would be if this group had all rows.
  [[nodiscard]] Pos lost(std::size_t group) const noexcept { return std::max(longest_without_[group] - length_, 0); }

 private:
  /// `moves`: the walk goes on from this node.
  [[nodiscard]] bool is_valid(Node node, Pos length, bool moves) noexcept {
    const std::span<const BlockId> blocks = nodes_.blocks_of(node);
    std::size_t short_group = 0;
    int short_groups = 0;
    for (std::size_t g = 0; g < blocks.size(); ++g) {
      const Retained& retained = rules_.groups[g].retained;
      const Pos block_tokens = nodes_.block_tokens(g);
      const bool has = blocks[g] != no_block;
      Pos& from = from_[g];            // rows in [from, start of this block) are there
      Pos& from_zero = from_zero_[g];  // rows in [0, from_zero) are there
      const Pos behind = moves ? length : 0;
      if (has && from == 0) {
        from_zero = std::max(from_zero, behind);
      }
      const Pos first = retained.first_seen(length);
      const bool ends_block = length % block_tokens == 0;
      const bool has_window = has ? from <= first : first >= length && ends_block;
      const bool has_kept = retained.kept == 0 || (has && from == 0) || from_zero >= std::min(retained.kept, length);
      if (!(has_window && has_kept)) {
        ++short_groups;
        short_group = g;
      }
      if (moves && ends_block && !has) {
        from = length;
      }
    }
    if (short_groups == 1) {
      longest_without_[short_group] = std::max(longest_without_[short_group], length);
    }
    return short_groups == 0;
  }

  const Nodes& nodes_;
  const GroupRules& rules_;
  std::array<Pos, max_groups> from_{};
  std::array<Pos, max_groups> from_zero_{};
  std::array<Pos, max_groups> longest_without_{};
  Pos length_ = 0;
  Node last_ = Nodes::no_node;
  Node node_ = Nodes::no_node;
  Node partial_ = Nodes::no_node;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
