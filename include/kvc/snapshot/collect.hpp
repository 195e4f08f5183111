// Collector: turns the block tables of sequences and the cached blocks of a policy into the blocks of a snapshot, each
// stored once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/snapshot/options.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

/// A sequence to save. A policy that remembers tokens and salts (KnowsTokens) saves its own; for others the caller may
/// give them here.
struct SavedSequence {
  SeqId seq;
  std::span<const Token> tokens{};  ///< of the first positions, as many as are known
  Salt salt{};
};

namespace detail {

/// The saved parts of a sequence beside its rows.
struct History {
  Pos length;
  Salt salt;
  std::vector<Token> tokens;  // known ones
};
/// Throws std::invalid_argument if the sequence is not open, or is shorter than its tokens.
template <class P>
[[nodiscard]] History history_of(const P& policy, const SavedSequence& saved, const SaveOptions& options) {
  require(policy.contains(saved.seq), "seq", saved.seq, "an open sequence");
  History history{options.reserved ? policy.reserved(saved.seq) : policy.length(saved.seq), saved.salt,
                  std::vector<Token>(saved.tokens.begin(), saved.tokens.end())};
  const auto length = static_cast<std::size_t>(history.length);
  require(saved.tokens.size() <= length, "tokens.size()", saved.tokens.size(), "at most the length of the sequence");
  if constexpr (KnowsTokens<P>) {
    history.tokens = policy.known_tokens(saved.seq);
    history.tokens.resize(std::min(history.tokens.size(), length));
    history.salt = Salt::from_bytes(policy.salt_bytes(saved.seq)).value();
  }
  return history;
}

/// Identifies a block by its place in the pool and its parent. A block that two sequences reference after different
/// parents is stored for each of them; no policy of kvc has such blocks.
class Collector {
 public:
  explicit Collector(Contents& contents) : c_(contents) {}

  /// A cached block, its parent before it.
  void add_cached(const BlockStored& stored) {
    const std::int32_t parent =
        stored.parent == no_block ? root(std::string(stored.salt)) : cached_.at(to_index(stored.parent));
    const auto rows = static_cast<Pos>(stored.tokens.size());
    const std::int32_t block = insert(parent, {stored.block, 0, rows, 0});
    c_.blocks[static_cast<std::size_t>(block)].flags = format::BlockRecord::cached;
    add_tokens(block, stored.tokens);
    cached_.emplace(to_index(stored.block), block);
  }

  /// Adds all runs of a sequence but the last one. Call `add_ends` after the last sequence.
  void add_sequence(const Salt& salt, std::vector<SlotRun> runs, std::vector<Token> tokens) {
    std::int32_t at = root(salt.bytes());
    for (std::size_t i = 0; i + 1 < runs.size(); ++i) {
      std::int32_t next = find(at, runs[i]);
      if (next < 0 || c_.blocks[static_cast<std::size_t>(next)].rows != runs[i].count) {
        next = insert(at, runs[i]);
      }
      at = next;
      add_tokens(at, tokens_of(runs[i], tokens));
    }
    ends_.push_back({at, runs.empty() ? SlotRun{no_block, 0, 0, 0} : runs.back(), std::move(tokens)});
  }
  /// Adds the last runs. Another sequence may reference such a block in full or to another length.
  void add_ends() {
    for (const End& end : ends_) {
      std::int32_t last = end.parent;
      if (end.run.count > 0) {
        last = find(end.parent, end.run);
        if (last < 0) {
          last = insert(end.parent, end.run);
        }
        Pos& rows = c_.blocks[static_cast<std::size_t>(last)].rows;
        rows = std::max(rows, end.run.count);  // a block that this changes has no successor
        add_tokens(last, tokens_of(end.run, end.tokens));
      }
      c_.sequences.push_back({last, end.run.first + end.run.count, static_cast<Pos>(end.tokens.size()), 0});
    }
  }

