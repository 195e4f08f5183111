// EvictionPolicy: the contract of a type that decides which cached block is evicted first.
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
  std::uint64_t key = 0;   ///< hash of its prefix: equal prefixes have equal keys, different ones nearly always not
  Pos depth = 0;           ///< blocks before it in its prefix
  std::int32_t group = 0;  ///< layer group whose rows it holds; all blocks have the same bytes
  /// Nodes of the prefix index that it has room for: 1, unless blocks of layer groups hold different numbers of tokens.
  /// A prompt that ends with the block and lacks it is found by as much less, or, where a group has a window, not at
  /// all.
  Pos nodes = 1;
};

/// The contract of an eviction policy. The cache reports what happens to sequences and to cached blocks, and asks for a
/// victim when it needs room. A block is **evictable** while it is cached and no sequence references it.
///
/// In the table, `e` is an E, `c` a const E, `context` the SequenceContext of one sequence, `now` the logical time,
/// which never decreases.
///
///   expression                    | requires         | returns, does                   | throws           | complexity
///   ------------------------------+------------------+---------------------------------+------------------+-----------
///   E::name                       |                  | a name for reports, convertible |                  |
///                                 |                  | to std::string_view             |                  |
///   E::Config                     |                  | parameters;                     |                  |
///                                 |                  | default-constructible,          |                  |
///                                 |                  | copyable. Users set it as       |                  |
///                                 |                  | PrefixShared::Config::eviction  |                  |
///   E::SequenceContext            |                  | state that E keeps for one open |                  |
///                                 |                  | sequence;                       |                  |
///                                 |                  | default-constructible, cheap to |                  |
///                                 |                  | copy                            |                  |
///   E(blocks, config)             | config is valid  | a policy for blocks 0 ..        | invalid_argument | O(blocks)
///                                 |                  | blocks-1, none of them cached;  | bad_alloc        |
///                                 |                  | allocates all memory that it    |                  |
///                                 |                  | will ever need                  |                  |
///   e.on_open(context, found,     |                  | a sequence was opened or        |                  | O(found)
///     retention, now)             |                  | forked; `found` are the cached  |                  |
///                                 |                  | blocks at its beginning, in     |                  |
///                                 |                  | order, which it references.     |                  |
///                                 |                  | on_acquired follows for those   |                  |
///                                 |                  | that were evictable             |                  |
///   e.on_cached(context, stored,  | stored.block is  | a block that the sequence has   |                  | O(1)
///     now)                        | not cached       | computed became cached; the     |                  |
///                                 |                  | sequence references it          |                  |
///   e.on_close(context,           |                  | the sequence is about to        |                  | O(1)
///     referenced, now)            |                  | release its cached blocks,      |                  |
///                                 |                  | which are `referenced`, in      |                  |
///                                 |                  | order from its first position   |                  |
///   e.on_evictable(context,       | block is cached, | the last reference to the block |                  | O(1)
///     block, now)                 | not evictable    | was released                    |                  |
///   e.on_acquired(block)          | block is         | the block is referenced again,  |                  | O(1)
///                                 | evictable        | or is about to be removed from  |                  |
///                                 |                  | the cache                       |                  |
///   e.on_uncached(block)          | block is cached, | the block is not cached any     |                  | O(1)
///                                 | not evictable    | more                            |                  |
///   e.victim(now)                 | c.size() > 0     | an evictable block, the one to  |                  | O(1)
///                                 |                  | evict next; the same until      |                  |
///                                 |                  | another member is called        |                  |
///   c.size()                      |                  | Index: the number of evictable  |                  | O(1)
///                                 |                  | blocks                          |                  |
///
/// All members but the constructor are noexcept and allocate nothing. The cache keeps what the column "requires"
/// demands; a policy need not check it. Complexities are amortised; a policy may state others.
///
/// **Order of calls.** Blocks that one sequence releases together are reported last block first, with one `now`; so a
/// block becomes evictable no later than its ancestors. The cache evicts a victim's deepest cached descendant in its
/// place, reported by on_acquired and on_uncached: descendants always go before ancestors, but each victim that has
/// descendants costs the way down to them.
///
/// **Not every call comes.** A sequence that added nothing (a request that was postponed) is not reported by on_close;
/// it just releases its blocks, as truncate does. Pins release blocks with a SequenceContext that was never opened. A
/// block may be acquired that was not in `found`: one that matched in part.
///
/// testing/eviction_conformance.hpp checks the contract; a minimal policy is in tests/conformance/evictions.cpp.
template <class E>
concept EvictionPolicy =
    std::default_initializable<typename E::Config> && std::copyable<typename E::Config> &&
    std::constructible_from<E, Index, const typename E::Config&> && std::copyable<typename E::SequenceContext> &&
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

/// An eviction policy that learns what blocks are worth, each as much as any other. A cache in which that is not so
/// tells it, right after it was made, to do as leaf-first LRU does: where recurrent layers have states, a hit needs
/// one, and the rows without a state are worth nothing.
template <class E>
concept FollowsLru = EvictionPolicy<E> && requires(E e) {
  { e.follow_lru() } noexcept;
};

/// An eviction policy that estimates how likely blocks are to be used again. block_value (block_value.hpp) derives
/// from it what keeping a block is worth, and slower tiers choose blocks by that (tier/tiers_config.hpp).
///
///   c.hazard(block, now)   | double: the estimated chance per unit of time that a block is used again now, which is
///                          | evictable, or was the last victim; O(1)
template <class E>
concept EstimatesReuse = EvictionPolicy<E> && requires(const E c, BlockId block, std::uint64_t now) {
  { c.hazard(block, now) } noexcept -> std::same_as<double>;
};

/// Base class of an eviction policy that has no parameters, keeps nothing per sequence, or ignores some of the calls.
struct EvictionDefaults {
  struct Config {};
  struct SequenceContext {};
  /// Ignores the call, as the other members do.
  void on_open(auto&, std::span<const BlockId>, const Retention&, std::uint64_t) noexcept {}
  void on_cached(auto&, const StoredBlock&, std::uint64_t) noexcept {}
  void on_close(auto&, std::span<const BlockId>, std::uint64_t) noexcept {}
  void on_uncached(BlockId) noexcept {}
};

}  // namespace v0
}  // namespace kvc
