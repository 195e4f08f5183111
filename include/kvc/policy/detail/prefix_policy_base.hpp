// PrefixPolicyBase: the common part of PrefixShared with one plain layer group and with several.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/policy/detail/tenant_quota.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The base of PlainPrefixShared and GroupedPrefixShared: the members that do not depend on how blocks and tables look,
/// and the counters. The contracts of public members are those of PrefixShared. `Blocks` are the blocks with their
/// index, and `Tables` the sequences and pins over them.
template <class Config, class Blocks, class Tables>
class PrefixPolicyBase {
 public:
  using Sequence = typename Tables::Sequence;

  PrefixPolicyBase(const PrefixPolicyBase&) = delete;
  PrefixPolicyBase& operator=(const PrefixPolicyBase&) = delete;

  [[nodiscard]] const auto& eviction() const noexcept { return blocks_.eviction; }
  [[nodiscard]] auto& events() noexcept { return blocks_.events; }

  void publish_tokens(SeqId seq, std::span<const Token> tokens) {
    Sequence& s = tables_.at(seq);
    s.lengths.check_committed(seq);
    require(tokens.size() <= static_cast<std::size_t>(s.lengths.committed), "tokens.size()", tokens.size(),
            "at most the length of the sequence");
    require(tables_.known(s) == 0, "seq", seq, "a sequence that knows none of its tokens");
    if (!tokens.empty()) {
      tables_.publish_tokens(s, tokens);
    }
  }
  [[nodiscard]] std::vector<Token> known_tokens(SeqId seq) const { return tables_.known_tokens(tables_.at(seq)); }

  void close(SeqId seq) {
    Sequence& s = tables_.at(seq);
    require(!s.state.is_pin, "seq", seq, "an open sequence");
    ++blocks_.now;
    // A request that was opened and then postponed does not count as one.
    if (s.lengths.committed > s.state.found) {
      blocks_.eviction.on_close(s.state.context, tables_.leading_blocks(s), blocks_.now);
    }
    tokens_unknown_ += tables_.unknown(s);
    tables_.release_sequence(seq);
    --sequences_;
  }
  void unpin(SeqId pin) {
    require(tables_.contains(pin) && tables_.at(pin).state.is_pin, "pin", pin, "a pin that is there");
    ++blocks_.now;
    tables_.release_sequence(pin);
    --pins_;
  }

  void set_time(std::uint64_t now) noexcept {
    blocks_.now = std::max(blocks_.now, std::min(now, std::uint64_t{1} << 63));
  }
  [[nodiscard]] std::uint64_t time() const noexcept { return blocks_.now; }

  [[nodiscard]] Index available() const noexcept { return blocks_.available(); }
  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return tables_.contains(seq) && !tables_.at(seq).state.is_pin;
  }
  [[nodiscard]] Pos length(SeqId seq) const { return tables_.at(seq).lengths.committed; }
  [[nodiscard]] Pos reserved(SeqId seq) const { return tables_.at(seq).lengths.reserved; }
  [[nodiscard]] Index copied_tokens() const noexcept { return tables_.copied_tokens(); }

  template <class F>
  void for_each_sequence(F&& f) const {
    tables_.for_each_handle([&](SeqId seq, const Sequence& s) {
      if (!s.state.is_pin) {
        f(seq);
      }
    });
  }

  [[nodiscard]] Stats stats() const {
    Stats stats;
    stats.block_tokens = config_.block_tokens;
    tables_.add_to(stats);
    stats.blocks_free = blocks_.pool.available();
    stats.blocks_cached = blocks_.evictable();
    stats.largest_free_run = blocks_.available();
    stats.prompt_tokens = prompt_tokens_;
    stats.hit_tokens = hit_tokens_;
    stats.hits = hits_;
    stats.misses = misses_;
    stats.merges = tables_.merges();
    stats.evictions = blocks_.evictions();
    stats.sequences = sequences_;
    stats.tokens_unknown = tokens_unknown_;
    tables_.for_each([&](const Sequence& s) { stats.tokens_unknown += s.state.is_pin ? 0 : tables_.unknown(s); });
    stats.pins = pins_;
    return stats;
  }

 protected:
  /// From the prvalues that make_blocks() and make_tables(blocks) return: neither can be moved.
  template <class MakeBlocks, class MakeTables>
  PrefixPolicyBase(const Config& config, MakeBlocks make_blocks, MakeTables make_tables)
      : config_(config), blocks_(make_blocks()), tables_(make_tables(blocks_)) {}

  /// A match leaves at least one token to compute.
  [[nodiscard]] static std::span<const Token> all_but_one(std::span<const Token> prompt) noexcept {
    return prompt.first(prompt.empty() ? 0 : prompt.size() - 1);
  }
  /// The tokens of a prefix that fill whole units of the index.
  [[nodiscard]] static std::span<const Token> whole_units(std::span<const Token> prefix, Pos unit) noexcept {
    return prefix.first(prefix.size() - prefix.size() % static_cast<std::size_t>(unit));
  }

  /// Counts a new sequence. The match found `cached` tokens of its prompt, in `hits` units of the index.
  void count_open(std::span<const Token> prompt, Pos cached, Index hits, Pos unit) noexcept {
    ++sequences_;
    prompt_tokens_ += static_cast<Index>(prompt.size());
    hit_tokens_ += cached;
    hits_ += hits;
    misses_ += static_cast<Index>(prompt.size()) / unit - hits;
  }

  /// How many sequences and pins reference each root of the index and each tenant.
  struct ReferenceCounts {
    std::vector<Index> roots;
    std::vector<Index> tenants;
  };
  /// f(sequence) for all sequences and pins, which are counted. Throws InvariantError if the counters are wrong.
  template <class F>
  [[nodiscard]] ReferenceCounts verify_reference_counts(std::size_t roots, F&& f) const {
    ReferenceCounts counts{std::vector<Index>(roots, 0), std::vector<Index>(blocks_.quota.entries(), 0)};
    Index sequences = 0;
    Index pins = 0;
    tables_.for_each([&](const Sequence& s) {
      ++(s.state.is_pin ? pins : sequences);
      ++counts.roots[s.state.root.root_index()];
      if (s.state.tenant != TenantQuota::none) {
        ++counts.tenants[static_cast<std::size_t>(s.state.tenant)];
      }
      f(s);
    });
    if (sequences != sequences_ || pins != pins_) {
      throw_error(InvariantError("kvc: counts of sequences or pins are wrong"));
    }
    return counts;
  }

  Config config_;
  Blocks blocks_;
  Tables tables_;
  Index sequences_ = 0;
  Index pins_ = 0;

 private:
  Index tokens_unknown_ = 0;  // of closed sequences
  Index prompt_tokens_ = 0;
  Index hit_tokens_ = 0;
  Index hits_ = 0;
  Index misses_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
