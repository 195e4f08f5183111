// PlainRegions: sequences with one region of slots each. Contiguous uses it when it holds one layer group that keeps
// everything.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/policy/detail/region_list.hpp"
#include "kvc/policy/detail/region_sizes.hpp"
#include "kvc/policy/sequence_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// A sequence of n positions lies in the first n slots of its region. Contracts are those of Policy unless they are
/// stated.
class PlainRegions {
 public:
  struct Sequence {
    SequenceLengths lengths;
    Pos start = 0;
    Pos capacity = 0;
    Pos most = 0;                // the most tokens of this sequence
    Pos committed_capacity = 0;  // before the uncommitted extension
    Region replaced;             // its place before the uncommitted extension moved it
  };

  /// A pool of so many slots. Throws std::bad_alloc.
  PlainRegions(Pos slots, const RegionOptions& options)
      : options_(options), slots_(slots), holes_(slots, 2 * options.sequences) {}

  [[nodiscard]] Sequence& at(SeqId seq) { return sequences_.at(seq); }
  [[nodiscard]] const Sequence& at(SeqId seq) const { return sequences_.at(seq); }
  [[nodiscard]] bool contains(SeqId seq) const noexcept { return sequences_.contains(seq); }
  /// f(SeqId, sequence) for all open ones.
  template <class F>
  void for_each_handle(F&& f) const {
    sequences_.for_each_handle(f);
  }
  [[nodiscard]] Index available() const noexcept { return holes_.available(); }
  [[nodiscard]] Index copied_tokens() const noexcept { return copied_tokens_; }

