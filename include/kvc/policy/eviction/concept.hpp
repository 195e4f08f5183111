// The contract of an eviction policy: which of the cached blocks that nobody holds goes first.
//
// A policy is told what happens to sequences and to cached blocks, and asked for a victim.
//
//   expression                            does
//   E(blocks)                             for blocks 0 .. blocks-1; allocates all that it will ever need
//   E::SequenceContext                              what it remembers of one sequence while that is open; cheap to copy
//   e.on_open(context, found, retention, now)  a sequence was opened or forked, and holds these cached blocks, the first
//                                         ones of its prefix. Those that nobody held are erased after this
//   e.on_cached(context, stored, now)           a block that the sequence computed has become cached; the sequence holds it
//   e.on_close(context, held, now)             the sequence is about to let go of these cached blocks, its first ones
//   e.on_evictable(context, block, now)           the last holder has let go of a cached block: it may be given up
//   e.on_acquired(block)                        it is held again, or about to be removed
//   e.on_uncached(block)                       it is not cached any more
//   e.victim(now)                         the block to give up next. Needs size() > 0
//   e.size()                              blocks that may be given up
//
// Not every sequence is closed: one that added nothing, because it was put off, just lets go; so does truncate. And pins
// let go with a SequenceContext that was never opened. A block may be erased without having been found, when a match ends within it.
//
// `now` is logical: it never decreases. Blocks let go of together are told last block first, with the same `now`. A
// block is let go of no later than its ancestors. A victim may have cached descendants: the end of their line goes in
// its place, and the policy is told by erase and remove. So descendants always go before ancestors, whatever a policy
// says; but every victim with descendants costs the way down to them.
//
// All but the constructor are noexcept and, amortised, O(1) unless their policy says otherwise.
#pragma once

#include <concepts>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvc/core/types.hpp"
#include "kvc/policy/retention.hpp"

namespace kvc {
inline namespace v0 {

/// A block that has become cached.
struct StoredBlock {
  BlockId block = no_block;
  std::uint64_t key = 0;  ///< hash of its prefix: a prefix that comes again has the same, and others nearly never
  Pos depth = 0;          ///< blocks before it in its prefix
};

template <class E>
concept EvictionPolicy =
    std::constructible_from<E, Index> && std::copyable<typename E::SequenceContext> &&
    std::default_initializable<typename E::SequenceContext> &&
    requires(E e, const E c, typename E::SequenceContext& context, BlockId block, std::span<const BlockId> blocks,
             const StoredBlock& stored, const Retention& retention, std::uint64_t now) {
      { E::name } -> std::convertible_to<std::string_view>;
      { e.on_open(context, blocks, retention, now) } noexcept;
      { e.on_cached(context, stored, now) } noexcept;
      { e.on_close(context, blocks, now) } noexcept;
      { e.on_evictable(context, block, now) } noexcept;
      { e.on_acquired(block) } noexcept;
      { e.on_uncached(block) } noexcept;
      { e.victim(now) } noexcept -> std::same_as<BlockId>;
      { c.size() } noexcept -> std::same_as<Index>;
    };

/// What a policy inherits that has no use for some of the calls.
struct EvictionDefaults {
  struct SequenceContext {};
  void on_open(auto&, std::span<const BlockId>, const Retention&, std::uint64_t) noexcept {}
  void on_cached(auto&, const StoredBlock&, std::uint64_t) noexcept {}
  void on_close(auto&, std::span<const BlockId>, std::uint64_t) noexcept {}
  void on_uncached(BlockId) noexcept {}
};

}  // namespace v0
}  // namespace kvc
