// CachedBlocks: a pool of blocks that are free, referenced, or evictable. PrefixShared gets its blocks from it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_pool.hpp"
#include "kvc/policy/detail/tenant_quota.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/prefix_index.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The source of blocks of a prefix cache (see BlockSource): a pool, and the index, the eviction policy, the quota and
/// the listener that must follow its changes. Each change that concerns several of them is one member function here.
template <EvictionPolicy Eviction, class Hash, EventListener Events>
class CachedBlocks {
 public:
  using PrefixIndexType = PrefixIndex<Hash>;
  using Parent = typename PrefixIndexType::Parent;
  using SequenceContext = typename Eviction::SequenceContext;

  BlockPool pool;
  PrefixIndexType index;
  Eviction eviction;
  TenantQuota quota;
  [[no_unique_address]] Events events;
  std::uint64_t now = 0;

  CachedBlocks(Index blocks, Pos block_tokens, Index tenant_quota, const typename Eviction::Config& eviction_config,
               const Hash& hash)
      : pool(blocks),
        index(blocks, block_tokens, hash),
        eviction(blocks, eviction_config),
        quota(blocks, tenant_quota) {}

  [[nodiscard]] Index size() const noexcept { return pool.size(); }
  [[nodiscard]] Index available() const noexcept { return pool.available() + evictable(); }
  /// Blocks that eviction would make free.
  [[nodiscard]] Index evictable() const noexcept { return eviction.size(); }
  [[nodiscard]] Index evictions() const noexcept { return evictions_; }

  [[nodiscard]] BlockId allocate() noexcept {
    if (pool.available() == 0) {
      evict_last_of_chain(eviction.victim(now));
    }
    return pool.allocate();
  }
  void ref(BlockId block) noexcept {
    if (pool.ref_count(block) == 0) {
      eviction.on_acquired(block);
      quota.on_acquired(block);
    }
    pool.ref(block);
  }
  void ref_referenced(BlockId block) noexcept { pool.ref(block); }
  /// Removes a reference, which a sequence with this state had; `state` has a member `context`.
  void release(BlockId block, const auto& state) noexcept {
    if (pool.unref(block) > 0) {
      return;
    }
    if (!index.contains(block)) {
      pool.free(block);
      return;
    }
    eviction.on_evictable(state.context, block, now);
    quota.on_evictable(block);
    if (const BlockId excess = quota.in_excess(block); excess != no_block) {
      evict_last_of_chain(excess);
    }
  }
  [[nodiscard]] bool writable(BlockId block) const noexcept {
    return pool.ref_count(block) == 1 && !index.contains(block);
  }
  [[nodiscard]] bool reclaimable(BlockId block) const noexcept { return pool.ref_count(block) == 1; }
  /// Removes a block from the index, and its cached descendants, which nothing references: a sequence that references
  /// a descendant references the block too.
  void reclaim(BlockId block) noexcept {
    while (index.has_children(block)) {
      evict_last_of_chain(index.newest_child(block));
    }
    take_out(block);
    ++evictions_;
  }

  /// Enters a block that a sequence references and has written; `root` is that of its prefix. If an equal block is
  /// cached already, returns that one, else no_block.
  BlockId cache(SequenceContext& context, int tenant, Parent root, BlockId block, Parent parent, std::uint64_t hash,
                Pos depth) noexcept {
    if (const BlockId equal = index.insert(block, parent, hash); equal != no_block) {
      return equal;
    }
    quota.on_cached(block, tenant);
    eviction.on_cached(context, StoredBlock{block, hash, depth}, now);
    if constexpr (Events::listens) {
      events(BlockStored{events_++, block, parent.is_root() ? no_block : parent.block(), index.roots().salt(root),
                         std::as_const(index).tokens(block)});
    }
    return no_block;
  }

  /// The number that the next event will have.
  [[nodiscard]] std::uint64_t next_event() const noexcept { return events_; }

  /// Drops everything cached. Referenced blocks stay referenced. O(blocks).
  void clear() noexcept {
    for (Index i = 0; i < pool.size(); ++i) {
      const BlockId block{static_cast<std::int32_t>(i)};
      if (!index.contains(block)) {
        continue;
      }
      if (pool.ref_count(block) == 0) {
        eviction.on_acquired(block);
        quota.on_acquired(block);
        pool.free(block);
      }
      eviction.on_uncached(block);
      quota.on_uncached(block);
    }
    index.clear();
    chain_ = {};
    if constexpr (Events::listens) {
      events(AllBlocksCleared{events_++});
    }
  }

  void verify(const BlockArray<std::int32_t>& references, std::span<const Index> sequences_of_tenants) const {
    index.verify();
    Index evictable = 0;
    references.for_each(
        [&](BlockId block, std::int32_t count) { evictable += count == 0 && index.contains(block) ? 1 : 0; });
    pool.verify(references, evictable);
    if (evictable != eviction.size()) {
      throw_error(InvariantError("kvc: the eviction policy has " + std::to_string(eviction.size()) + " blocks, and " +
                                 std::to_string(evictable) + " are evictable"));
    }
    quota.verify(
        sequences_of_tenants, [&](BlockId block) { return index.contains(block); },
        [&](BlockId block) { return pool.ref_count(block) == 0; });
  }

 private:
  /// Evicts the last block of a chain of cached descendants of `block`, or the block itself if it has none. Descendants
  /// of an evictable block are evictable.
  ///
  /// A policy that names a block with many descendants names it again until they are gone, so the way down is
  /// remembered.
  void evict_last_of_chain(BlockId block) noexcept {
    BlockId end = chain_.victim == block ? chain_.end : block;
    while (index.has_children(end)) {
      end = index.newest_child(end);
    }
    const Parent parent = index.parent(end);
    eviction.on_acquired(end);
    quota.on_acquired(end);
    take_out(end);
    pool.free(end);
    ++evictions_;
    chain_ = end == block ? Chain{} : Chain{block, parent.block()};
  }

  void take_out(BlockId block) noexcept {
    index.erase(block);
    eviction.on_uncached(block);
    quota.on_uncached(block);
    if (block == chain_.end) {
      chain_ = {};
    }
    if constexpr (Events::listens) {
      events(BlockRemoved{events_++, block});
    }
  }

  struct Chain {
    BlockId victim = no_block;
    BlockId end = no_block;  // the victim, or a descendant of it
  };
  Chain chain_;
  Index evictions_ = 0;
  std::uint64_t events_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
