// Restoring: room for what is in a snapshot, taken from a cache of any policy, and where each row goes.
//
// Everything is done with what every cache offers: open, fork, extend and commit. The longest sequence is opened, the
// others are forked from one that shares most with them, so blocks that were shared are shared again; where a policy
// copies (a tail, or all rows of a contiguous sequence) the rows go to each place. Tokens are told last, when all rows
// are right: until then nothing can be matched, and nobody has seen a handle, so all of it can be taken back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/snapshot/collect.hpp"
#include "kvc/snapshot/contents.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {
namespace detail {

/// Where rows of a stored block go.
struct Target {
  std::int32_t source;  // number of the stored block
  bool first;           // false: the rows have been put elsewhere too, and are copied from there
  Pos row;              // of the stored block
  layout::SlotSpan to;
};

template <class Cache>
class Restorer {
 public:
  using Policy = typename Cache::PolicyType;

  /// `cached`: also blocks that were only cached, if the policy caches.
  Restorer(Cache& cache, const Contents& contents, bool cached) : cache_(&cache), c_(&contents) {
    plan(cached && KeepsPrefixes<Policy>);
  }
  Restorer(const Restorer&) = delete;
  Restorer& operator=(const Restorer&) = delete;
  ~Restorer() { take_back(); }

  /// Positions that room is needed for, what is shared once.
  [[nodiscard]] Index tokens() const noexcept {
    Index sum = 0;
    for (const Line& line : lines_) {
      sum += line.length - line.shared;
    }
    return sum;
  }
  /// Entries of the block tables that the sequences will have.
  [[nodiscard]] std::uint64_t table_entries() const noexcept {
    std::uint64_t sum = 0;
    for (const Line& line : lines_) {
      sum += static_cast<std::uint64_t>(ceil_div(line.length, cache_->policy().block_tokens()));
    }
    return sum;
  }
  /// Blocks of a cache with block tables that will be taken.
  [[nodiscard]] Index blocks() const noexcept {
    const Index block_tokens = cache_->policy().block_tokens();
    Index sum = 0;
    for (const Line& line : lines_) {
      sum += line.length == line.shared ? 0 : ceil_div<Index>(line.length, block_tokens) - line.shared / block_tokens;
    }
    return sum;
  }

  /// Opens and extends. False if there is no room: nothing has changed then.
  bool try_reserve() {
    if constexpr (KeepsPrefixes<Policy>) {  // an attempt would evict before it is refused
      const Stats now = cache_->stats();
      if (blocks() > now.blocks_free + now.blocks_cached) {
        return false;
      }
    }
    for (Line& line : lines_) {
      if (!try_open(line)) {
        take_back();
        return false;
      }
    }
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      add_targets(i);
    }
    std::stable_sort(targets_.begin(), targets_.end(), [](const Target& a, const Target& b) {
      return a.source != b.source ? a.source < b.source : a.first != b.first ? a.first : a.row < b.row;
    });
    return true;
  }
  /// Ordered by stored block, and within one: first ones before copies, and these by row.
  [[nodiscard]] std::span<const Target> targets() const noexcept { return targets_; }

  /// When all rows are there: tells tokens, and lets go of what is only cached. The sequences, in the order in which
  /// they were saved. Throws std::bad_alloc; nothing has changed then.
  [[nodiscard]] std::vector<SeqId> commit() {
    std::vector<SeqId> sequences(c_->sequences.size());
    std::vector<Token> tokens;
    if constexpr (KnowsTokens<Policy>) {
      Pos most = 0;
      for (const Line& line : lines_) {
        most = std::max(most, line.told);
      }
      tokens.resize(static_cast<std::size_t>(most));
      for (const Line& line : lines_) {
        const auto known = std::span(tokens).first(static_cast<std::size_t>(line.told));
        c_->copy_tokens(line.last, line.told, known);
        cache_->publish_tokens(line.seq, known);
      }
    }
    for (Line& line : lines_) {
      if (line.sequence >= 0) {
        sequences[static_cast<std::size_t>(line.sequence)] = line.seq;
      } else {
        cache_->close(line.seq);
      }
    }
    lines_.clear();
    return sequences;
  }

 private:
  /// A sequence, or a line of blocks that were only cached.
  struct Line {
    std::int32_t last;
    Pos length;
    Pos told;
    std::int32_t sequence;   // its number, or -1
    std::int32_t from = -1;  // the line that it is forked from
    Pos shared = 0;          // positions that it has in common with that
    SeqId seq{};
    bool open = false;
  };

