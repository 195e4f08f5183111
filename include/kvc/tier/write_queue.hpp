// WriteQueue: the cached blocks that one slower tier still lacks, in an order in which no block goes before its parent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// How far a block of the pool has come on its way to a tier.
enum class WriteState : std::uint8_t {
  none,       ///< nothing, and nothing is planned
  waiting,    ///< to be written after its parent
  ready,      ///< to be written: its parent is recorded, or it has none
  under_way,  ///< being written
  recorded    ///< a record
};

/// Integers only. A block is handed out by `take` when its parent is recorded, never before: whenever a process dies,
/// each record of the tier has its parent there. Of several blocks that are ready, the one that became so first goes
/// first. With `pipelined`, a block is handed out when its parent is under way, too; if the parent's write then fails,
/// `finish` of the child says that it must be erased.
///
///   none -> waiting -> ready -> under_way -> recorded
///
/// A block that is forgotten, or whose write failed, takes all blocks that wait for it along, and for each of them
/// `dropped` counts one. Members but the constructor and `verify` do not throw; O(1), or O(blocks dropped).
class WriteQueue {
 public:
  /// For blocks 0 .. blocks-1, of none of which the tier has anything. Throws std::bad_alloc. O(blocks).
  explicit WriteQueue(Index blocks, bool pipelined = false) : entries_(blocks), pipelined_(pipelined) {}

  /// The state of a block.
  [[nodiscard]] WriteState state(BlockId block) const noexcept { return entries_[block].state; }
  /// Blocks that are waiting or ready.
  [[nodiscard]] Index pending() const noexcept { return pending_; }
  /// Blocks that were planned and will not be written.
  [[nodiscard]] Index dropped() const noexcept { return dropped_; }

  /// Plans to write a block of which there is nothing. `parent` is no_block for the first block of a prefix, and
  /// otherwise a block of which there is something. False, and nothing has changed, if there is nothing of the parent.
  bool add(BlockId block, BlockId parent) noexcept {
    KVC_ASSERT(state(block) == WriteState::none);
    const WriteState of_parent = parent == no_block ? WriteState::recorded : state(parent);
    if (of_parent == WriteState::none) {
      return false;
    }
    ++pending_;
    entries_[block].parent = parent;
    if (of_parent == WriteState::recorded || (pipelined_ && of_parent == WriteState::under_way)) {
      entries_[block].state = WriteState::ready;
      push(ready_, block);
    } else {
      entries_[block].state = WriteState::waiting;
      push(entries_[parent].children, block);
    }
    return true;
  }
  /// The tier has a record of a block of which there was nothing: it was read from there.
  void hold(BlockId block) noexcept {
    KVC_ASSERT(state(block) == WriteState::none);
    entries_[block].state = WriteState::recorded;
  }

  /// The block to write next, which is under way from now on; empty if none is ready. Blocks whose parents the tier has
  /// lost meanwhile are dropped.
  std::optional<BlockId> take() noexcept {
    while (ready_.first != no_block && !has_parent(ready_.first)) {
      forget(ready_.first);
    }
    if (ready_.first == no_block) {
      return std::nullopt;
    }
    const BlockId block = ready_.first;
    take(block);
    return block;
  }
  /// The same for a block that is ready.
  void take(BlockId block) noexcept {
    KVC_ASSERT(state(block) == WriteState::ready);
    erase(ready_, block);
    --pending_;
    entries_[block].state = WriteState::under_way;
    if (pipelined_) {
      make_children_ready(block);
    }
  }
  /// Puts a block that is under way back to the front of those that are ready.
  void put_back(BlockId block) noexcept {
    KVC_ASSERT(state(block) == WriteState::under_way);
    entries_[block].state = WriteState::ready;
    push_front(ready_, block);
    ++pending_;
  }
  /// The record of a block that was under way is there. The blocks that waited for it become ready. False if its parent
  /// is not to be there: then there is nothing of the block either, and its record is to be erased.
  bool finish(BlockId block) noexcept {
    KVC_ASSERT(state(block) == WriteState::under_way);
    if (!has_parent(block)) {
      forget(block);
      return false;
    }
    entries_[block].state = WriteState::recorded;
    make_children_ready(block);
    return true;
  }
  /// The tier has nothing of this block any more: its write failed, or it left the pool, or the tier lost its record.
  void forget(BlockId block) noexcept {
    switch (state(block)) {
      case WriteState::waiting:
        erase(entries_[entries_[block].parent].children, block);
        --pending_;
        ++dropped_;
        break;
      case WriteState::ready:
        erase(ready_, block);
        --pending_;
        ++dropped_;
        break;
      default:
        break;
    }
    entries_[block].state = WriteState::none;
    List& children = entries_[block].children;
    while (children.first != no_block) {  // children of a child come to the end of the same list
      const BlockId child = children.first;
      erase(children, child);
      for (List& more = entries_[child].children; more.first != no_block;) {
        const BlockId grandchild = more.first;
        erase(more, grandchild);
        push(children, grandchild);
      }
      entries_[child].state = WriteState::none;
      --pending_;
      ++dropped_;
    }
  }
  /// Forgets all blocks. O(blocks).
  void clear() noexcept {
    dropped_ += pending_;
    pending_ = 0;
    ready_ = {};
    for (Entry& entry : entries_.values()) {
      entry = {};
    }
  }

