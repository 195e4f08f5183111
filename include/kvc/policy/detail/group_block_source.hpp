// GroupBlockSource: where the sequences of several layer groups get their blocks from.
#pragma once

#include <concepts>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The source of blocks of GroupTables: they are allocated from it and released to it, and a block serves any group. In
/// the table, `s` is a source, `c` a const one, `b` a block of it, `state` the state of a sequence. No expression
/// throws. All but `reclaim` are O(1), amortised.
///
///   expression             | requires           | returns and effects
///   -----------------------|--------------------|---------------------------------------------------------------------
///   c.size()               |                    | blocks in all
///   c.available()          |                    | blocks that `allocate` can give, one after the other
///   s.allocate()           | c.available() > 0  | a free or evicted block, with one reference
///   s.ref(b)               | b is not free      | adds a reference
///   s.ref_referenced(b)    | b has a reference  | as ref(b)
///   s.release(b, state)    | b has a reference  | removes a reference, which the sequence with this state had
///   c.unshared(b)          |                    | whether b has one reference
///   c.is_private(b)        |                    | whether it has one, and no prefix that is found can give it another
///   c.writable(b, rows)    | b has a reference  | whether a sequence that has the first `rows` rows of b may write
///                          |                    | those behind them
///   c.reclaimable(b, rows) | b has a reference  | whether it may after reclaim(b)
///   s.reclaim(b)           | b has one          | makes b writable; takes no block, c.available() stays
template <class B, class State>
concept GroupBlockSource = requires(B blocks, const B c, BlockId block, Pos rows, const State& state) {
  { c.size() } noexcept -> std::same_as<Index>;
  { c.available() } noexcept -> std::same_as<Index>;
  { blocks.allocate() } noexcept -> std::same_as<BlockId>;
  { blocks.ref(block) } noexcept;
  { blocks.ref_referenced(block) } noexcept;
  { c.unshared(block) } noexcept -> std::same_as<bool>;
  { c.is_private(block) } noexcept -> std::same_as<bool>;
  { blocks.release(block, state) } noexcept;
  { c.writable(block, rows) } noexcept -> std::same_as<bool>;
  { c.reclaimable(block, rows) } noexcept -> std::same_as<bool>;
  { blocks.reclaim(block) } noexcept;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
