// Policy: the contract of a type that decides which sequence occupies which slots of the pool.
//
// A policy is integers only: it never sees a key, a value or a pointer to one. It therefore runs in tests, in model
// checks and in trace replay without any memory for rows. policy/capabilities.hpp names the abilities that a policy may
// have beyond this contract; policy/author.hpp has the parts that a new policy is made of.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/open_options.hpp"

namespace kvc {
inline namespace v0 {

/// Whether a request can be admitted.
enum class Admission : std::uint8_t {
  never,  ///< it does not fit into an empty pool, or not now, although no sequence has a block
  later,  ///< it does not fit now
  now
};

/// A new sequence, of which the first `cached` positions are committed already. Converts to its handle.
struct Opened {
  SeqId seq;
  Pos cached = 0;
  /// The handle of the sequence.
  constexpr operator SeqId() const noexcept { return seq; }  // NOLINT: converts by design
  friend constexpr bool operator==(const Opened&, const Opened&) = default;
};

/// Positions reserved for writing, and the rows to copy before the first of them is written: the shared tail of a
/// copy-on-write, or all rows of a sequence that moved. The policy owns the list.
struct Extension {
  PosRange range;
  std::span<const RowCopy> copies{};
};

/// A new sequence, and the rows to copy for it. The policy owns the list.
struct Forked {
  SeqId seq;
  std::span<const RowCopy> copies{};
};

namespace detail {
struct IgnoreSlots {
  void operator()(const SlotRun&) const noexcept {}
};
}  // namespace detail

/// The contract of a policy. A pool has `blocks()` blocks of `block_tokens()` slots. A sequence has `length` committed
/// positions, and from `try_extend` to `commit` or `rollback` further positions that are reserved and uncommitted.
///
/// In the table, `p` is a P, `c` a const P, `seq` the handle of an open sequence, L its length, R its reserved length.
/// n is the number of positions that an operation touches, b = block_tokens().
///
///   expression                    | requires             | returns, does               | throws           | complexity
///   ------------------------------+----------------------+-----------------------------+------------------+-----------
///   P::name                       |                      | a name for reports,         |                  |
///                                 |                      | convertible to              |                  |
///                                 |                      | std::string_view            |                  |
///   P(config)                     | config is valid      | an empty pool; allocates    | invalid_argument | O(blocks)
///                                 |                      | the tables whose size the   | bad_alloc        |
///                                 |                      | pool determines             |                  |
///   c.blocks(), c.block_tokens()  |                      | Index, Pos: the geometry,   |                  | O(1)
///                                 |                      | both at least 1; constant   |                  |
///   p.try_open(prompt, options)   | options the policy   | optional<Opened>: a new     | invalid_argument | O(prompt)
///                                 | allows               | sequence. The prefix of     | bad_alloc        |
///                                 |                      | `prompt` that is in place   |                  |
///                                 |                      | becomes its first `cached`  |                  |
///                                 |                      | positions;                  |                  |
///                                 |                      | cached < prompt.size()      |                  |
///                                 |                      | unless the prompt is empty  |                  |
///   p.try_extend(seq, n, tokens)  | nothing uncommitted; | optional<Extension>:        | invalid_argument | O(n / b),
///                                 | 0 <= n; L + n fits   | reserves positions [L, L +  | bad_alloc        | or O(L)
///                                 | Pos; tokens is empty | n), all or none; `range`    |                  | where rows
///                                 | or n tokens          | are these. Policies that    |                  | move
///                                 |                      | match prefixes record the   |                  |
///                                 |                      | tokens, others ignore them  |                  |
///   p.commit(seq)                 | something            | L = R; the positions may be | invalid_argument | O(n)
///                                 | uncommitted          | matched now                 |                  |
///   p.rollback(seq)               | any handle           | R = L, and every sequence   | (noexcept)       | O(n / b)
///                                 |                      | is as before try_extend.    |                  |
///                                 |                      | Does nothing if nothing is  |                  |
///                                 |                      | uncommitted or seq is not   |                  |
///                                 |                      | open                        |                  |
///   p.try_fork(seq, at)           | 0 <= at <= L         | optional<Forked>: a new     | invalid_argument | O(at)
///                                 |                      | sequence with the first     | bad_alloc        |
///                                 |                      | `at` positions of seq       |                  |
///   p.truncate(seq, length)       | nothing uncommitted; | L = R = length: drops the   | invalid_argument | O(n / b)
///                                 | 0 <= length <= L     | positions behind            |                  |
///   p.close(seq)                  |                      | drops the sequence and what | invalid_argument | O(R / b)
///                                 |                      | it reserved                 |                  |
///   c.contains(seq)               | any handle           | bool: whether the sequence  | (noexcept)       | O(1)
///                                 |                      | is open                     |                  |
///   c.length(seq)                 |                      | Pos: L                      | invalid_argument | O(1)
///   c.reserved(seq)               |                      | Pos: R, at least L          | invalid_argument | O(1)
///   c.for_each_run(seq, range, f) | 0 <= range.first <=  | f(SlotRun) for each run of  | invalid_argument | O(n / b)
///                                 | range.last <= R      | `range`                     |                  |
///   c.stats()                     |                      | Stats, with free + cached + |                  | O(pool)
///                                 |                      | referenced == total         |                  |
///   c.verify()                    |                      | void: recomputes all that   | InvariantError   | O(pool)
///                                 |                      | is redundant                |                  |
///
/// **Positions are complete.** The runs of `for_each_run` cover every position of the range exactly once, in ascending
/// order, without a gap: attention reads all that a sequence has reserved. Each run lies in one block of the pool. No
/// two positions of one sequence share a slot; two sequences share a slot only if neither can write to it. A policy
/// with layer groups that drop positions is the exception: its for_each_run gives the positions that group 0 retains,
/// in blocks of block_tokens(0) slots (see HoldsGroups).
///
/// **No room** is an expected outcome: the `try_` operations return an empty optional, and nothing has changed.
///
/// **Throws.** A policy checks what the column "requires" demands, and that seq is open. If it is not so, it throws
/// std::invalid_argument that names the argument, its value and what is allowed. verify throws InvariantError when the
/// bookkeeping contradicts itself. An operation that throws has changed nothing. commit, truncate and close allocate
/// nothing and cannot fail otherwise.
///
/// **Uncommitted extensions.** A sequence has at most one. Until its commit or rollback, try_extend and truncate of
/// that sequence are refused; commit, rollback, close, the const members, and try_fork (of committed positions) are
/// allowed, and so is every operation on other sequences.
///
/// **Copies** are carried out by the owner of the memory, in the order of the list, at once: before rows of the
/// sequence are read or written and before any other operation on it or on its parent. The copies of one list do not
/// overlap. The span is valid until the next operation on the policy.
///
/// **Invalidation.** Runs and block tables of a sequence are valid until that sequence is extended, committed, rolled
/// back, truncated or closed. Operations on other sequences do not invalidate them.
///
/// **Threads.** One writer at a time; const members are safe beside each other. `Synchronized<P>` adds a lock.
///
/// testing/policy_conformance.hpp checks the contract; a minimal policy is in tests/conformance/minimal_policy.hpp.
template <class P>
concept Policy = std::constructible_from<P, const typename P::Config&> &&
                 requires(P p, const P c, SeqId seq, Pos n, std::span<const Token> tokens, const OpenOptions& options) {
                   { P::name } -> std::convertible_to<std::string_view>;
                   { c.blocks() } -> std::same_as<Index>;
                   { c.block_tokens() } -> std::same_as<Pos>;
                   { p.try_open(tokens, options) } -> std::same_as<std::optional<Opened>>;
                   { p.try_extend(seq, n, tokens) } -> std::same_as<std::optional<Extension>>;
                   p.commit(seq);
                   { p.rollback(seq) } noexcept;
                   { p.try_fork(seq, n) } -> std::same_as<std::optional<Forked>>;
                   p.truncate(seq, n);
                   p.close(seq);
                   { c.contains(seq) } noexcept -> std::same_as<bool>;
                   { c.length(seq) } -> std::same_as<Pos>;
                   { c.reserved(seq) } -> std::same_as<Pos>;
                   c.for_each_run(seq, PosRange{}, detail::IgnoreSlots{});
                   { c.stats() } -> std::same_as<Stats>;
                   c.verify();
                 };

}  // namespace v0
}  // namespace kvc
