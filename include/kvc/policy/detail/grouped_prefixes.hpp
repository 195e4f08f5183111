// GroupedPrefixes: the sequences and pins of PrefixShared with several layer groups.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/block_sizes.hpp"
#include "kvc/policy/detail/group_blocks.hpp"
#include "kvc/policy/detail/group_hit.hpp"
#include "kvc/policy/detail/group_token_tables.hpp"
#include "kvc/policy/salt.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Finds what is cached of a prompt, and opens sequences and pins on it. `Blocks` is a GroupCachedBlocks.
template <class Blocks>
class GroupedPrefixes : public GroupTokenTables<Blocks> {
  using Base = GroupTokenTables<Blocks>;
  using Base::blocks_;
  using Base::indexer_;
  using Base::node_tokens_;
  using Base::reach_;

 public:
  using typename Base::Parent;
  using typename Base::Sequence;

  GroupedPrefixes(Blocks& blocks, const GroupRules& rules, const BlockSizes& sizes) : Base(blocks, rules, sizes) {
    lost_.assign(rules.groups.size() + (rules.states.empty() ? 0 : 1), 0);
    for (std::size_t g = 0; g < rules.groups.size(); ++g) {
      cross_blocks_ += this->is_cross(g) ? cross_blocks(g) : 0;
    }
  }

  /// Tokens of hits that were lost because of a group; of number groups(): because of recurrent states.
  [[nodiscard]] Index lost(Index group) const noexcept { return lost_[static_cast<std::size_t>(group)]; }

  using Hit = GroupHit<typename Blocks::Nodes::HashType>;

  /// The longest valid hit of `tokens`: see find_hit. `reserve_path` has made room in `path`.
  [[nodiscard]] Hit match(Parent root, std::span<const Token> tokens, std::vector<BlockId>& path) const noexcept {
    return detail::find_hit(blocks_.nodes, this->rules(), !blocks_.cross(root).empty(), root, tokens, path);
  }
  void reserve_path(std::vector<BlockId>& path, std::span<const Token> tokens) const {
    path.reserve(tokens.size() / static_cast<std::size_t>(node_tokens_));
  }
  /// f(group, number, block) for the blocks of a hit: see for_each_found_block.
  template <class F>
  void for_each_found(const Hit& hit, std::span<const BlockId> path, F&& f) const noexcept {
    detail::for_each_found_block(blocks_.nodes, this->rules(), hit, path, f);
  }

  /// A new sequence with the tables of what is found of `tokens`, which begin the prompt. References nothing yet.
  Opened open_on(std::span<const Token> prompt, std::span<const Token> tokens, const Salt& salt) {
    const Pos size = checked_count(prompt.size(), "prompt.size()");
    const SeqId seq = this->insert();
    ScopeGuard undo([&] { this->erase_empty(seq); });
    const int tenant = blocks_.quota.limited() ? blocks_.quota.acquire(salt.tenant()) : TenantQuota::none;
    ScopeGuard undo_tenant([&] { blocks_.quota.release(tenant); });
    const Parent root = blocks_.nodes.index.roots().acquire(salt);
    ScopeGuard undo_root([&] { blocks_.nodes.index.roots().release(root); });
    Sequence& s = this->at(seq);
    s.state.tokens.reserve(2 * static_cast<std::size_t>(node_tokens_));  // so that truncate cannot fail
    s.state.ends.reserve(static_cast<std::size_t>(2 * reach_));
    path_.clear();
    reserve_path(path_, tokens);
    const Hit hit = match(root, tokens, path_);
    std::span<const BlockId> cross = blocks_.cross(root);
    s.has_cross = !cross.empty();
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      if (s.tables[g].grows()) {
        s.tables[g].begin_at(hit.length());
      } else if (s.has_cross) {
        s.tables[g].assign(cross.first(cross_blocks(g)));
        cross = cross.subspan(cross_blocks(g));
      }
    }
    s.states.reserve(1);
    if (cross_blocks_ > 0 && !salt.bytes().empty()) {
      blocks_.reserve_cross(root, cross_blocks_);
    }
    undo_root.dismiss();
    undo_tenant.dismiss();
    undo.dismiss();

