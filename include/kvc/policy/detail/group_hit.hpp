// GroupHit: the longest prefix that is there in every layer group, and the blocks that hold it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/retained.hpp"
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
/// and, of a group of cross attention, all rows of the other input. Where there are recurrent layers, a hit ends behind
/// the last token of a node that has their states. They count as a group of their own, behind the others.
///
/// For each group, the walk carries from where on all rows up to the present node are there. O(groups) per node.
template <class Hash>
class GroupHit {
  using Nodes = GroupNodes<Hash>;
  using Node = typename Nodes::Node;

 public:
  /// `has_cross`: the rows of the other input are there.
  GroupHit(const Nodes& nodes, const GroupRules& rules, bool has_cross)
      : nodes_(nodes), rules_(rules), has_cross_(has_cross) {
    for (std::size_t g = 0; g < nodes.groups(); ++g) {
      groups_[g].nodes_left = nodes.block_tokens(g) / nodes.node_tokens();
    }
  }

  /// Takes all of a path, and `count` tokens of a child of its last node, if that is a valid hit: nearly always it is,
  /// and to see it takes less than to walk down. False if it is not, or not obviously.
  [[nodiscard]] bool take_all(std::span<const Node> path, Node child, Pos count) noexcept {
    const auto whole = static_cast<Pos>(path.size());
    const Pos length = whole * nodes_.node_tokens() + count;
    for (std::size_t g = 0; g < nodes_.groups(); ++g) {
      if (rules_.groups[g].cross_rows > 0) {
        if (!has_cross_) {
          return false;
        }
        continue;
      }
      const Retained& retained = rules_.groups[g].retained;
      const Pos block_tokens = nodes_.block_tokens(g);
      const Pos block_nodes = block_tokens / nodes_.node_tokens();
      const Pos all = whole + (count > 0 ? 1 : 0);
      const auto has = [&](Pos first, Pos last) {  // blocks [first, last)
        for (Index end = (Index{first} + 1) * block_nodes; first < last; ++first, end += block_nodes) {
          const auto node = static_cast<Pos>(std::min(end, Index{all}) - 1);
          if (nodes_.block(node < whole ? path[static_cast<std::size_t>(node)] : child, g) == no_block) {
            return false;
          }
        }
        return true;
      };
      const Pos blocks = ceil_div(length, block_tokens);
      if (!has(retained.first_seen(length) / block_tokens, blocks) ||
          !has(0, ceil_div(std::min(retained.kept, length), block_tokens))) {
        return false;
      }
    }
    if (nodes_.columns() > nodes_.groups() && (count > 0 || (!path.empty() && !nodes_.has_states(path.back())))) {
      return false;
    }
    length_ = length;
    node_ = path.empty() ? Nodes::no_node : path.back();
    partial_ = count > 0 ? child : Nodes::no_node;
    count_ = whole;
    return true;
  }

  /// The next node of the prefix.
  void add(Node node) noexcept {
    last_ = node;
    end_ += nodes_.node_tokens();
    const std::span<const BlockId> blocks = nodes_.blocks_of(node);
    Shorts shorts;
    for (std::size_t g = 0; g < nodes_.groups(); ++g) {
      const Retained& retained = rules_.groups[g].retained;
      Group& group = groups_[g];
      const bool has = blocks[g] != no_block;
      const bool ends_block = --group.nodes_left == 0;
      bool is_valid = has && group.from == 0;
      if (rules_.groups[g].cross_rows > 0) {
        is_valid = has_cross_;
      } else if (is_valid) {
        group.from_zero = end_;
      } else if (!retained.everything()) {
        Pos first = retained.window > 0 && end_ >= retained.window ? end_ - retained.window + 1 : 0;
        if (retained.chunk > 0) {
          while (end_ - group.chunk_start >= retained.chunk) {
            group.chunk_start += retained.chunk;
          }
          first = std::max(first, group.chunk_start);
        }
        is_valid = (has ? group.from <= first : first >= end_ && ends_block) &&
                   group.from_zero >= std::min(retained.kept, end_);
      }
      if (!is_valid) {
        shorts.add(g);
      }
      if (ends_block) {
        group.nodes_left = nodes_.block_tokens(g) / nodes_.node_tokens();
        group.from = has ? group.from : end_;
      }
    }
    if (!nodes_.has_states(node)) {
      shorts.add(nodes_.groups());
    }
    if (is_longer(shorts, end_)) {
      node_ = node;
      count_ = end_ / nodes_.node_tokens();
    }
  }
  /// A child of the last node, or of the root, that has its first `count` tokens in common with the prompt. The node is
  /// not the last one afterwards.
  void add_partial(Node child, Pos count) noexcept {
    const Pos length = end_ + count;
    if (count == 0 || length <= length_) {
      return;
    }
    const std::span<const BlockId> blocks = nodes_.blocks_of(child);
    Shorts shorts;
    if (nodes_.columns() > nodes_.groups()) {
      return;
    }
    for (std::size_t g = 0; g < nodes_.groups(); ++g) {
      const Retained& retained = rules_.groups[g].retained;
      const Pos first = retained.first_seen(length);
      if (rules_.groups[g].cross_rows > 0) {
        if (!has_cross_) {
          shorts.add(g);
        }
        continue;
      }
      const bool has = blocks[g] != no_block;
      const bool has_window = has ? groups_[g].from <= first : first >= length && length % nodes_.block_tokens(g) == 0;
      const bool has_kept = (has && groups_[g].from == 0) || groups_[g].from_zero >= std::min(retained.kept, length);
      if (!(has_window && has_kept)) {
        shorts.add(g);
      }
    }
    if (is_longer(shorts, length)) {
      node_ = last_;
      count_ = end_ / nodes_.node_tokens();
      partial_ = child;
    }
  }