  /// Completes the contents. Returns the place of each block in the pool.
  [[nodiscard]] std::vector<layout::SlotSpan> finish() {
    std::vector<Token> tokens;
    c_.first_token.push_back(0);
    for (std::size_t i = 0; i < c_.blocks.size(); ++i) {
      add_derived(c_, i);
      const auto from = c_.tokens.begin() + static_cast<std::ptrdiff_t>(token_at_[i]);
      tokens.insert(tokens.end(), from, from + c_.blocks[i].known_tokens);
      slots_[i].count = c_.blocks[i].rows;
      c_.block_tokens = std::max(c_.block_tokens, c_.blocks[i].rows);
    }
    c_.tokens = std::move(tokens);
    return std::move(slots_);
  }

 private:
  struct Key {
    std::int32_t parent;
    BlockId block;
    Pos slot;
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct KeyHash {
    std::size_t operator()(const Key& key) const noexcept {
      std::uint64_t h = static_cast<std::uint32_t>(key.parent);
      h = (h << 32 | static_cast<std::uint32_t>(key.block)) * 0x9e3779b97f4a7c15U;
      h = (h ^ h >> 32 ^ static_cast<std::uint32_t>(key.slot)) * 0x9e3779b97f4a7c15U;
      return static_cast<std::size_t>(h ^ h >> 32);
    }
  };
  struct End {
    std::int32_t parent;
    SlotRun run;
    std::vector<Token> tokens;
  };

  [[nodiscard]] std::int32_t root(const std::string& salt) {
    const auto [at, added] = salts_.try_emplace(salt, static_cast<std::int32_t>(c_.salts.size()));
    if (added) {
      c_.salts.push_back(Salt::from_bytes(salt).value());
    }
    return -1 - at->second;
  }
  [[nodiscard]] std::int32_t find(std::int32_t parent, const SlotRun& run) const {
    const auto known = numbers_.find({parent, run.block, run.offset});
    return known == numbers_.end() ? -1 : known->second;
  }
  std::int32_t insert(std::int32_t parent, const SlotRun& run) {
    require(c_.blocks.size() < static_cast<std::size_t>(max_pos), "blocks to save", c_.blocks.size(),
            "less than 2^31 - 1");
    const auto number = static_cast<std::int32_t>(c_.blocks.size());
    c_.blocks.push_back({parent, run.count, 0, 0});
    slots_.push_back({run.block, run.offset, run.count});
    token_at_.push_back(0);
    numbers_.try_emplace({parent, run.block, run.offset}, number);
    return number;
  }

  [[nodiscard]] static std::span<const Token> tokens_of(const SlotRun& run, std::span<const Token> tokens) noexcept {
    const auto begin = std::min(static_cast<std::size_t>(run.first), tokens.size());
    return tokens.subspan(begin, std::min(static_cast<std::size_t>(run.count), tokens.size() - begin));
  }
  /// Adds the first tokens of a block, of which some may be known already.
  void add_tokens(std::int32_t block, std::span<const Token> tokens) {
    const auto at = static_cast<std::size_t>(block);
    Pos& count = c_.blocks[at].known_tokens;
    const auto both = std::min(static_cast<std::size_t>(count), tokens.size());
    const auto known = c_.tokens.begin() + static_cast<std::ptrdiff_t>(token_at_[at]);
    require(std::equal(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(both), known), "tokens",
            "different from those of a sequence that shares the rows", "the same");
    if (tokens.size() > both) {
      token_at_[at] = c_.tokens.size();
      c_.tokens.insert(c_.tokens.end(), tokens.begin(), tokens.end());
      count = static_cast<Pos>(tokens.size());
    }
  }

  Contents& c_;
  std::vector<layout::SlotSpan> slots_;
  std::vector<std::size_t> token_at_;  // index in c_.tokens of a block's first token, until `finish` orders them
  std::unordered_map<Key, std::int32_t, KeyHash> numbers_;
  std::unordered_map<std::string, std::int32_t> salts_;
  std::unordered_map<Index, std::int32_t> cached_;
  std::vector<End> ends_;
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
