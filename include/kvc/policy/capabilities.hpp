// Capabilities: what a policy may be able to do beyond the contract of policy/concept.hpp, one concept for each
// ability.
//
// Generic code asks for an ability by its name. KvCache and Synchronized offer every ability of the policy that they
// hold (detail/forwarded.hpp), so a cache of a synchronized policy has them all. In the tables, `p` is a P, `c` a const
// P, `seq` the handle of an open sequence.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/expected_prefix.hpp"
#include "kvc/policy/group_table.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/policy/restore_options.hpp"
#include "kvc/policy/salt.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {
/// Takes the place of a function in a concept. (nvcc 13 refuses a lambda there.)
struct Ignore {
  template <class T>
  void operator()(const T&) const noexcept {}
};
}  // namespace detail

// --- locks -----------------------------------------------------------------------------------------------------------

/// A policy around another one, with a lock: Synchronized.
///
///   expression             | returns
///   -----------------------+------------------------------------------------------------------------------------------
///   P::PolicyType          | the type of the policy behind the lock
///   p.with_lock(f)         | f(PolicyType&), all other threads kept out
///   c.with_shared_lock(f)  | f(const PolicyType&), all writers kept out
template <class P>
concept LocksItself = requires(P& p, const P& c) {
  typename P::PolicyType;
  p.with_lock(detail::Ignore{});
  c.with_shared_lock(detail::Ignore{});
};

namespace detail {
template <class P>
struct BarePolicyOf {
  using Type = P;
};
template <LocksItself P>
struct BarePolicyOf<P> {
  using Type = typename P::PolicyType;
};
}  // namespace detail

/// The policy behind the lock; P itself where there is none.
template <class P>
using BarePolicy = typename detail::BarePolicyOf<P>::Type;

/// f(bare policy) under the lock of `policy`, if it has one. The result of f must not refer to the policy.
template <class P, class F>
decltype(auto) with_lock(P& policy, F&& f) {
  if constexpr (LocksItself<P>) {
    return policy.with_lock(std::forward<F>(f));
  } else {
    return std::forward<F>(f)(policy);
  }
}
/// f(const bare policy), writers kept out if `policy` has a lock: for several questions that belong together, and for
/// answers that are views.
template <class P, class F>
decltype(auto) with_shared_lock(const P& policy, F&& f) {
  if constexpr (LocksItself<P>) {
    return policy.with_shared_lock(std::forward<F>(f));
  } else {
    return std::forward<F>(f)(policy);
  }
}

// --- what a policy reports -------------------------------------------------------------------------------------------

/// Sequences are tables of blocks, as paged kernels want them: position p of a sequence is slot p % block_tokens() of
/// block block_table(seq)[p / block_tokens()]. The table covers the reserved positions.
///
///   c.block_table(seq)   | std::span<const BlockId>, valid as long as runs are; throws std::invalid_argument; O(1)
///
/// A policy with a lock has the ability if the policy behind the lock does. It cannot hand out the span; ask for it
/// with `with_shared_lock(policy, [&](const auto& p) { ... p.block_table(seq) ... })`, which serves both kinds.
template <class P>
concept BlockTablePolicy = Policy<P> && requires(const BarePolicy<P>& c, SeqId seq) {
  { c.block_table(seq) } -> std::same_as<std::span<const BlockId>>;
};

/// The policy can be asked for its configuration, which does not change.
///
///   c.config()           | const P::Config&; O(1)
template <class P>
concept HasConfig = requires(const P& c) {
  { c.config() } -> std::same_as<const typename P::Config&>;
};

/// Its configuration says how a prefill is divided: a group that drops rows holds what it retains, and one pass.
///
///   P::Config::pass_tokens  | Pos: most tokens of one pass of a prefill; 0: see the policy
template <class P>
concept ConfiguresPasses = requires(typename P::Config& config) {
  { config.pass_tokens } -> std::same_as<Pos&>;
};

/// Its configuration limits the states of recurrent layers that one sequence has, for which it keeps room.
///
///   P::Config::states       | Pos: most lengths of which a sequence has states; 0: see the policy
template <class P>
concept ConfiguresStates = requires(typename P::Config& config) {
  { config.states } -> std::same_as<Pos&>;
};

/// Counts the room that is left, in the unit of Stats: blocks, or slots where the pool is one block.
///
///   c.available()        | Index: free or evictable; O(1)
template <class P>
concept CountsAvailable = requires(const P& c) {
  { c.available() } -> std::same_as<Index>;
};

/// No sequence can have more tokens than a maximum that is less than the pool.
///
///   c.max_tokens()       | Pos; O(1)
template <class P>
concept BoundsSequences = requires(const P& c) {
  { c.max_tokens() } -> std::same_as<Pos>;
};