  void plan(bool cached) {
    std::int32_t number = 0;
    for (const format::SequenceRecord& s : c_->sequences) {
      lines_.push_back({s.last, s.length, s.told, number++});
    }
    if (cached) {
      add_cached_lines();
    }
    // So that whoever shares a block in part is forked from one that holds it whole.
    std::stable_sort(lines_.begin(), lines_.end(), [](const Line& a, const Line& b) { return a.length > b.length; });
    owner_.assign(c_->blocks.size(), -1);
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      Line& line = lines_[i];
      std::int32_t b = line.last;
      for (; b >= 0 && owner_[static_cast<std::size_t>(b)] < 0; b = c_->blocks[static_cast<std::size_t>(b)].parent) {
        owner_[static_cast<std::size_t>(b)] = static_cast<std::int32_t>(i);
      }
      if (b >= 0) {
        const auto at = static_cast<std::size_t>(b);
        line.from = owner_[at];
        line.shared = std::min<Pos>(line.length, c_->first[at] + c_->blocks[at].rows);
      }
    }
  }
  /// One for each cached block that no sequence holds whole and no other such line leads through.
  void add_cached_lines() {
    std::vector<bool> held(c_->blocks.size(), false);
    const auto hold = [&](std::int32_t b) {
      for (; b >= 0 && !held[static_cast<std::size_t>(b)]; b = c_->blocks[static_cast<std::size_t>(b)].parent) {
        held[static_cast<std::size_t>(b)] = true;
      }
    };
    for (const format::SequenceRecord& s : c_->sequences) {
      if (s.last >= 0) {
        const auto at = static_cast<std::size_t>(s.last);
        const bool whole = s.length == c_->first[at] + c_->blocks[at].rows;
        hold(whole ? s.last : c_->blocks[at].parent);
      }
    }
    for (std::size_t i = c_->blocks.size(); i-- > 0;) {  // children before parents
      if (c_->blocks[i].flags == format::BlockRecord::cached && !held[i]) {
        const Pos length = c_->first[i] + c_->blocks[i].rows;
        lines_.push_back({static_cast<std::int32_t>(i), length, length, -1});
        hold(static_cast<std::int32_t>(i));
      }
    }
  }

  [[nodiscard]] bool try_open(Line& line) {
    if (line.from < 0) {
      OpenOptions options;
      options.salt = c_->salts[static_cast<std::size_t>(c_->salt_of(line.last))];
      const std::optional<Opened> opened = cache_->try_open({}, options);
      if (!opened) {
        return false;
      }
      line.seq = opened->seq;
    } else {
      const std::optional<SeqId> forked =
          cache_->try_fork(lines_[static_cast<std::size_t>(line.from)].seq, line.shared);
      if (!forked) {
        return false;
      }
      line.seq = *forked;
    }
    line.open = true;
    if (line.length > line.shared) {
      auto step = cache_->try_extend(line.seq, line.length - line.shared);
      if (!step) {
        return false;
      }
      cache_->commit(std::move(*step));
    }
    return true;
  }

  /// The first position that a line does not share with the one that it was forked from: it may have copies.
  [[nodiscard]] Pos first_own(const Line& line) const {
    if (line.from < 0) {
      return 0;
    }
    std::vector<SlotRun> theirs;
    cache_->policy().for_each_run(lines_[static_cast<std::size_t>(line.from)].seq, {0, line.shared},
                                  [&](const SlotRun& run) { theirs.push_back(run); });
    std::size_t i = 0;
    Pos own = line.shared;
    cache_->policy().for_each_run(line.seq, {0, line.shared}, [&](const SlotRun& run) {
      if (own == line.shared && (i >= theirs.size() || !(run == theirs[i]))) {
        own = run.first;
      }
      ++i;
    });
    return own;
  }
  void add_targets(std::size_t number) {
    const Line& line = lines_[number];
    c_->for_each_block(line.last, {first_own(line), line.length}, [&](std::int32_t b, Pos row, Pos count) {
      const auto at = static_cast<std::size_t>(b);
      const bool first = owner_[at] == static_cast<std::int32_t>(number);
      const Pos position = c_->first[at] + row;
      cache_->policy().for_each_run(line.seq, {position, position + count}, [&](const SlotRun& run) {
        targets_.push_back({b, first, run.first - c_->first[at], {run.block, run.offset, run.count}});
      });
    });
  }

  void take_back() noexcept {
    for (Line& line : lines_) {
      if (std::exchange(line.open, false)) {
        cache_->close(line.seq);
      }
    }
    targets_.clear();
  }

  Cache* cache_;
  const Contents* c_;
  std::vector<Line> lines_;
  std::vector<std::int32_t> owner_;  // by stored block: the line that its rows are put in place for
  std::vector<Target> targets_;
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
