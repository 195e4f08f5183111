// BlockLists: the lists that most eviction policies consist of.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/memory/large_vector.hpp"

namespace kvc {
inline namespace v0 {

/// Several doubly linked lists of blocks through one array. A block is in at most one list. Everything but the
/// constructor, reserve and add_list is O(1) and allocates nothing. 8 bytes per block. Arguments are not checked: a
/// list that does not exist, or a block outside of [0, blocks), is undefined behaviour.
class BlockLists {
 public:
  /// For blocks 0 .. blocks-1, with lists 0 .. lists-1, all empty. Throws std::bad_alloc. O(blocks).
  explicit BlockLists(Index blocks, int lists = 1) : blocks_(static_cast<std::uint32_t>(blocks)) {
    reserve(lists);
    links_.resize(blocks_);
    for (int i = 0; i < lists; ++i) {
      add_list();
    }
  }

  /// Makes room for so many lists: add_list does not allocate before there are as many. O(blocks) if it has to, and
  /// then it makes room for twice as many.
  void reserve(int lists) {
    const std::size_t links = blocks_ + static_cast<std::size_t>(lists);
    if (links > links_.capacity()) {
      links_.reserve(links_.empty() ? links : links + static_cast<std::size_t>(lists));
    }
  }
  /// One more list; lists are numbered from 0.
  void add_list() {
    const auto end = static_cast<std::uint32_t>(links_.size());
    links_.push_back({end, end});
  }

  /// Puts a block that is in no list at the newest end of one.
  void push_newest(int list, BlockId block) noexcept { put_before(end_of(list), static_cast<std::uint32_t>(block)); }
  /// Puts a block that is in no list at the oldest end of one.
  void push_oldest(int list, BlockId block) noexcept {
    put_before(links_[end_of(list)].newer, static_cast<std::uint32_t>(block));
  }

  /// Puts a block that is in no list next to one that is in a list, at its older side.
  void push_before(BlockId newer, BlockId block) noexcept {
    put_before(static_cast<std::uint32_t>(newer), static_cast<std::uint32_t>(block));
  }

  /// Takes a block out of the list that it is in.
  void erase(BlockId block) noexcept {
    const Link link = links_[static_cast<std::size_t>(block)];
    links_[link.older].newer = link.newer;
    links_[link.newer].older = link.older;
  }

  /// The block at the oldest end; no_block if the list is empty.
  [[nodiscard]] BlockId oldest(int list) const noexcept { return block_at(links_[end_of(list)].newer); }
  /// The block at the newest end; no_block if the list is empty.
  [[nodiscard]] BlockId newest(int list) const noexcept { return block_at(links_[end_of(list)].older); }
  /// The next newer block in the list of a block; no_block if it is the newest.
  [[nodiscard]] BlockId newer(BlockId block) const noexcept {
    return block_at(links_[static_cast<std::size_t>(block)].newer);
  }
  /// The next older block in its list; no_block if it is the oldest.
  [[nodiscard]] BlockId older(BlockId block) const noexcept {
    return block_at(links_[static_cast<std::size_t>(block)].older);
  }
  /// Whether no block is in the list.
  [[nodiscard]] bool empty(int list) const noexcept { return oldest(list) == no_block; }

 private:
  // Each list is closed to a ring by one link more: its `newer` is the oldest block, its `older` the newest.
  struct Link {
    std::uint32_t older;
    std::uint32_t newer;
  };
  [[nodiscard]] std::uint32_t end_of(int list) const noexcept { return blocks_ + static_cast<std::uint32_t>(list); }
  [[nodiscard]] BlockId block_at(std::uint32_t i) const noexcept {
    return i < blocks_ ? static_cast<BlockId>(i) : no_block;
  }
  void put_before(std::uint32_t next, std::uint32_t block) noexcept {
    const std::uint32_t before = links_[next].older;
    links_[block] = {before, next};
    links_[before].newer = block;
    links_[next].older = block;
  }

  detail::LargeVector<Link> links_;  // [blocks + lists]
  std::uint32_t blocks_;
};

}  // namespace v0
}  // namespace kvc
