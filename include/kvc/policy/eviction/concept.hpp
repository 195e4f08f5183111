// The contract of an eviction policy: which of the cached blocks that nobody holds goes first.
//
//   expression              does
//   E(blocks)               for blocks 0 .. blocks-1; allocates all it will ever need
//   e.insert(block, now)    the last holder has let go of a cached block: it may be given up
//   e.erase(block)          it is held again, or gone
//   e.touch(block, now)     a match has found the block, held or not; if not, it is erased next, since it is held now
//   e.victim()              the block to give up next; it stays until erased. Needs size() > 0
//   e.size()                blocks that may be given up
//
// `now` is logical: it never decreases, and blocks let go of together are told last block first, with the same `now`. A
// block is let go of no later than its ancestors. A victim may have cached descendants: the end of their line goes in its
// place, and the policy is told by erase. Descendants always go before ancestors. All but the constructor are noexcept.
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>

#include "kvc/core/types.hpp"

namespace kvc::inline v0 {

template <class E>
concept EvictionPolicy = std::constructible_from<E, Index> && requires(E e, const E c, BlockId block, std::uint64_t now) {
  { E::name } -> std::convertible_to<std::string_view>;
  { e.insert(block, now) } noexcept;
  { e.erase(block) } noexcept;
  { e.touch(block, now) } noexcept;
  { c.victim() } noexcept -> std::same_as<BlockId>;
  { c.size() } noexcept -> std::same_as<Index>;
};

}  // namespace kvc::inline v0
