// Restorer: reserves room in a cache of any policy for the contents of a snapshot, and finds the place of each row.
//
// It uses only what every cache offers: open, fork, extend and commit. The longest sequence is opened; each other one
// is forked from the one that shares most with it, so shared blocks are shared again. Where a policy copies (a tail, or
// all rows of a contiguous sequence) the rows go to every copy. Tokens are published last, once all rows have been
// checked: until then no prompt can match them and no handle has been given out, so everything can be rolled back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/snapshot/collect.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/format.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {
namespace detail {

/// A destination of consecutive rows of a stored block.
struct Target {
  std::int32_t source;  // number of the stored block
  bool first;           // false: the rows have another destination, and are copied from there
  Pos row;              // of the stored block
  layout::SlotSpan to;
};

/// Reserves room and commits it, or takes everything back in its destructor. Cache and contents must outlive it.
template <class Cache>
class Restorer {
 public:
  using Policy = typename Cache::PolicyType;

  /// `cached`: restore unreferenced cached blocks too, if the policy keeps such.
  Restorer(Cache& cache, const Contents& contents, bool cached) : cache_(&cache), c_(&contents) {
    plan(cached && KeepsPrefixes<Policy>);
  }
  Restorer(const Restorer&) = delete;
  Restorer& operator=(const Restorer&) = delete;
  ~Restorer() { roll_back(); }

  /// Positions to reserve; shared ones count once.
  [[nodiscard]] Index tokens() const noexcept {
    Index sum = 0;
    for (const Chain& chain : chains_) {
      sum += chain.length - chain.shared;
    }
    return sum;
  }
  /// Entries of the block tables of all sequences.
  [[nodiscard]] std::uint64_t table_entries() const noexcept {
    std::uint64_t sum = 0;
    for (const Chain& chain : chains_) {
      sum += static_cast<std::uint64_t>(ceil_div(chain.length, cache_->policy().block_tokens()));
    }
    return sum;
  }
  /// Blocks to allocate in a cache with block tables.
  [[nodiscard]] Index blocks() const noexcept {
    const Index block_tokens = cache_->policy().block_tokens();
    Index sum = 0;
    for (const Chain& chain : chains_) {
      sum +=
          chain.length == chain.shared ? 0 : ceil_div<Index>(chain.length, block_tokens) - chain.shared / block_tokens;
    }
    return sum;
  }

  /// Opens and extends the sequences. False if there is no room; nothing has changed then.
  bool try_reserve() {
    if constexpr (KeepsPrefixes<Policy>) {  // an attempt would evict before it fails
      const Stats now = cache_->stats();
      if (blocks() > now.blocks_free + now.blocks_cached) {
        return false;
      }
    }
    for (Chain& chain : chains_) {
      if (!try_open(chain)) {
        roll_back();
        return false;
      }
    }
    for (std::size_t i = 0; i < chains_.size(); ++i) {
      add_targets(i);
    }
    std::stable_sort(targets_.begin(), targets_.end(), [](const Target& a, const Target& b) {
      return a.source != b.source ? a.source < b.source : a.first != b.first ? a.first : a.row < b.row;
    });
    return true;
  }
  /// Ordered by stored block, then first ones before copies, then by row.
  [[nodiscard]] std::span<const Target> targets() const noexcept { return targets_; }

  /// Publishes the tokens and releases what is only cached; all rows must be in place. Returns the sequences in the
  /// order in which they were saved. Throws std::bad_alloc; nothing has changed then.
  [[nodiscard]] std::vector<SeqId> commit() {
    std::vector<SeqId> sequences(c_->sequences.size());
    std::vector<Token> tokens;
    if constexpr (KnowsTokens<Policy>) {
      Pos most = 0;
      for (const Chain& chain : chains_) {
        most = std::max(most, chain.known_tokens);
      }
      tokens.resize(static_cast<std::size_t>(most));
      for (const Chain& chain : chains_) {
        const auto known = std::span(tokens).first(static_cast<std::size_t>(chain.known_tokens));
        c_->copy_tokens(chain.last, chain.known_tokens, known);
        cache_->publish_tokens(chain.seq, known);
      }
    }
    for (Chain& chain : chains_) {
      if (chain.sequence >= 0) {
        sequences[static_cast<std::size_t>(chain.sequence)] = chain.seq;
      } else {
        cache_->close(chain.seq);
      }
    }
    chains_.clear();
    return sequences;
  }

 private:
  /// A sequence, or a chain of cached blocks that no sequence references.
  struct Chain {
    std::int32_t last;
    Pos length;
    Pos known_tokens;
    std::int32_t sequence;   // its number, or -1
    std::int32_t from = -1;  // the chain that it is forked from
    Pos shared = 0;          // positions that it shares with that one
    SeqId seq{};
    bool open = false;
  };

