// PrefixEnds: which blocks stay cached although their group has dropped them, because a later prompt could end there.
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
#include "kvc/policy/group_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// A dropped block leaves the index unless a later prompt could end in it: nobody could ever hit the middle of a long
/// prompt. The places where prompts end are the end of a prompt, of a sequence, of a fork, and positions where prefixes
/// part. Marks the blocks that a hit there needs.
///
/// A sequence that is closed now would end now, so it also leaves in the index what a hit needs that ends up to a block
/// before it. Of a window these are blocks that it still holds. Of chunks these are all blocks of the last chunk for
/// the first tokens of the next one.
///
/// `Blocks` is a GroupCachedBlocks, and a sequence that of a GroupTokenTables. References what it is made of. No member
/// throws but the constructor.
template <class Blocks, class Sequence>
class PrefixEnds {
 public:
  PrefixEnds(Blocks& blocks, const GroupRules& rules)
      : blocks_(blocks), rules_(rules), has_chunks_(blocks.nodes.columns(), 0) {
    for (std::size_t g = 0; g < rules.groups.size(); ++g) {
      has_chunks_[g] = rules.groups[g].retained.chunk > 0 ? 1 : 0;
    }
  }

  /// Whether a hit that ends in `ends`, or up to a block before it, needs a block. O(1).
  [[nodiscard]] bool needs(std::size_t group, const GroupTable& table, Pos number, PosRange ends) const noexcept {
    const Pos tokens = table.block_tokens();
    const Index first = Index{rules_.groups[group].retained.first_seen(std::max(ends.first - tokens, 0))};
    return (Index{number} + 1) * tokens > first && Index{number} * tokens < ends.last;
  }
  /// Marks what a hit that ends there needs, of the blocks that a sequence has. O(blocks marked).
  void mark(Sequence& s, PosRange ends) noexcept {
    if (ends.last == 0) {
      return;
    }
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      const GroupTable& table = s.tables[g];
      const Retained& retained = rules_.groups[g].retained;
      if (retained.everything()) {
        continue;
      }
      const Pos first = retained.first_seen(std::max(ends.first - table.block_tokens(), 0)) / table.block_tokens();
      const Pos end = ceil_div(ends.last, table.block_tokens());  // of those that it needs
      for (const BlockId block : table.blocks_between(first, end)) {
        mark(block);
      }
    }
  }
  /// Marks all blocks that a sequence begins with. A prompt has ended or gone on there, and another may. O(blocks).
  void mark_found(const Sequence& s) noexcept {
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      if (!rules_.groups[g].retained.everything()) {
        std::ranges::for_each(s.tables[g].blocks(), [&](BlockId block) { blocks_.nodes.mark(block); });
      }
    }
    mark_states(s);
  }
  /// Marks the states that a sequence begins from. O(states).
  void mark_states(const Sequence& s) noexcept {
    std::ranges::for_each(s.states.blocks(), [&](BlockId block) { mark(block); });
  }

  /// Releases a block of a sequence of `settled` tokens that its group drops. The block leaves the index unless it is
  /// marked, or the end of the sequence is still close. O(1).
  void release_dropped(Sequence& s, BlockId block, Pos settled) noexcept {
    if (leaves_index(s, block, settled)) [[likely]] {
      blocks_.uncache_and_free(block);
    } else {
      blocks_.release(block, s.state);
    }
  }
  /// A block that a sequence of `settled` tokens is about to release leaves the index as above. O(1).
  void forget_unless_end(Sequence& s, BlockId block, Pos settled) noexcept {
    if (leaves_index(s, block, settled)) {
      blocks_.uncache(block);
    }
  }
  /// Blocks that were left in the index for the end of the sequence leave it when that is `settled` tokens away from
  /// them, unless they have been marked since. O(1) nearly always; otherwise O(blocks).
  void forget_passed(Sequence& s, Pos settled) noexcept {
    if (settled < s.state.forgets_at) [[likely]] {
      return;
    }
    s.state.forgets_at = max_pos;
    auto& ends = s.state.ends;
    std::size_t left = 0;
    for (std::size_t i = 0; i < ends.size(); ++i) {
      auto end = ends[i];
      const bool is_there = is_still(end);
      if (is_there && blocks_.nodes.is_marked(end.block)) {
        end.until = max_pos;
      }
      if (end.until > settled) {
        s.state.forgets_at = std::min(s.state.forgets_at, end.until);
        ends[left++] = end;
      } else if (is_there && blocks_.pool.ref_count(end.block) == 0) {
        blocks_.discard(end.block);
      }
    }
    ends.cut(left);
  }
  /// Makes cached blocks that a sequence has released earlier as new as those it releases now. O(blocks).
  void refresh(const Sequence& s) noexcept {
    for (const auto& end : s.state.ends.all()) {
      if (is_still(end)) {
        blocks_.refresh(end.block, s.state);
      }
    }
  }

 private:
  /// Whether a remembered block is cached as before. Another one may have its number now.
  [[nodiscard]] bool is_still(const auto& end) const noexcept {
    return blocks_.nodes.is_cached(end.block) && blocks_.nodes.prefix(end.block) == end.prefix &&
           blocks_.nodes.group(end.block) == static_cast<std::size_t>(end.group);
  }
  /// The length from which on no hit that ends up to a block before it needs a cached block of a chunk; 0 of others.
  [[nodiscard]] Pos needed_until(BlockId block) const noexcept {
    const std::size_t group = blocks_.nodes.group(block);
    if (has_chunks_[group] == 0) [[likely]] {
      return 0;
    }
    const Pos tokens = blocks_.nodes.block_tokens(group);
    const Pos end = blocks_.nodes.first(block) + tokens;
    return static_cast<Pos>(
        std::min(Index{rules_.groups[group].retained.sees_only_from(end)} + tokens, Index{max_pos}));
  }
  /// Whether a hit that ends up to a block before the end of the prompt, which is still to come, needs a cached block
  /// that a sequence of `settled` tokens drops: where the prompt ends just behind the boundary of a chunk.
  [[nodiscard]] bool is_for_prompt_end(const Sequence& s, BlockId block, Pos settled) const noexcept {
    const std::size_t group = blocks_.nodes.group(block);
    if (settled >= s.state.prompt_end || has_chunks_[group] == 0) [[likely]] {
      return false;
    }
    const Pos tokens = blocks_.nodes.block_tokens(group);
    const Pos first = rules_.groups[group].retained.first_seen(std::max(s.state.prompt_end - tokens, 0));
    return Index{blocks_.nodes.first(block)} + tokens > first;
  }
  /// Whether a block that a sequence of `settled` tokens drops is to leave the index: it is cached, nothing else
  /// references it, and no prompt could end in it. If one could, the sequence remembers the block, as long as there is
  /// room.
  [[nodiscard]] bool leaves_index(Sequence& s, BlockId block, Pos settled) noexcept {
    if (!blocks_.nodes.is_cached(block)) {
      return false;
    }
    if (is_for_prompt_end(s, block, settled)) [[unlikely]] {
      mark(block);
    }
    const bool is_marked = blocks_.nodes.is_marked(block);
    const Pos until = is_marked ? max_pos : needed_until(block);
    if (settled < until && s.state.ends.size() < s.state.ends.capacity()) [[unlikely]] {
      s.state.ends.push(
          {block, static_cast<std::int32_t>(blocks_.nodes.group(block)), blocks_.nodes.prefix(block), until});
      s.state.forgets_at = std::min(s.state.forgets_at, until);
      return false;
    }
    return !is_marked && blocks_.unshared(block);
  }
  void mark(BlockId block) noexcept { blocks_.nodes.mark_if_cached(block); }

  Blocks& blocks_;
  const GroupRules& rules_;
  std::vector<char> has_chunks_;  // [columns] whether a group has chunks
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