    ++blocks_.now;
    for_each_found(hit, path_, [&](std::size_t g, Pos number, BlockId block) {
      if (s.tables[g].has(number)) {
        s.tables[g][number] = block;
      }
    });
    s.state.root = root;
    s.state.last = hit.node() == Blocks::Nodes::no_node ? root : Parent(hit.node());
    if (this->has_states() && hit.length() > 0) {
      add_found_states(s, hit.node());
    }
    blocks_.nodes.ref(s.state.last);
    const Pos indexed = blocks_.nodes.end(s.state.last);
    s.state.tokens.assign(
        tokens.first(static_cast<std::size_t>(hit.length())).subspan(static_cast<std::size_t>(indexed)));
    s.state.tenant = tenant;
    s.state.found = hit.length();
    s.state.prompt_end = size;
    s.lengths.set(hit.length());
    for (std::size_t g = 0; g < lost_.size(); ++g) {
      last_lost_[g] = hit.lost(g);
    }
    if (this->has_states()) {
      const Pos rows = hit.length() + hit.lost(lost_.size() - 1);  // a multiple of node_tokens
      s.state.branch = rows > hit.length() ? rows : 0;
    }
    return {seq, hit.length()};
  }
  /// References what open_on has found.
  void take_found(const Sequence& s) noexcept {
    this->ref_blocks(s);
    indexer_.ends().mark_found(s);
  }
  /// Counts the hit of the last open_on.
  void count_lost() noexcept {
    for (std::size_t g = 0; g < lost_.size(); ++g) {
      lost_[g] += last_lost_[g];
    }
  }
  /// Erases a sequence, or a pin.
  void release_sequence(SeqId seq) {
    Sequence& s = this->at(seq);
    const Parent root = s.state.root;
    const int tenant = s.state.tenant;
    indexer_.ends().refresh(s);
    const Parent last = std::exchange(s.state.last, root);
    this->close(seq);
    blocks_.nodes.unref(last);
    blocks_.nodes.index.roots().release(root);
    blocks_.quota.release(tenant);
  }

  /// The blocks that show an eviction policy where a sequence is: those of the first group that keeps everything, or of
  /// the first group with rows of its own tokens. As many as lead to its node.
  [[nodiscard]] std::span<const BlockId> leading_blocks(const Sequence& s) const noexcept {
    const auto& groups = this->rules().groups;
    std::size_t leader = groups.size();
    for (std::size_t g = groups.size(); g-- > 0;) {
      const bool is_better =
          leader == groups.size() || groups[g].retained.everything() || !groups[leader].retained.everything();
      leader = groups[g].cross_rows == 0 && is_better ? g : leader;
    }
    if (leader == groups.size()) {
      return {};  // states alone
    }
    const std::span<const BlockId> blocks = s.tables[leader].group_blocks().rest;
    if (this->rules().groups[leader].retained.everything()) {
      return blocks.first(static_cast<std::size_t>(this->indexed(s) / this->block_tokens(static_cast<Index>(leader))));
    }
    const auto end = std::ranges::find_if(blocks, [&](BlockId block) { return !blocks_.nodes.is_cached(block); });
    return blocks.first(static_cast<std::size_t>(end - blocks.begin()));
  }

 private:
  /// Blocks of the rows of another input in a group.
  [[nodiscard]] std::size_t cross_blocks(std::size_t group) const noexcept {
    return static_cast<std::size_t>(
        ceil_div(this->rules().groups[group].cross_rows, this->block_tokens(static_cast<Index>(group))));
  }
  /// The states behind a node that a hit ends with, which has all of them.
  void add_found_states(Sequence& s, typename Blocks::Node node) noexcept {
    std::size_t kind = 0;
    BlockId next = no_block;
    s.states.push({blocks_.nodes.end(Parent(node)), true}, [&] {
      const BlockId block = next != no_block ? next : blocks_.nodes.block(node, this->rules().groups.size() + kind++);
      next = blocks_.next_of_state(block);
      return block;
    });
  }

  std::vector<Index> lost_;  // [groups], and because of states
  std::array<Pos, max_groups + 1> last_lost_{};
  std::size_t cross_blocks_ = 0;  // of all groups
  std::vector<BlockId> path_;     // of the last prompt
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
