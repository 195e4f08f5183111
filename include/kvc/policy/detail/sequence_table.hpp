// SequenceTable: open sequences by handle.
//
// Closed slots are used again, each time with a new generation, so a handle that outlived its sequence is recognised. A
// record is reset, not destroyed, when its sequence is closed: the memory of its block table serves the next one.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Record must be default-constructible and have `void reset() noexcept`.
template <class Record>
class SequenceTable {
 public:
  /// A new sequence with a fresh record. O(1), amortised. Throws std::bad_alloc; nothing has changed then.
  SeqId insert() {
    if (free_.empty()) {
      require(entries_.size() < max_slots, "open sequences", entries_.size(), "less than 2^32 - 1");
      free_.reserve(entries_.size() + 1);  // so that erase cannot fail
      entries_.emplace_back();
      ++slots_;
      free_.push_back(static_cast<std::uint32_t>(entries_.size() - 1));
    }
    const std::uint32_t slot = free_.back();
    free_.pop_back();
    Entry& entry = entries_[slot];
    ++entry.generation;
    return {slot, entry.generation};
  }

  void erase(SeqId seq) noexcept {
    Entry& entry = entries_[seq.slot];
    entry.record.reset();
    ++entry.generation;
    free_.push_back(seq.slot);
  }

  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return seq.slot < slots_ && entries_[seq.slot].generation == seq.generation && is_open(seq.generation);
  }

  /// Throws std::invalid_argument if the sequence is not open.
  [[nodiscard]] Record& at(SeqId seq) {
    if (!contains(seq)) [[unlikely]] {
      throw_not_open(seq);
    }
    return entries_[seq.slot].record;
  }
  [[nodiscard]] const Record& at(SeqId seq) const {
    if (!contains(seq)) [[unlikely]] {
      throw_not_open(seq);
    }
    return entries_[seq.slot].record;
  }

  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(entries_.size() - free_.size()); }

  template <class F>
  void for_each(F&& f) const {
    for (const Entry& entry : entries_) {
      if (is_open(entry.generation)) {
        f(entry.record);
      }
    }
  }
  /// f(SeqId, record).
  template <class F>
  void for_each_handle(F&& f) const {
    for (std::uint32_t slot = 0; slot < slots_; ++slot) {
      if (is_open(entries_[slot].generation)) {
        f(SeqId{slot, entries_[slot].generation}, entries_[slot].record);
      }
    }
  }
  template <class F>
  void for_each(F&& f) {
    for (Entry& entry : entries_) {
      if (is_open(entry.generation)) {
        f(entry.record);
      }
    }
  }

 private:
  static constexpr std::size_t max_slots = 0xffff'ffff;
  struct alignas(64) Entry {
    Record record{};
    std::uint32_t generation = 0;  // odd while it is open
  };
  [[nodiscard]] static constexpr bool is_open(std::uint32_t generation) noexcept { return generation % 2 == 1; }
  [[noreturn]] KVC_COLD static void throw_not_open(SeqId seq) { throw_invalid("seq", seq, "an open sequence"); }

  std::vector<Entry> entries_;
  std::uint32_t slots_ = 0;  // entries_.size(), without the division that this takes
  std::vector<std::uint32_t> free_;
};

/// The counts of a sequence that every policy keeps.
struct Lengths {
  Pos committed = 0;
  Pos reserved = 0;          ///< committed, plus what try_extend has reserved
  bool uncommitted = false;  ///< between try_extend and commit or rollback
};

// Out of line, and with their argument by value: the checks of a decode step should cost a comparison each.
[[noreturn]] KVC_COLD inline void throw_uncommitted(SeqId seq) {
  throw_invalid("seq", seq, "a sequence without an uncommitted extend");
}
[[noreturn]] KVC_COLD inline void throw_not_uncommitted(SeqId seq) {
  throw_invalid("seq", seq, "a sequence with an uncommitted extend");
}

[[noreturn]] KVC_COLD inline void throw_count(Pos count, Pos most) {
  throw_invalid("count", count, concat({"between 0 and ", std::to_string(most)}));
}
[[noreturn]] KVC_COLD inline void throw_tokens(std::size_t tokens) {
  throw_invalid("number of tokens", tokens, "0 or the count of positions");
}

inline void require_committed(const Lengths& lengths, SeqId seq) {
  if (lengths.uncommitted) [[unlikely]] {
    throw_uncommitted(seq);
  }
}

inline void require_uncommitted(const Lengths& lengths, SeqId seq) {
  if (!lengths.uncommitted) [[unlikely]] {
    throw_not_uncommitted(seq);
  }
}

/// Checks the arguments of try_extend.
inline void require_extension(const Lengths& lengths, SeqId seq, Pos count, std::size_t tokens) {
  require_committed(lengths, seq);
  if (count < 0 || count > max_pos - lengths.committed) [[unlikely]] {
    throw_count(count, max_pos - lengths.committed);
  }
  if (tokens != 0 && tokens != static_cast<std::size_t>(count)) [[unlikely]] {
    throw_tokens(tokens);
  }
}

inline void require_range(PosRange range, Pos length) {
  require(0 <= range.first && range.first <= range.last && range.last <= length, "range", range,
          "within the positions of the sequence");
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
