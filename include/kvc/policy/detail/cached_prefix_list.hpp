// Lists the prefixes of an index of several layer groups that prompts would be found to have.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/group_rule.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/cached_prefix.hpp"
#include "kvc/policy/detail/group_hit.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Prefixes that together have all rows and states that a hit could need: of each leaf of the index the longest hit,
/// and of what leads to it those hits that need something which no longer one has. O(nodes of all leaves' prefixes *
/// rows of the windows).
///
/// `Blocks` is a GroupCachedBlocks.
template <class Blocks>
class CachedPrefixList {
 public:
  CachedPrefixList(const Blocks& blocks, const GroupRules& rules)
      : blocks_(blocks),
        nodes_(blocks.nodes),
        rules_(rules),
        covered_(static_cast<std::size_t>(nodes_.nodes()) * nodes_.columns(), 0) {}

  /// f(CachedPrefix) for each, longer ones of a leaf first.
  template <class F>
  void for_each(F&& f) {
    nodes_.index.for_each([&](Parent root, Parent, Node leaf) {
      if (nodes_.index.has_children(leaf)) {
        return;
      }
      path_.clear();
      for (Parent at(leaf); !at.is_root(); at = nodes_.index.parent(at.block())) {
        path_.push_back(at.block());
      }
      std::ranges::reverse(path_);
      Hit hit(nodes_, rules_, !blocks_.cross(root).empty());
      ends_.clear();
      for (std::size_t i = 0; i < path_.size(); ++i) {
        hit.add(path_[i]);
        if (hit.length() == length_of(i)) {
          ends_.push_back(i);
        }
      }
      while (!ends_.empty()) {
        const std::size_t last = ends_.back();
        ends_.pop_back();
        if (is_new(last)) {
          report(root, last, f);
        }
      }
    });
  }

 private:
  using Nodes = typename Blocks::Nodes;
  using Node = typename Blocks::Node;
  using Parent = typename Blocks::Parent;
  using Hit = GroupHit<typename Nodes::HashType>;

  [[nodiscard]] Pos length_of(std::size_t i) const noexcept { return nodes_.end(Parent(path_[i])); }
  [[nodiscard]] char& covered(std::size_t i, std::size_t column) noexcept {
    return covered_[static_cast<std::size_t>(path_[i]) * nodes_.columns() + column];
  }
  /// f(number on the path, column) for what a hit that ends with a node of the path needs. Of groups that keep
  /// everything all nodes, or only the last one, without which it has not the others either.
  template <class F>
  void for_each_needed(std::size_t last, bool all, F&& f) noexcept {
    for (std::size_t g = 0; g < nodes_.groups(); ++g) {
      const Retained& retained = rules_.groups[g].retained;
      if (rules_.groups[g].cross_rows > 0) {
        continue;
      }
      std::size_t first = all ? 0 : last;
      if (!retained.everything()) {
        first = static_cast<std::size_t>(retained.first_seen(length_of(last)) / nodes_.node_tokens());
        const auto kept = static_cast<std::size_t>(ceil_div(retained.kept, nodes_.node_tokens()));
        for (std::size_t i = 0; i < std::min({kept, first, last + 1}); ++i) {
          f(i, g);
        }
      }
      for (std::size_t i = first; i <= last; ++i) {
        f(i, g);
      }
    }
    for (std::size_t column = nodes_.groups(); column < nodes_.columns(); ++column) {
      f(last, column);
    }
  }
  [[nodiscard]] bool is_new(std::size_t last) noexcept {
    bool is_new = false;
    for_each_needed(last, false, [&](std::size_t i, std::size_t column) {
      is_new = is_new || (nodes_.block(path_[i], column) != no_block && covered(i, column) == 0);
    });
    return is_new;
  }

  template <class F>
  void report(Parent root, std::size_t last, F&& f) {
    const Pos length = length_of(last);
    const auto path = std::span<const Node>(path_).first(last + 1);
    Hit hit(nodes_, rules_, !blocks_.cross(root).empty());
    list_.clear();
    tokens_.clear();
    states_.clear();
    for (const Node node : path) {
      hit.add(node);
      const auto tokens = std::as_const(nodes_.index).tokens(node);
      tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    }
    detail::for_each_found_block(nodes_, rules_, hit, path,
                                 [&](std::size_t g, Pos number, BlockId block) { add(g, number, length, block); });
    std::vector<Pos> numbers(nodes_.groups(), 0);
    for (const BlockId block : blocks_.cross(root)) {
      const std::size_t g = nodes_.group(block);
      add(g, numbers[g]++, rules_.groups[g].cross_rows, block);
    }
    std::ranges::stable_sort(list_, {}, &CachedPrefix::Block::group);
    for (std::size_t column = nodes_.groups(); column < nodes_.columns(); ++column) {
      for (BlockId block = nodes_.block(path_[last], column); block != no_block; block = blocks_.next_of_state(block)) {
        states_.push_back(block);
      }
    }
    f(CachedPrefix{nodes_.index.roots().salt(root), tokens_, list_, states_});
    for_each_needed(last, true, [&](std::size_t i, std::size_t column) { covered(i, column) = 1; });
  }
  void add(std::size_t g, Pos number, Pos end, BlockId block) {
    const Pos first = number * nodes_.block_tokens(g);
    list_.push_back({static_cast<std::int32_t>(g), first, std::min(nodes_.block_tokens(g), end - first), block});
  }

  const Blocks& blocks_;
  const Nodes& nodes_;
  const GroupRules& rules_;
  std::vector<char> covered_;  // [nodes, columns]
  std::vector<Node> path_;     // of a leaf
  std::vector<std::size_t> ends_;
  std::vector<CachedPrefix::Block> list_;
  std::vector<Token> tokens_;
  std::vector<BlockId> states_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
