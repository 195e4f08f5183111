// SequenceTable and SequenceLengths: the open sequences of a policy by handle, and the counts that each of them has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// A record for each open sequence. `Record` is default-constructible; if it has `void reset() noexcept`, that is
/// called when its sequence is closed, so that it can keep memory for the next one; otherwise a new Record is assigned.
///
/// Slots of closed sequences are used again, each time with a new generation: a handle that outlived its sequence is
/// recognised. Records move when room is made, so references to them are valid until the next insert or reserve.
template <class Record>
class SequenceTable {
 public:
  /// Makes room for one more sequence, so that the next `insert` cannot fail. O(1), amortised. Throws std::bad_alloc;
  /// nothing has changed then.
  void reserve() {
    if (free_.empty()) {
      require(entries_.size() < max_size, "open sequences", entries_.size(), "less than 2^32 - 1");
      free_.reserve(entries_.size() + 1);  // so that erase cannot fail
      entries_.emplace_back();
      ++size_;
      free_.push_back(static_cast<std::uint32_t>(entries_.size() - 1));
    }
  }
  /// A new sequence with a fresh record. O(1), amortised. Throws std::bad_alloc; nothing has changed then.
  SeqId insert() {
    reserve();
    const std::uint32_t index = free_.back();
    free_.pop_back();
    Entry& entry = entries_[index];
    ++entry.generation;
    return {index, entry.generation};
  }

  /// Closes an open sequence. O(1).
  void erase(SeqId seq) noexcept {
    Entry& entry = entries_[seq.index];
    if constexpr (requires { entry.record.reset(); }) {
      entry.record.reset();
    } else {
      entry.record = Record{};
    }
    ++entry.generation;
    free_.push_back(seq.index);
  }

  /// Whether the handle is that of an open sequence. O(1).
  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return seq.index < size_ && entries_[seq.index].generation == seq.generation && is_open(seq.generation);
  }

  /// The record of an open sequence. O(1). Throws std::invalid_argument that names `seq` if the sequence is not open.
  [[nodiscard]] KVC_ALWAYS_INLINE Record& at(SeqId seq) {
    if (!contains(seq)) [[unlikely]] {
      throw_not_open(seq);
    }
    return entries_[seq.index].record;
  }
  /// The same for reading.
  [[nodiscard]] KVC_ALWAYS_INLINE const Record& at(SeqId seq) const {
    if (!contains(seq)) [[unlikely]] {
      throw_not_open(seq);
    }
    return entries_[seq.index].record;
  }
  /// The same, or nullptr if the sequence is not open.
  [[nodiscard]] Record* find(SeqId seq) noexcept { return contains(seq) ? &entries_[seq.index].record : nullptr; }

  /// Open sequences.
  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(entries_.size() - free_.size()); }

  /// f(record) for every open sequence. O(sequences that were ever open at once), as for_each_handle.
  template <class F>
  void for_each(F&& f) const {
    for (const Entry& entry : entries_) {
      if (is_open(entry.generation)) {
        f(entry.record);
      }
    }
  }
  /// The same with records that may be changed.
  template <class F>
  void for_each(F&& f) {
    for (Entry& entry : entries_) {
      if (is_open(entry.generation)) {
        f(entry.record);
      }
    }
  }
  /// f(SeqId, record) for every open sequence.
  template <class F>
  void for_each_handle(F&& f) const {
    for (std::uint32_t index = 0; index < size_; ++index) {
      if (is_open(entries_[index].generation)) {
        f(SeqId{index, entries_[index].generation}, entries_[index].record);
      }
    }
  }

 private:
  static constexpr std::size_t max_size = 0xffff'ffff;
  struct alignas(64) Entry {
    Record record{};
    std::uint32_t generation = 0;  // odd while it is open
  };
  [[nodiscard]] static constexpr bool is_open(std::uint32_t generation) noexcept { return generation % 2 == 1; }
  [[noreturn]] KVC_COLD static void throw_not_open(SeqId seq) { throw_invalid("seq", seq, "an open sequence"); }

  std::vector<Entry> entries_;
  std::uint32_t size_ = 0;  // entries_.size(), without the division that this takes
  std::vector<std::uint32_t> free_;
};