  /// The length of the longest valid hit.
  [[nodiscard]] Pos length() const noexcept { return length_; }
  /// The last node that it has whole, or no node.
  [[nodiscard]] Node node() const noexcept { return node_; }
  /// The node that it has in part, or no node.
  [[nodiscard]] Node partial() const noexcept { return partial_; }
  /// How many nodes it has whole: the first ones of the path.
  [[nodiscard]] Pos whole_nodes() const noexcept { return count_; }
  /// How many tokens longer it would be if this group had all rows.
  [[nodiscard]] Pos lost(std::size_t group) const noexcept {
    return std::max(groups_[group].longest_without - length_, 0);
  }

 private:
  struct Group {
    Pos from = 0;         // rows in [from, start of the present block) are there
    Pos from_zero = 0;    // rows in [0, from_zero) are there
    Pos nodes_left = 0;   // of the present block
    Pos chunk_start = 0;  // of the present chunk
    Pos longest_without = 0;
  };
  /// The groups for which a length is no hit.
  struct Shorts {
    std::size_t last = 0;
    int count = 0;
    void add(std::size_t group) noexcept {
      last = group;
      ++count;
    }
  };
  [[nodiscard]] bool is_longer(const Shorts& shorts, Pos length) noexcept {
    if (shorts.count == 0) {
      length_ = length;
    } else if (shorts.count == 1) {
      groups_[shorts.last].longest_without = length;
    }
    return shorts.count == 0;
  }

  const Nodes& nodes_;
  const GroupRules& rules_;
  bool has_cross_;
  std::array<Group, max_groups + 1> groups_{};  // the last one: of states
  Pos end_ = 0;
  Pos length_ = 0;
  Pos count_ = 0;
  Node last_ = Nodes::no_node;
  Node node_ = Nodes::no_node;
  Node partial_ = Nodes::no_node;
};

/// The longest valid hit of `tokens` below a root, to the token. The last node of a hit may match in part: a child of
/// the deepest node that matches whole. O(tokens * groups / node_tokens).
///   has_cross   the rows of the other input are there
///   path        receives the nodes that match whole; it is empty and has room for them
template <class Hash>
[[nodiscard]] GroupHit<Hash> find_hit(const GroupNodes<Hash>& nodes, const GroupRules& rules, bool has_cross,
                                      typename GroupNodes<Hash>::Parent root, std::span<const Token> tokens,
                                      std::vector<BlockId>& path) noexcept {
  const auto last = nodes.index.find_prefix(
      root, tokens, [&](BlockId node) { path.push_back(node); }, [&](BlockId node) { nodes.prefetch(node); });
  const auto n = static_cast<std::size_t>(nodes.node_tokens());
  const std::size_t matched = path.size() * n;
  const auto rest = tokens.subspan(matched, std::min(n, tokens.size() - matched));
  const auto longest = nodes.index.find_longest(last, rest);
  GroupHit<Hash> hit(nodes, rules, has_cross);
  if (hit.take_all(path, longest.block, longest.count)) {
    return hit;
  }
  for (const BlockId node : path) {
    hit.add(node);
  }
  nodes.index.for_each_partial(last, rest, [&](const auto& child) { hit.add_partial(child.block, child.count); });
  return hit;
}

/// f(group, number, block) for the blocks that a sequence needs which begins with a hit, ascending in each group, but
/// none of rows of another input. O(blocks that groups need).
///   path   the nodes of the hit's prefix
template <class Hash, class F>
void for_each_found_block(const GroupNodes<Hash>& nodes, const GroupRules& rules, const GroupHit<Hash>& hit,
                          std::span<const BlockId> path, F&& f) noexcept {
  const Pos whole = hit.whole_nodes();
  const Pos count = whole + (hit.partial() != GroupNodes<Hash>::no_node ? 1 : 0);
  for (std::size_t g = 0; g < nodes.groups(); ++g) {
    if (rules.groups[g].cross_rows > 0) {
      continue;
    }
    const Retained& retained = rules.groups[g].retained;
    const Pos block_tokens = nodes.block_tokens(g);
    const Pos block_nodes = block_tokens / nodes.node_tokens();
    const auto find = [&](Pos number) {  // the deepest node in the span of the block has all rows of the hit in it
      for (Pos i = std::min((number + 1) * block_nodes, count) - 1; i >= number * block_nodes; --i) {
        const BlockId node = i < whole ? path[static_cast<std::size_t>(i)] : hit.partial();
        if (const BlockId block = nodes.block(node, g); block != no_block) {
          f(g, number, block);
          return;
        }
      }
    };
    const Pos end = ceil_div(hit.length(), block_tokens);
    const Pos kept = std::min(ceil_div(retained.kept, block_tokens), end);
    for (Pos number = 0; number < kept; ++number) {
      find(number);
    }
    for (Pos number = std::max(retained.first_seen(hit.length()) / block_tokens, kept); number < end; ++number) {
      find(number);
    }
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
