// The contract of a policy: who holds which slots. A policy is integers only; it never sees a key or a value.
//
// Slots are organised in `blocks()` blocks of `block_tokens()` slots: the geometry of the pool that a cache allocates
// once. A sequence has a committed `length` and, between try_extend and commit or rollback, further positions that are
// reserved.
//
//   expression                            does
//   P(config)                             validates; throws std::invalid_argument
//   p.try_open(prompt, options)           a new sequence -> optional<Opened>; what of the prompt is already in place becomes
//                                         its first `cached` positions, but at least one token of a prompt is left to compute
//   p.try_extend(seq, n, tokens)          reserves the next n positions, all or nothing -> optional<Extension>; tokens is
//                                         empty or n tokens: only a policy that matches prefixes looks at them
//   p.commit(seq)                         the reserved positions are written: they count, and may be matched
//   p.rollback(seq)                       they are not: all sequences are as before try_extend; noexcept
//   p.try_fork(seq, at)                   a new sequence with the first `at` positions of another -> optional<Forked>
//   p.truncate(seq, length)               forgets the positions from `length` on
//   p.close(seq)                          forgets the sequence, and what it has reserved
//   p.contains(seq)                       whether the handle is of an open sequence
//   p.length(seq), p.reserved(seq)        committed; committed and reserved
//   p.for_each_run(seq, range, f)         f(SlotRun) over the positions of range in ascending order
//   p.stats(), p.verify()                 bookkeeping; verify throws InvariantError when it contradicts itself
//
// Of every operation: an empty optional means "no room" and nothing has changed; so does an exception. A handle that is
// not open, a position outside of the sequence, an operation on a sequence with an uncommitted extension other than
// commit, rollback and close: std::invalid_argument. `RowCopy`s in a result are to be carried out at once, before any
// other operation. One writer at a time; const members are safe beside each other.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <span>

#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/salt.hpp"

namespace kvc {
inline namespace v0 {

/// What may be said when a sequence is opened.
struct OpenOptions {
  Salt salt{};  ///< prefixes are shared only between equal salts
  Pos max_tokens =
      0;  ///< Contiguous: most tokens of this sequence, in reserve mode taken at once; 0: the policy's maximum
  Retention retention{};  ///< PrefixShared<Priority>: how much its blocks are wanted after it
};

/// Whether a request can be taken on.
enum class Admission : std::uint8_t {
  never,  ///< it has not enough room even when nothing else is there
  later,  ///< not now
  now
};

/// A new sequence, of which the first `cached` positions are committed already.
struct Opened {
  SeqId seq;
  Pos cached = 0;
};

/// Positions reserved for writing, and the rows that must be copied first: the shared tail of a copy-on-write, or all
/// rows of a sequence that had to move.
struct Extension {
  PosRange range;
  RowCopy copy;
};

/// A new sequence, and the rows that must be copied for it.
struct Forked {
  SeqId seq;
  RowCopy copy;
};

namespace detail {
struct IgnoreSlots {
  void operator()(const SlotRun&) const noexcept {}
};
}  // namespace detail

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

/// A policy whose sequences are tables of blocks, as paged kernels want them: position p of a sequence is slot
/// p % block_tokens() of block  block_table(seq)[p / block_tokens()].
template <class P>
concept BlockTablePolicy = Policy<P> && requires(const P c, SeqId seq) {
  { c.block_table(seq) } -> std::same_as<std::span<const BlockId>>;
};

}  // namespace v0
}  // namespace kvc
