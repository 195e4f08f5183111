// SequenceTable: open sequences by handle.
//
// Closed slots are used again, each time with a new generation, so a handle that outlived its sequence is recognised. A
// record is reset, not destroyed, when its sequence is closed: the memory of its block table serves the next one.
#pragma once

#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc::inline v0::detail {

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
      free_.push_back(static_cast<std::uint32_t>(entries_.size() - 1));
    }
    const std::uint32_t slot = free_.back();
    free_.pop_back();
    Entry& entry = entries_[slot];
    entry.open = true;
    return {slot, entry.generation};
  }

  void erase(SeqId seq) noexcept {
    Entry& entry = entries_[seq.slot];
    entry.record.reset();
    entry.open = false;
    ++entry.generation;
    free_.push_back(seq.slot);
  }

  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return seq.slot < entries_.size() && entries_[seq.slot].open && entries_[seq.slot].generation == seq.generation;
  }

  /// Throws std::invalid_argument if the sequence is not open.
  [[nodiscard]] Record& at(SeqId seq) {
    require(contains(seq), "seq", seq, "an open sequence");
    return entries_[seq.slot].record;
  }
  [[nodiscard]] const Record& at(SeqId seq) const {
    require(contains(seq), "seq", seq, "an open sequence");
    return entries_[seq.slot].record;
  }

  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(entries_.size() - free_.size()); }

  template <class F>
  void for_each(F&& f) const {
    for (const Entry& entry : entries_) {
      if (entry.open) {
        f(entry.record);
      }
    }
  }
  template <class F>
  void for_each(F&& f) {
    for (Entry& entry : entries_) {
      if (entry.open) {
        f(entry.record);
      }
    }
  }

 private:
  static constexpr std::size_t max_slots = 0xffff'ffff;
  struct Entry {
    Record record{};
    std::uint32_t generation = 0;
    bool open = false;
  };
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> free_;
};

/// The counts of a sequence that every policy keeps.
struct Lengths {
  Pos committed = 0;
  Pos reserved = 0;      ///< committed, plus what try_extend has reserved
  bool pending = false;  ///< between try_extend and commit or rollback
};

inline void require_settled(const Lengths& lengths, SeqId seq) {
  require(!lengths.pending, "seq", seq, "a sequence without an uncommitted extend");
}

inline void require_pending(const Lengths& lengths, SeqId seq) {
  require(lengths.pending, "seq", seq, "a sequence with an uncommitted extend");
}

/// Checks the arguments of try_extend.
inline void require_extension(const Lengths& lengths, SeqId seq, Pos count, std::size_t tokens) {
  require_settled(lengths, seq);
  require_between(count, Pos{0}, static_cast<Pos>(max_pos - lengths.committed), "count");
  require(tokens == 0 || tokens == static_cast<std::size_t>(count), "number of tokens", tokens,
          "0 or the count of positions");
}

inline void require_range(PosRange range, Pos length) {
  require(0 <= range.first && range.first <= range.last && range.last <= length, "range", range,
          "within the positions of the sequence");
}

}  // namespace kvc::inline v0::detail
