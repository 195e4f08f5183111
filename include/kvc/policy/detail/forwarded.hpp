// Forwarded: offers the abilities of a policy as members of the class that holds the policy.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/token_span.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/expected_prefix.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/policy/salt.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// A base class that offers each ability of capabilities.hpp which P has. `Holder` derives from it and has two members,
/// private with this class as a friend:
///
///   access(f)         | f(P&), under the lock of Holder if it has one
///   access(f) const   | f(const P&), under its shared lock if it has one
template <class Holder, class P>
class Forwarded {
 public:
  /// The configuration of the policy.
  [[nodiscard]] const auto& config() const noexcept
    requires HasConfig<P>
  {
    return access([](const P& p) -> const auto& { return p.config(); });
  }
  /// Room that is free or evictable, in blocks; for Contiguous in slots. O(1).
  [[nodiscard]] Index available() const
    requires CountsAvailable<P>
  {
    return access([](const P& p) { return p.available(); });
  }
  /// Most tokens of any sequence. O(1).
  [[nodiscard]] Pos max_tokens() const
    requires BoundsSequences<P>
  {
    return access([](const P& p) { return p.max_tokens(); });
  }
  /// f(SeqId) for every open sequence. f must not call this object.
  template <class F>
    requires ListsSequences<P>
  void for_each_sequence(F&& f) const {
    access([&](const P& p) { p.for_each_sequence(f); });
  }
  /// f(std::span<const BlockId>) with the block table of a sequence, valid during the call; returns what f returns.
  /// f must not call this object. Throws std::invalid_argument if the sequence is not open.
  template <class F>
    requires BlockTablePolicy<P>
  decltype(auto) with_block_table(SeqId seq, F&& f) const {
    return access([&](const P& p) -> decltype(auto) {
      return kvc::with_shared_lock(p, [&](const auto& bare) -> decltype(auto) { return f(bare.block_table(seq)); });
    });
  }

  /// The layer groups of the policy.
  [[nodiscard]] Index groups() const
    requires HoldsGroups<P>
  {
    return access([](const P& p) { return p.groups(); });
  }
  /// The smallest length to which a group lets `truncate` and `fork` go. Throws std::invalid_argument if the sequence
  /// is not open or the group is not there. O(1).
  [[nodiscard]] Pos retained_from(SeqId seq, Index group) const
    requires HoldsGroups<P>
  {
    return access([&](const P& p) { return p.retained_from(seq, group); });
  }
  /// The counters of one group: the blocks that it holds, and tokens of hits lost because of it.
  [[nodiscard]] Stats group_stats(Index group) const
    requires HoldsGroups<P>
  {
    return access([&](const P& p) { return p.stats(group); });
  }
  /// f(GroupBlocks) with the blocks of a sequence in one group, valid during the call; returns what f returns. f must
  /// not call this object.
  template <class F>
    requires GroupTablePolicy<P>
  decltype(auto) with_group_blocks(SeqId seq, Index group, F&& f) const {
    return access([&](const P& p) -> decltype(auto) {
      return kvc::with_shared_lock(
          p, [&](const auto& bare) -> decltype(auto) { return f(bare.group_blocks(seq, group)); });
    });
  }

  /// The limit that an operation would meet now; Limit::none if it would find room.
  [[nodiscard]] LimitMet why_not_open(const OpenOptions& options = {}) const
    requires ExplainsRefusals<P>
  {
    return access([&](const P& p) { return p.why_not_open(options); });
  }
  /// The same of try_extend. Throws as that does.
  [[nodiscard]] LimitMet why_not_extend(SeqId seq, Pos count) const
    requires ExplainsRefusals<P>
  {
    return access([&](const P& p) { return p.why_not_extend(seq, count); });
  }
  /// The same of try_fork. Throws as that does.
  [[nodiscard]] LimitMet why_not_fork(SeqId seq, Pos at) const
    requires ExplainsRefusals<P>
  {
    return access([&](const P& p) { return p.why_not_fork(seq, at); });
  }