/// The lengths of a sequence, and the checks of arguments that the contract of Policy demands. Checks throw
/// std::invalid_argument and change nothing.
struct SequenceLengths {
  Pos committed = 0;
  Pos reserved = 0;          ///< committed, plus the positions that try_extend has reserved
  bool uncommitted = false;  ///< between try_extend and commit or rollback

  /// The positions of try_extend(seq, count, tokens). Throws unless it is allowed.
  [[nodiscard]] PosRange checked_extension(SeqId seq, Pos count, std::size_t tokens) const {
    check_committed(seq);
    if (count < 0 || count > max_pos - committed) [[unlikely]] {
      throw_count(count, max_pos - committed);
    }
    if (tokens != 0 && tokens != static_cast<std::size_t>(count)) [[unlikely]] {
      throw_tokens(tokens);
    }
    return {committed, committed + count};
  }
  /// Throws unless commit(seq) is allowed.
  void check_uncommitted(SeqId seq) const {
    if (!uncommitted) [[unlikely]] {
      throw_committed(seq);
    }
  }
  /// Throws if the sequence has an uncommitted extension.
  void check_committed(SeqId seq) const {
    if (uncommitted) [[unlikely]] {
      throw_uncommitted(seq);
    }
  }
  /// Throws unless truncate(seq, length) is allowed.
  void check_truncate(SeqId seq, Pos length) const {
    check_committed(seq);
    require_between(length, Pos{0}, committed, "length");
  }
  /// Throws unless the sequence is empty, so that try_restore is allowed.
  void check_restore(SeqId seq) const {
    check_committed(seq);
    require(committed == 0, "seq", seq, "an empty sequence");
  }
  /// Throws unless try_fork(seq, at) is allowed.
  void check_fork(Pos at) const { require_between(at, Pos{0}, committed, "at"); }
  /// Throws unless for_each_run(seq, range, f) is allowed.
  void check_range(PosRange range) const {
    require(0 <= range.first && range.first <= range.last && range.last <= reserved, "range", range,
            "within the positions of the sequence");
  }

  /// Checks that the counts agree, and that a table of so many blocks covers the reserved positions and no more. Throws
  /// InvariantError.
  void verify(std::size_t blocks, Pos block_tokens) const {
    if (committed > reserved || (!uncommitted && committed != reserved) ||
        static_cast<Index>(blocks) != ceil_div<Index>(reserved, block_tokens)) {
      throw_error(InvariantError("kvc: a block table of " + std::to_string(blocks) + " blocks for " +
                                 std::to_string(reserved) + " positions"));
    }
  }

  /// The effects of try_extend, commit, rollback, and of truncate or fork to a length.
  void reserve(PosRange range) noexcept {
    reserved = range.last;
    uncommitted = true;
  }
  /// The same by one position, which is returned.
  PosRange append() noexcept {
    reserve({committed, committed + 1});
    return {committed, reserved};
  }
  /// Ends an extension: what was reserved is committed.
  void commit() noexcept {
    committed = reserved;
    uncommitted = false;
  }
  /// Ends an extension: what was reserved is forgotten.
  void rollback() noexcept {
    reserved = committed;
    uncommitted = false;
  }
  /// Makes this the length of a sequence without an uncommitted extension.
  void set(Pos length) noexcept { *this = {length, length, false}; }

 private:
  // Out of line, and with their argument by value: the checks of a decode step should cost a comparison each.
  [[noreturn]] KVC_COLD static void throw_uncommitted(SeqId seq) {
    throw_invalid("seq", seq, "a sequence without an uncommitted extension");
  }
  [[noreturn]] KVC_COLD static void throw_committed(SeqId seq) {
    throw_invalid("seq", seq, "a sequence with an uncommitted extension");
  }
  [[noreturn]] KVC_COLD static void throw_count(Pos count, Pos most) {
    throw_invalid("count", count, detail::concat({"between 0 and ", std::to_string(most)}));
  }
  [[noreturn]] KVC_COLD static void throw_tokens(std::size_t tokens) {
    throw_invalid("number of tokens", tokens, "0 or the count of positions");
  }
};

}  // namespace v0
}  // namespace kvc