  /// Lists and states agree. O(blocks). Throws InvariantError.
  void verify() const {
    Index listed = 0;
    const auto check_list = [&](const List& list, WriteState state, BlockId parent) {
      for (BlockId b = list.first; b != no_block; b = entries_[b].next) {
        ++listed;
        if (entries_[b].state != state || (parent != no_block && entries_[b].parent != parent)) {
          throw_error(InvariantError("kvc: block " + std::to_string(to_index(b)) + " is in a list of another state"));
        }
      }
    };
    check_list(ready_, WriteState::ready, no_block);
    Index pending = 0;
    entries_.for_each([&](BlockId block, const Entry& entry) {
      pending += entry.state == WriteState::waiting || entry.state == WriteState::ready ? 1 : 0;
      check_list(entry.children, WriteState::waiting, block);
      if (entry.children.first != no_block &&
          (entry.state == WriteState::none || entry.state == WriteState::recorded)) {
        throw_error(InvariantError("kvc: blocks wait for block " + std::to_string(to_index(block)) +
                                   ", which is not to be written"));
      }
    });
    if (pending != pending_ || listed != pending_) {
      throw_error(InvariantError("kvc: " + std::to_string(pending_) + " blocks are to be written, and " +
                                 std::to_string(pending) + " are waiting or ready, " + std::to_string(listed) +
                                 " of them in a list"));
    }
  }

 private:
  struct List {
    BlockId first = no_block;
    BlockId last = no_block;
  };
  struct Entry {
    WriteState state = WriteState::none;
    BlockId parent = no_block;  // that it waits for
    List children{};            // that wait for it
    BlockId next = no_block;    // in the list that it is in
    BlockId previous = no_block;
  };

  /// Whether the tier has something of the block's parent, or the block needs none.
  [[nodiscard]] bool has_parent(BlockId block) const noexcept {
    const BlockId parent = entries_[block].parent;
    return parent == no_block || state(parent) != WriteState::none;
  }
  void make_children_ready(BlockId block) noexcept {
    List& children = entries_[block].children;
    while (children.first != no_block) {
      const BlockId child = children.first;
      erase(children, child);
      entries_[child].state = WriteState::ready;
      push(ready_, child);
    }
  }
  void push(List& list, BlockId block) noexcept {
    entries_[block].next = no_block;
    entries_[block].previous = list.last;
    (list.last == no_block ? list.first : entries_[list.last].next) = block;
    list.last = block;
  }
  void push_front(List& list, BlockId block) noexcept {
    entries_[block].previous = no_block;
    entries_[block].next = list.first;
    (list.first == no_block ? list.last : entries_[list.first].previous) = block;
    list.first = block;
  }
  void erase(List& list, BlockId block) noexcept {
    const Entry& entry = entries_[block];
    (entry.previous == no_block ? list.first : entries_[entry.previous].next) = entry.next;
    (entry.next == no_block ? list.last : entries_[entry.next].previous) = entry.previous;
  }

  BlockArray<Entry> entries_;
  bool pipelined_;
  List ready_;
  Index pending_ = 0;
  Index dropped_ = 0;
};

}  // namespace tier
}  // namespace v0
}  // namespace kvc