/// Names all open sequences.
///
///   c.for_each_sequence(f)  | f(SeqId) for each; f must not call the policy; O(sequences that were ever open at once)
template <class P>
concept ListsSequences = requires(const P& c) { c.for_each_sequence(detail::Ignore{}); };

/// Holds several layer groups under one SeqId: every operation is one of all groups. Groups are numbered from 0;
/// group < c.groups().
///
///   expression                         | result
///   -----------------------------------+------------------------------------------------------------------------------
///   P(config, rules)                   | as P(config), for these groups; throws std::invalid_argument for bad rules
///   P::shares_blocks                   | bool: blocks of all groups are of one pool, whose blocks have as many bytes
///                                      | as the largest block of any group; otherwise each group has a pool of its own
///   c.group_rules()                    | const GroupRules&: the groups; constant
///   c.groups()                         | Index: their number
///   c.block_tokens(group)              | Pos: slots in a block of this group; constant
///   c.positions(seq, group)            | Pos: committed and reserved positions of the group: reserved(seq), or of a
///                                      | cross-attention group its rows, which the first extension reserves
///   c.extension(seq, group)            | PosRange: those that the uncommitted extension reserves
///   c.retained_from(seq, group)        | Pos: truncate and try_fork accept lengths from here on
///   c.for_each_run(seq, group, range,  | f(SlotRun) for the positions of `range` that the group retains, in ascending
///                  f)                  | order; 0 <= range.first <= range.last <= positions(seq, group)
///   c.stats(group)                     | Stats of one group: the blocks that it holds, and hits lost because of it
///
/// All throw std::invalid_argument if seq is not open. The members without a group speak of group 0 where they hand out
/// blocks (for_each_run, block_table): c.for_each_run(seq, range, f) leaves out the positions that group 0 has dropped,
/// and its runs lie in blocks of block_tokens(0) slots. They speak of the pool where they count them. A group
/// **retains** what GroupRule::retained says, and `rewind` positions more: all that a row behind the committed
/// positions sees. Rows that are not retained are released at commit. `truncate` and `try_fork` to a length for which a
/// row is gone throw std::invalid_argument that names group and position, and change nothing. Numbers of tokens and
/// blocks in Stats are those of all groups together.
template <class P>
concept HoldsGroups = Policy<P> && std::constructible_from<P, const typename P::Config&, const GroupRules&> &&
                      requires(const P& c, SeqId seq, Index group) {
                        { P::shares_blocks } -> std::convertible_to<bool>;
                        { c.group_rules() } -> std::same_as<const GroupRules&>;
                        { c.groups() } -> std::same_as<Index>;
                        { c.block_tokens(group) } -> std::same_as<Pos>;
                        { c.positions(seq, group) } -> std::same_as<Pos>;
                        { c.extension(seq, group) } -> std::same_as<PosRange>;
                        { c.retained_from(seq, group) } -> std::same_as<Pos>;
                        c.for_each_run(seq, group, PosRange{}, detail::IgnoreSlots{});
                        { c.stats(group) } -> std::same_as<Stats>;
                      };

/// Hands out the blocks of a group as a table, as paged kernels want them.
///
///   c.group_blocks(seq, group)         | GroupBlocks, valid as long as runs are; throws std::invalid_argument; O(1)
///
/// A policy with a lock has the ability if the policy behind the lock does.
template <class P>
concept GroupTablePolicy = HoldsGroups<P> && requires(const BarePolicy<P>& c, SeqId seq, Index group) {
  { c.group_blocks(seq, group) } -> std::same_as<GroupBlocks>;
};

/// Keeps the states of recurrent layers beside rows (GroupRules::states), under the same SeqId and in the same blocks.
/// A state stands for exactly so many tokens. Every extension reserves one for its end; commit releases the older ones.
///
///   p.try_extend(seq, count, tokens,   | as try_extend, and reserves states after each of `states_at` tokens, too:
///                states_at)            | they must ascend in (reserved(seq), reserved(seq) + count]
///   c.state_lengths(seq)               | std::span<const Pos>: lengths of which the sequence has states, ascending;
///                                      | those above length(seq) are to be written before the commit
///   c.keeps_state(seq, length)         | bool: whether it has states after `length` tokens when all that is reserved
///                                      | now is committed
///   c.state_blocks(seq, kind, length)  | std::span<const BlockId>: where the states of one kind after `length` tokens
///                                      | lie; kind < c.group_rules().states.size()
///   c.state_sizes(kind)                | StateSizes: how they lie in these blocks; constant
///
/// A sequence keeps the states of its length, and of lengths above length(seq) - rewind. `truncate` and `try_fork` go
/// to a length of which there are states, or to 0, and throw std::invalid_argument for others. A prefix is found as far
/// as there are states. All throw std::invalid_argument if seq is not open or there is no such state. Spans are
/// valid as long as runs are.
template <class P>
concept HoldsStates = HoldsGroups<P> && requires(P& p, const BarePolicy<P>& c, SeqId seq, Pos n, Index kind,
                                                 std::span<const Token> tokens, std::span<const Pos> states_at) {
  { p.try_extend(seq, n, tokens, states_at) } -> std::same_as<std::optional<Extension>>;
  { c.state_lengths(seq) } -> std::same_as<std::span<const Pos>>;
  { c.keeps_state(seq, n) } -> std::same_as<bool>;
  { c.state_blocks(seq, kind, n) } -> std::same_as<std::span<const BlockId>>;
  { c.state_sizes(kind) } -> std::same_as<StateSizes>;
};