  /// How many tokens of the prompt `try_open` would find in place. O(prompt.size()).
  [[nodiscard]] Pos match_length(TokenSpan prompt, const OpenOptions& options = {}) const
    requires MatchesPrefixes<P>
  {
    return access([&](const P& p) { return p.match_length(prompt, options); });
  }
  /// Whether there is room for a prompt and `reserve` more tokens. Takes none. O(prompt.size() + blocks of the
  /// reserve). Throws std::invalid_argument if they are more than 2^31 - 1 tokens.
  [[nodiscard]] Admission admission(TokenSpan prompt, Pos reserve = 0, const OpenOptions& options = {}) const
    requires AdmitsRequests<P>
  {
    return access([&](const P& p) { return p.admission(prompt, reserve, options); });
  }
  /// Whether the admission is `now`.
  [[nodiscard]] bool can_admit(TokenSpan prompt, Pos reserve = 0, const OpenOptions& options = {}) const
    requires AdmitsRequests<P>
  {
    return admission(prompt, reserve, options) == Admission::now;
  }
  /// Keeps what is cached of a prefix from eviction until `unpin`; empty if not one full block is cached.
  /// O(prefix.size()).
  [[nodiscard]] auto try_pin(TokenSpan prefix, const Salt& salt = {})
    requires PinsPrefixes<P>
  {
    return access([&](P& p) { return p.try_pin(prefix, salt); });
  }
  /// Throws std::invalid_argument if the pin is not valid, or not any more.
  template <class Pin>
    requires PinsPrefixes<P>
  void unpin(Pin pin) {
    access([&](P& p) { p.unpin(pin); });
  }
  /// Reserves room for the blocks of a prefix that are not cached, for rows that come from elsewhere; empty if there is
  /// no room. O(prefix.size()).
  [[nodiscard]] std::optional<ExpectedPrefix> try_expect(TokenSpan prefix, const Salt& salt = {})
    requires ExpectsPrefixes<P>
  {
    return access([&](P& p) { return p.try_expect(prefix, salt); });
  }
  /// The rows of the first `length` tokens of an expected prefix are written: from now on prompts find them. False if
  /// none are expected any more. Throws std::invalid_argument if the pin is not valid, and for a length that is not
  /// allowed.
  bool arrive(PinId pin, Pos length)
    requires ExpectsPrefixes<P>
  {
    return access([&](P& p) { return p.arrive(pin, length); });
  }
  /// The same of a whole prefix, with several layer groups, too.
  bool arrive(PinId pin, TokenSpan prefix)
    requires ExpectsPrefixes<P>
  {
    return access([&](P& p) { return p.arrive(pin, std::span<const Token>(prefix)); });
  }
  /// f(ExpectedBlock) for what an expected prefix lacks, where there are several layer groups. f must not call this
  /// object.
  template <class F>
    requires ExpectsPrefixes<P>
  void for_each_expected(PinId pin, F&& f) const {
    access([&](const P& p) { p.for_each_expected(pin, f); });
  }
  /// A sequence with all positions of an expected prefix, whose rows may be on their way.
  [[nodiscard]] SeqId open_expected(PinId pin)
    requires ExpectsPrefixes<P>
  {
    return access([&](P& p) { return p.open_expected(pin); });
  }
  /// Names the tokens of rows that were committed without them: from now on prompts find the rows.
  void publish_tokens(SeqId seq, TokenSpan tokens)
    requires KnowsTokens<P>
  {
    access([&](P& p) { p.publish_tokens(seq, tokens); });
  }
  /// The tokens of the first positions, as far as they are known. O(tokens).
  [[nodiscard]] std::vector<Token> known_tokens(SeqId seq) const
    requires KnowsTokens<P>
  {
    return access([&](const P& p) { return p.known_tokens(seq); });
  }
  /// Salt::bytes() of the salt that the sequence was opened with.
  [[nodiscard]] std::string salt_bytes(SeqId seq) const
    requires KnowsTokens<P>
  {
    return access([&](const P& p) { return std::string(p.salt_bytes(seq)); });
  }
  /// f(BlockStored) for every cached block, parents before their children. f must not call this object.
  template <class F>
    requires KeepsPrefixes<P>
  void for_each_cached(F&& f) const {
    access([&](const P& p) { p.for_each_cached(f); });
  }
  /// Forgets everything cached; open sequences keep their rows.
  void clear() noexcept
    requires ClearsCache<P>
  {
    access([](P& p) { p.clear(); });
  }
  /// Logical time, in which the durations of retention are counted. Never goes back.
  void set_time(std::uint64_t now) noexcept
    requires KeepsTime<P>
  {
    access([&](P& p) { p.set_time(now); });
  }
  /// The logical time now.
  [[nodiscard]] std::uint64_t time() const
    requires KeepsTime<P>
  {
    return access([](const P& p) { return p.time(); });
  }
  /// f(listener) with the listener of the policy's events, to set a callback or to poll; returns what f returns. f must
  /// not call this object.
  template <class F>
    requires EmitsEvents<P>
  decltype(auto) with_events(F&& f) {
    return access([&](P& p) -> decltype(auto) {
      return kvc::with_lock(p, [&](auto& bare) -> decltype(auto) { return f(bare.events()); });
    });
  }

 private:
  template <class F>
  decltype(auto) access(F&& f) {
    return static_cast<Holder&>(*this).access(std::forward<F>(f));
  }
  template <class F>
  decltype(auto) access(F&& f) const {
    return static_cast<const Holder&>(*this).access(std::forward<F>(f));
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