  void plan(bool cached) {
    std::int32_t number = 0;
    for (const format::SequenceRecord& s : c_->sequences) {
      chains_.push_back({s.last, s.length, s.known_tokens, number++});
    }
    if (cached) {
      add_cached_chains();
    }
    // Longest first: a chain that shares a part of a block is then forked from one that has all of it.
    std::stable_sort(chains_.begin(), chains_.end(),
                     [](const Chain& a, const Chain& b) { return a.length > b.length; });
    owner_.assign(c_->blocks.size(), -1);
    for (std::size_t i = 0; i < chains_.size(); ++i) {
      Chain& chain = chains_[i];
      std::int32_t b = chain.last;
      for (; b >= 0 && owner_[static_cast<std::size_t>(b)] < 0; b = c_->blocks[static_cast<std::size_t>(b)].parent) {
        owner_[static_cast<std::size_t>(b)] = static_cast<std::int32_t>(i);
      }
      if (b >= 0) {
        const auto at = static_cast<std::size_t>(b);
        chain.from = owner_[at];
        chain.shared = std::min<Pos>(chain.length, c_->first[at] + c_->blocks[at].rows);
      }
    }
  }
  /// One chain for each cached block that ends one: no sequence and no longer chain contains the whole block.
  void add_cached_chains() {
    std::vector<bool> covered(c_->blocks.size(), false);
    const auto cover = [&](std::int32_t b) {
      for (; b >= 0 && !covered[static_cast<std::size_t>(b)]; b = c_->blocks[static_cast<std::size_t>(b)].parent) {
        covered[static_cast<std::size_t>(b)] = true;
      }
    };
    for (const format::SequenceRecord& s : c_->sequences) {
      if (s.last >= 0) {
        const auto at = static_cast<std::size_t>(s.last);
        const bool whole = s.length == c_->first[at] + c_->blocks[at].rows;
        cover(whole ? s.last : c_->blocks[at].parent);
      }
    }
    for (std::size_t i = c_->blocks.size(); i-- > 0;) {  // children before parents
      if (c_->blocks[i].flags == format::BlockRecord::cached && !covered[i]) {
        const Pos length = c_->first[i] + c_->blocks[i].rows;
        chains_.push_back({static_cast<std::int32_t>(i), length, length, -1});
        cover(static_cast<std::int32_t>(i));
      }
    }
  }

  [[nodiscard]] bool try_open(Chain& chain) {
    if (chain.from < 0) {
      OpenOptions options;
      options.salt = c_->salts[static_cast<std::size_t>(c_->salt_of(chain.last))];
      const std::optional<Opened> opened = cache_->try_open({}, options);
      if (!opened) {
        return false;
      }
      chain.seq = opened->seq;
    } else {
      const std::optional<SeqId> forked =
          cache_->try_fork(chains_[static_cast<std::size_t>(chain.from)].seq, chain.shared);
      if (!forked) {
        return false;
      }
      chain.seq = *forked;
    }
    chain.open = true;
    if (chain.length > chain.shared) {
      auto step = cache_->try_extend_without_tokens(chain.seq, chain.length - chain.shared);
      if (!step) {
        return false;
      }
      cache_->commit(std::move(*step));
    }
    return true;
  }

  /// The first position that a chain does not share with the one that it was forked from. It may be a copy.
  [[nodiscard]] Pos first_own(const Chain& chain) const {
    if (chain.from < 0) {
      return 0;
    }
    std::vector<SlotRun> theirs;
    cache_->policy().for_each_run(chains_[static_cast<std::size_t>(chain.from)].seq, {0, chain.shared},
                                  [&](const SlotRun& run) { theirs.push_back(run); });
    std::size_t i = 0;
    Pos own = chain.shared;
    cache_->policy().for_each_run(chain.seq, {0, chain.shared}, [&](const SlotRun& run) {
      if (own == chain.shared && (i >= theirs.size() || !(run == theirs[i]))) {
        own = run.first;
      }
      ++i;
    });
    return own;
  }
  void add_targets(std::size_t number) {
    const Chain& chain = chains_[number];
    c_->for_each_block(chain.last, {first_own(chain), chain.length}, [&](std::int32_t b, Pos row, Pos count) {
      const auto at = static_cast<std::size_t>(b);
      const bool first = owner_[at] == static_cast<std::int32_t>(number);
      const Pos position = c_->first[at] + row;
      cache_->policy().for_each_run(chain.seq, {position, position + count}, [&](const SlotRun& run) {
        targets_.push_back({b, first, run.first - c_->first[at], {run.block, run.offset, run.count}});
      });
    });
  }

  void roll_back() noexcept {
    for (Chain& chain : chains_) {
      if (std::exchange(chain.open, false)) {
        cache_->close(chain.seq);
      }
    }
    targets_.clear();
  }

  Cache* cache_;
  const Contents* c_;
  std::vector<Chain> chains_;
  std::vector<std::int32_t> owner_;  // by stored block: the chain that receives its rows first
  std::vector<Target> targets_;
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