/// Takes back a sequence that was computed elsewhere, or earlier, without room for what its groups have dropped. For a
/// policy with one group of full attention it is an extension of an empty sequence.
///
///   p.try_restore(seq, options)   | an optional Extension of [0, options.length): rows to write, then `commit` or
///                                 | `rollback`, as of try_extend; empty, and nothing has changed, if there is no room;
///                                 | throws std::invalid_argument if seq is not empty, or for impossible options
///
/// The rows to write are those of all slots that the policy holds for positions of the sequence, but for those in
/// options.missing, and those of other inputs that c.extension(seq, group) names. Blocks may hold a few positions more
/// than a group retains (group_blocks lists them), so that a prompt can find them. The states to write, of a policy
/// that HoldsStates, are those of c.state_lengths(seq): of options.states the ones that a sequence of this length
/// keeps, and no more than it has room for; but for those in the blocks of options.like. Tokens are not given: a policy
/// that KnowsTokens learns them by publish_tokens.
template <class P>
concept RestoresSequences = HoldsGroups<P> && requires(P& p, SeqId seq, const RestoreOptions& options) {
  { p.try_restore(seq, options) } -> std::same_as<std::optional<Extension>>;
};

/// Says which limit an operation would meet: the reason when a `try_` operation found no room. Limit::none if it would
/// find room now.
///
///   c.why_not_open(options)       | LimitMet
///   c.why_not_extend(seq, count)  | LimitMet of an extension that asks for no states; throws as try_extend does
///   c.why_not_fork(seq, at)       | LimitMet; throws as try_fork does
template <class P>
concept ExplainsRefusals = requires(const P& c, SeqId seq, Pos n, const OpenOptions& options) {
  { c.why_not_open(options) } -> std::same_as<LimitMet>;
  { c.why_not_extend(seq, n) } -> std::same_as<LimitMet>;
  { c.why_not_fork(seq, n) } -> std::same_as<LimitMet>;
};

// --- prefixes --------------------------------------------------------------------------------------------------------

/// Finds cached prefixes of a prompt.
///
///   c.match_length(prompt, options)  | Pos: tokens of the prompt that try_open would find in place; O(prompt)
template <class P>
concept MatchesPrefixes = requires(const P& c, std::span<const Token> prompt, const OpenOptions& options) {
  { c.match_length(prompt, options) } -> std::same_as<Pos>;
};

/// Says whether there is room for a request, less what it would find in place. Takes none.
///
///   c.admission(prompt, reserve, options)  | Admission of the prompt and `reserve` more tokens; O(prompt + reserve)
template <class P>
concept AdmitsRequests = requires(const P& c, std::span<const Token> prompt, Pos reserve, const OpenOptions& options) {
  { c.admission(prompt, reserve, options) } -> std::same_as<Admission>;
};

/// Protects cached prefixes from eviction.
///
///   p.try_pin(prefix, salt)  | an optional with a member `pin`; empty if not one full block is cached; O(prefix)
///   p.unpin(pin)             | void; throws std::invalid_argument if the pin is not valid
template <class P>
concept PinsPrefixes =
    requires(P& p, std::span<const Token> prefix, const Salt& salt) { p.unpin(p.try_pin(prefix, salt)->pin); };