  /// A new sequence of at most `most` tokens. O(holes).
  std::optional<SeqId> try_open(Pos most) { return try_insert(most, 0); }
  /// O(holes).
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::size_t tokens) {
    Sequence& s = sequences_.at(seq);
    const PosRange range = s.lengths.checked_extension(seq, count, tokens);
    const Pos need = range.last;
    std::span<const RowCopy> copies;
    s.committed_capacity = s.capacity;
    if (need > s.capacity && (options_.reserves || need > s.most || !grow(s, need, copies))) {
      return std::nullopt;
    }
    s.lengths.reserve(range);
    return Extension{range, copies};
  }
  /// O(holes).
  void commit(SeqId seq) {
    Sequence& s = sequences_.at(seq);
    s.lengths.check_uncommitted(seq);
    s.lengths.commit();
    holes_.free(std::exchange(s.replaced, {}));
  }
  /// A sequence that moved returns to its place.
  void rollback(SeqId seq) noexcept {
    if (Sequence* const open = sequences_.find(seq); open != nullptr && open->lengths.uncommitted) {
      Sequence& s = *open;
      shrink(s, s.replaced.size > 0 ? 0 : s.committed_capacity);
      if (s.replaced.size > 0) {
        s.start = s.replaced.start;
        s.capacity = std::exchange(s.replaced, {}).size;
      }
      s.lengths.rollback();
    }
  }
  /// A new sequence with copies of the first `at` rows. O(holes).
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    const Sequence& p = sequences_.at(parent);
    p.lengths.check_fork(at);
    const Pos start = p.start;
    const std::optional<SeqId> seq = try_insert(p.most, at);
    if (!seq) {
      return std::nullopt;
    }
    Sequence& s = sequences_.at(*seq);
    s.lengths.set(at);
    return Forked{*seq, copy_rows(start, s.start, at)};
  }
  /// In grow mode the slots behind the new end are free again.
  void truncate(SeqId seq, Pos length) {
    Sequence& s = sequences_.at(seq);
    s.lengths.check_truncate(seq, length);
    s.lengths.set(length);
    if (!options_.reserves) {
      shrink(s, std::min(s.capacity, rounded(length, s.most)));
    }
  }
  /// O(holes).
  void close(SeqId seq) {
    Sequence& s = sequences_.at(seq);
    holes_.free(s.replaced);
    shrink(s, 0);
    sequences_.erase(seq);
  }

  /// The limit that try_open would meet.
  [[nodiscard]] LimitMet why_not_open(Pos most) const noexcept { return why_not_insert(most, 0); }
  /// The limit that try_extend would meet. Throws as that does.
  [[nodiscard]] LimitMet why_not_extend(SeqId seq, Pos count) const {
    const Sequence& s = sequences_.at(seq);
    const Pos need = s.lengths.checked_extension(seq, count, 0).last;
    if (need > s.most) {
      return {Limit::max_tokens, s.most, need};
    }
    // In grow mode only: beside its place, or in one piece elsewhere, while it has both.
    const bool fits = need <= s.capacity || holes_.largest() >= need ||
                      (s.capacity > 0 && holes_.free_at(s.start + s.capacity) >= need - s.capacity);
    return fits ? LimitMet{} : why_no_hole(need);
  }
  /// The limit that try_fork would meet. Throws as that does.
  [[nodiscard]] LimitMet why_not_fork(SeqId seq, Pos at) const {
    sequences_.at(seq).lengths.check_fork(at);
    return why_not_insert(sequences_.at(seq).most, at);
  }

  /// f(SlotRun) with one run, unless the range is empty. O(1).
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    const Sequence& s = sequences_.at(seq);
    s.lengths.check_range(range);
    if (!range.empty()) {
      f(SlotRun{BlockId{0}, s.start + range.first, range.size(), range.first});
    }
  }

  /// Fills in the counts of slots, sequences and copies. O(sequences + holes).
  void add_to(Stats& stats) const {
    stats.blocks_total = slots_;
    stats.blocks_free = holes_.available();
    stats.blocks_referenced = stats.blocks_total - stats.blocks_free;
    stats.largest_free_run = holes_.largest();
    stats.sequences = sequences_.size();
    sequences_.for_each([&](const Sequence& s) { stats.tokens_stored += s.lengths.committed; });
    stats.tokens_reserved = stats.blocks_referenced;
    stats.copies = copies_;
    stats.copied_tokens = copied_tokens_;
  }
  /// Regions and holes tile the pool: no overlap, no gap. O(n log n). Throws InvariantError.
  void verify() const {
    std::vector<Region> taken;
    sequences_.for_each([&](const Sequence& s) {
      if (s.lengths.committed > s.lengths.reserved || s.lengths.reserved > s.capacity || s.capacity > s.most) {
        throw_error(InvariantError("kvc: a sequence is longer than its allocation"));
      }
      if (s.capacity > 0) {
        taken.push_back({s.start, s.capacity});
      }
      if (s.replaced.size > 0) {
        taken.push_back(s.replaced);
      }
    });
    holes_.verify(std::move(taken));
  }

 private:
  template <class>
  friend struct testing::Corruption;

  [[nodiscard]] Pos rounded(Pos need, Pos most) const noexcept {
    const Index up = ceil_div<Index>(need, options_.growth_tokens) * options_.growth_tokens;
    return static_cast<Pos>(std::min<Index>(up, most));
  }
  [[nodiscard]] LimitMet why_no_hole(Pos need) const noexcept {
    return holes_.available() < need ? LimitMet{Limit::pool, holes_.available(), need}
                                     : LimitMet{Limit::fragmentation, holes_.largest(), need};
  }
  [[nodiscard]] LimitMet why_not_insert(Pos most, Pos need) const noexcept {
    if (sequences_.size() >= options_.sequences) {
      return {Limit::sequences, options_.sequences, sequences_.size() + 1};
    }
    const Pos wanted = options_.reserves ? most : need;
    return holes_.largest() >= wanted ? LimitMet{} : why_no_hole(wanted);
  }

  /// A new sequence with its first region: all of `most` (reserve), or `need` rounded up.
  std::optional<SeqId> try_insert(Pos most, Pos need) {
    if (sequences_.size() >= options_.sequences) {
      return std::nullopt;
    }
    const Pos want = options_.reserves ? most : rounded(need, most);
    const std::optional<Region> region = holes_.find(want, options_.reserves ? most : need, options_.fit);
    if (!region) {
      return std::nullopt;
    }
    const SeqId seq = sequences_.insert();
    holes_.allocate(*region);
    Sequence& s = sequences_.at(seq);
    s.most = most;
    s.start = region->start;
    s.capacity = region->size;
    return seq;
  }

  /// Makes room for `need` slots, in place or elsewhere. False, and nothing has changed, if there is none.
  [[nodiscard]] bool grow(Sequence& s, Pos need, std::span<const RowCopy>& copies) noexcept {
    const Pos want = rounded(need, s.most);
    if (const Pos behind = holes_.free_at(s.start + s.capacity); behind >= need - s.capacity && s.capacity > 0) {
      const Pos more = std::min(behind, want - s.capacity);
      holes_.allocate({s.start + s.capacity, more});
      s.capacity += more;
      return true;
    }
    const std::optional<Region> region = holes_.find(want, need, options_.fit);
    if (!region) {
      return false;
    }
    holes_.allocate(*region);
    copies = copy_rows(s.start, region->start, s.lengths.committed);
    s.replaced = {s.start, s.capacity};
    s.start = region->start;
    s.capacity = region->size;
    return true;
  }
  void shrink(Sequence& s, Pos capacity) noexcept {
    if (capacity < s.capacity) {
      holes_.free({s.start + capacity, s.capacity - capacity});
      s.capacity = capacity;
    }
  }
  /// The list of copies that moves or forks `count` rows: empty if there are none.
  [[nodiscard]] std::span<const RowCopy> copy_rows(Pos from, Pos to, Pos count) noexcept {
    if (count == 0) {
      return {};
    }
    copy_ = {BlockId{0}, BlockId{0}, from, to, count};
    ++copies_;
    copied_tokens_ += count;
    return {&copy_, 1};
  }

  RegionOptions options_;
  Pos slots_;
  RegionList holes_;
  SequenceTable<Sequence> sequences_;
  RowCopy copy_;  // of the last operation that copied rows
  Index copies_ = 0;
  Index copied_tokens_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