/// Takes rows that were computed elsewhere, or earlier, into its cache, beside its sequences: reserves blocks, and
/// makes them matchable as they are written.
///
///   p.try_expect(prefix, salt)  | std::optional<ExpectedPrefix>: blocks to write, referenced by a pin; empty, and
///                               | nothing has changed, if there is no room; O(prefix)
///   p.arrive(pin, length)       | bool: the rows of the first `length` tokens are written, and prompts find them;
///                               | false if none are expected any more, as after p.clear(); length counts whole
///                               | blocks
///   p.arrive(pin, prefix)       | bool: the same of the whole prefix; with several layer groups, the only form
///   c.for_each_expected(pin, f) | f(ExpectedBlock) for what is to be written, with several layer groups
///   p.open_expected(pin)        | SeqId: a sequence with all positions of the prefix, before its rows are written
///   p.unpin(pin)                | void: frees what has not arrived
///
/// Throw std::invalid_argument for a pin that is not valid and for other lengths.
template <class P>
concept ExpectsPrefixes =
    requires(P& p, const P& c, std::span<const Token> prefix, const Salt& salt, PinId pin, Pos length) {
      { p.try_expect(prefix, salt) } -> std::same_as<std::optional<ExpectedPrefix>>;
      { p.arrive(pin, length) } -> std::same_as<bool>;
      { p.arrive(pin, prefix) } -> std::same_as<bool>;
      c.for_each_expected(pin, detail::Ignore{});
      { p.open_expected(pin) } -> std::same_as<SeqId>;
      p.unpin(pin);
    };

/// Its index of prefixes has nodes, each for so many tokens behind those of its parent. A node may have a block in each
/// column: in each layer group, and behind the groups for each kind of recurrent states. With one group that keeps
/// everything a node is its block, and has its number.
///
///   c.node_tokens()         | Pos: tokens of a node
///   c.nodes()               | Index: most nodes; their numbers are below it
///   c.columns()             | Index: groups, and kinds of states
///   c.for_each_node(f)      | f(NodeAdded) for every node, parents first, where there are several groups
///   c.next_state_block(b)   | BlockId: of cached states, the block behind b; no_block behind the last one
template <class P>
concept IndexesNodes = HoldsGroups<P> && requires(const P& c, BlockId block) {
  { c.node_tokens() } -> std::same_as<Pos>;
  { c.nodes() } -> std::same_as<Index>;
  { c.columns() } -> std::same_as<Index>;
  c.for_each_node(detail::Ignore{});
  { c.next_state_block(block) } -> std::same_as<BlockId>;
};

/// Remembers the tokens of sequences, and finds rows again by them. On such a policy, extending a sequence without its
/// tokens makes all that follows impossible to find.
///
///   c.known_tokens(seq)            | std::vector<Token>: those of the first positions, as far as they are known; O(L)
///   c.salt_bytes(seq)              | Salt::bytes() of the salt that the sequence was opened with
///   p.publish_tokens(seq, tokens)  | void: names the tokens of the first positions of a sequence that knows none
template <class P>
concept KnowsTokens = requires(P& p, const P& c, SeqId seq, std::span<const Token> tokens) {
  { c.known_tokens(seq) } -> std::same_as<std::vector<Token>>;
  { c.salt_bytes(seq) } -> std::convertible_to<std::string>;
  p.publish_tokens(seq, tokens);
};

/// Keeps blocks that no sequence references, so that later prompts find them, and lists them.
///
///   c.for_each_cached(f)  | f(BlockStored) for each cached block, parents first; f must not call the policy
template <class P>
concept KeepsPrefixes = KnowsTokens<P> && requires(const P& c) { c.for_each_cached(detail::Ignore{}); };

/// Lists what it keeps in several layer groups, by the prompts that would find it.
///
///   c.for_each_cached_prefix(f)  | f(CachedPrefix) for prefixes that together have all rows and states which a prompt
///                                | could find; f must not call the policy
///
/// A policy with a lock has the ability if the policy behind the lock does.
template <class P>
concept ListsCachedPrefixes =
    KeepsPrefixes<BarePolicy<P>> && requires(const BarePolicy<P>& c) { c.for_each_cached_prefix(detail::Ignore{}); };

/// Forgets everything cached at once.
///
///   p.clear()             | void; noexcept; open sequences keep their rows; O(pool)
template <class P>
concept ClearsCache = requires(P& p) {
  { p.clear() } noexcept;
};

/// Has a logical clock, in which the durations of Retention are counted.
///
///   p.set_time(now)       | void; noexcept; never moves the clock back
///   c.time()              | std::uint64_t
template <class P>
concept KeepsTime = requires(P& p, const P& c, std::uint64_t now) {
  { p.set_time(now) } noexcept;
  { c.time() } -> std::same_as<std::uint64_t>;
};

/// Reports what becomes and ceases to be matchable to a listener that the policy holds.
///
///   p.events()            | a reference to an EventListener
///
/// A policy with a lock has the ability if the policy behind the lock does: `with_lock(policy, [](auto& p) { ...
/// p.events() ... })`, or `with_events(f)` of KvCache and Synchronized.
template <class P>
concept EmitsEvents = requires(BarePolicy<P>& p) { requires EventListener<std::remove_cvref_t<decltype(p.events())>>; };

}  // namespace v0
}  // namespace kvc
