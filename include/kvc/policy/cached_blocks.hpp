// CachedBlocks: a pool of blocks that are free, held, or cached and held by nobody. Where PrefixShared gets its blocks.
//
// Binds the pool, the index, the eviction policy and the listener: every change of one that the others must know goes
// through here. Also keeps the quota of tenants.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_pool.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/eviction/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/prefix_index.hpp"

namespace kvc::inline v0::detail {

/// How many cached blocks each tenant keeps that nobody holds, and which of them is the oldest. Remembers the tenants of
/// open sequences and of cached blocks. O(1) expected, but that a tenant who is one more than there ever were may cost
/// O(blocks); 12 bytes per block, if there is a quota at all.
class TenantQuota {
 public:
  static constexpr int none = -1;

  /// At most `quota` blocks per tenant; 0: no limit.
  TenantQuota(Index blocks, Index quota) : quota_(quota), lists_(quota > 0 ? blocks : 0, 0) {
    if (quota > 0) {
      lists_.reserve(64);
      tenant_of_.assign(static_cast<std::size_t>(blocks), none);
    }
  }
  [[nodiscard]] bool limited() const noexcept { return quota_ > 0; }

  /// One holder more of a tenant: an open sequence. Throws std::bad_alloc; nothing has changed then.
  [[nodiscard]] int acquire(std::string_view tenant) {
    if (!limited()) {
      return none;
    }
    const std::string key(tenant);
    if (const auto known = ids_.find(key); known != ids_.end()) {
      ++tenants_[static_cast<std::size_t>(known->second)].holders;
      return known->second;
    }
    if (free_.empty()) {
      free_.reserve(tenants_.size() + 1);  // so that release cannot fail
      lists_.reserve(static_cast<int>(tenants_.size()) + 1);
      tenants_.emplace_back();
      lists_.add_list();
      free_.push_back(static_cast<int>(tenants_.size()) - 1);
    }
    const int id = free_.back();
    tenants_[static_cast<std::size_t>(id)].name = &ids_.emplace(key, id).first->first;
    tenants_[static_cast<std::size_t>(id)].holders = 1;
    free_.pop_back();
    return id;
  }
  void share(int tenant) noexcept {
    if (tenant != none) {
      ++tenants_[static_cast<std::size_t>(tenant)].holders;
    }
  }
  void release(int tenant) noexcept {
    if (tenant == none) {
      return;
    }
    Tenant& t = tenants_[static_cast<std::size_t>(tenant)];
    if (--t.holders == 0) {
      ids_.erase(ids_.find(*t.name));
      free_.push_back(tenant);
    }
  }

  /// A block of the tenant has become cached, or is not cached any more.
  void store(BlockId block, int tenant) noexcept {
    if (limited()) {
      tenant_of_[static_cast<std::size_t>(block)] = tenant;
      share(tenant);
    }
  }
  void remove(BlockId block) noexcept {
    if (limited()) {
      release(tenant_of_[static_cast<std::size_t>(block)]);
    }
  }
  /// A cached block is held by nobody, or is held again.
  void insert(BlockId block) noexcept {
    if (limited()) {
      lists_.push_newest(tenant_of_[static_cast<std::size_t>(block)], block);
      ++tenant(block).unheld;
    }
  }
  void erase(BlockId block) noexcept {
    if (limited()) {
      lists_.erase(block);
      --tenant(block).unheld;
    }
  }

  /// The block that its tenant must give up because of this one, or no_block. It has no cached children.
  [[nodiscard]] BlockId in_excess(BlockId block) noexcept {
    if (!limited() || tenant(block).unheld <= quota_) {
      return no_block;
    }
    return lists_.oldest(tenant_of_[static_cast<std::size_t>(block)]);
  }

  /// `sequences` holders are open sequences, all others cached blocks. Throws InvariantError.
  template <class IsCached, class IsUnheld>
  void verify(std::span<const Index> sequences, IsCached is_cached, IsUnheld is_unheld) const {
    if (!limited()) {
      return;
    }
    std::vector<Index> holders(sequences.begin(), sequences.end());
    std::vector<Index> unheld(tenants_.size(), 0);
    for (std::size_t i = 0; i < tenant_of_.size(); ++i) {
      const auto block = static_cast<BlockId>(i);
      if (is_cached(block)) {
        ++holders[static_cast<std::size_t>(tenant_of_[i])];
        unheld[static_cast<std::size_t>(tenant_of_[i])] += is_unheld(block) ? 1 : 0;
      }
    }
    for (std::size_t t = 0; t < tenants_.size(); ++t) {
      if (tenants_[t].holders != holders[t] || tenants_[t].unheld != unheld[t] || unheld[t] > quota_) {
        raise(InvariantError("kvc: tenant " + std::to_string(t) + " counts " + std::to_string(tenants_[t].unheld) +
                             " cached blocks, and has " + std::to_string(unheld[t])));
      }
    }
    if (ids_.size() + free_.size() != tenants_.size()) {
      raise(InvariantError("kvc: tenants that nobody uses are remembered, or used ones are not"));
    }
  }
  [[nodiscard]] std::size_t slots() const noexcept { return tenants_.size(); }

 private:
  struct Tenant {
    const std::string* name = nullptr;  // the key in ids_
    Index holders = 0;
    Index unheld = 0;
  };
  [[nodiscard]] Tenant& tenant(BlockId block) noexcept {
    return tenants_[static_cast<std::size_t>(tenant_of_[static_cast<std::size_t>(block)])];
  }

  Index quota_;
  BlockLists lists_;  // one per tenant: its cached blocks that nobody holds
  std::vector<int> tenant_of_;
  std::vector<Tenant> tenants_;
  std::vector<int> free_;
  std::unordered_map<std::string, int> ids_;
};

template <EvictionPolicy Eviction, class Hash, EventListener Events>
class CachedBlocks {
 public:
  using Index_ = PrefixIndex<Hash>;
  using Parent = typename Index_::Parent;
  using Visit = typename Eviction::Visit;

  BlockPool pool;
  Index_ index;
  Eviction eviction;
  TenantQuota quota;
  [[no_unique_address]] Events events;
  std::uint64_t now = 0;
  /// The sequence that lets go of blocks: to be set before a call of `release`.
  const Visit* letting_go = nullptr;

  CachedBlocks(Index blocks, Pos block_tokens, Index tenant_quota, const Hash& hash)
      : pool(blocks), index(blocks, block_tokens, hash), eviction(blocks), quota(blocks, tenant_quota) {}

  [[nodiscard]] Index size() const noexcept { return pool.size(); }
  [[nodiscard]] Index available() const noexcept { return pool.free() + eviction.size(); }
  [[nodiscard]] Index evictions() const noexcept { return evictions_; }

  [[nodiscard]] BlockId take() noexcept {
    if (pool.free() == 0) {
      evict_end_of(eviction.victim(now));
    }
    return pool.take();
  }
  void share(BlockId block) noexcept {
    if (pool.holders(block) == 0) {
      eviction.erase(block);
      quota.erase(block);
    }
    pool.share(block);
  }
  void share_held(BlockId block) noexcept { pool.share(block); }
  void release(BlockId block) noexcept {
    if (pool.drop(block) > 0) {
      return;
    }
    if (!index.contains(block)) {
      pool.give_back(block);
      return;
    }
    eviction.insert(*letting_go, block, now);
    quota.insert(block);
    if (const BlockId excess = quota.in_excess(block); excess != no_block) {
      evict_end_of(excess);
    }
  }
  [[nodiscard]] bool writable(BlockId block) const noexcept {
    return pool.holders(block) == 1 && !index.contains(block);
  }
  [[nodiscard]] bool reclaimable(BlockId block) const noexcept { return pool.holders(block) == 1; }
  /// Takes a block out of the index, and what is cached behind it, which nobody can hold who does not hold the block.
  void reclaim(BlockId block) noexcept {
    while (index.has_children(block)) {
      evict_end_of(index.newest_child(block));
    }
    take_out(block);
    ++evictions_;
  }

  /// Enters a block that a sequence holds and has written; `root` is that of its prefix. If an equal one is cached
  /// already, that is returned, else no_block.
  BlockId store(Visit& visit, int tenant, Parent root, BlockId block, Parent parent, std::uint64_t hash,
                Pos depth) noexcept {
    if (const BlockId equal = index.insert(block, parent, hash); equal != no_block) {
      return equal;
    }
    quota.store(block, tenant);
    eviction.store(visit, StoredBlock{block, hash, depth}, now);
    if constexpr (Events::listens) {
      events(BlockStored{events_++, block, parent.is_root() ? no_block : static_cast<BlockId>(parent.index()),
                         index.salt(root), std::as_const(index).tokens(block)});
    }
    return no_block;
  }

  /// The number that the next event will have.
  [[nodiscard]] std::uint64_t next_event() const noexcept { return events_; }

  /// Forgets what is cached. Blocks that somebody holds stay held. O(blocks).
  void clear() noexcept {
    for (Index i = 0; i < pool.size(); ++i) {
      const auto block = static_cast<BlockId>(i);
      if (!index.contains(block)) {
        continue;
      }
      if (pool.holders(block) == 0) {
        eviction.erase(block);
        quota.erase(block);
        pool.give_back(block);
      }
      eviction.remove(block);
      quota.remove(block);
    }
    index.clear();
    line_ = {};
    if constexpr (Events::listens) {
      events(AllBlocksCleared{events_++});
    }
  }

  void verify(std::span<const std::int32_t> holders, std::span<const Index> sequences_of_tenants) const {
    pool.verify(holders);
    index.verify();
    Index held = 0;
    Index cached = 0;
    for (std::size_t i = 0; i < holders.size(); ++i) {
      held += holders[i] > 0 ? 1 : 0;
      cached += holders[i] == 0 && index.contains(static_cast<BlockId>(i)) ? 1 : 0;
    }
    if (cached != eviction.size() || held + cached + pool.free() != pool.size()) {
      raise(InvariantError("kvc: blocks are neither free nor cached nor held"));
    }
    quota.verify(
        sequences_of_tenants, [&](BlockId block) { return index.contains(block); },
        [&](BlockId block) { return pool.holders(block) == 0; });
  }

 private:
  /// Gives up an unheld block without cached children: the end of a line of descendants of `block`, or itself.
  /// Descendants of an unheld block are unheld.
  ///
  /// A policy that names a block with many descendants names it again until they are gone, so the way down is remembered.
  void evict_end_of(BlockId block) noexcept {
    BlockId end = line_.victim == block ? line_.end : block;
    while (index.has_children(end)) {
      end = index.newest_child(end);
    }
    const Parent parent = index.parent(end);
    eviction.erase(end);
    quota.erase(end);
    take_out(end);
    pool.give_back(end);
    ++evictions_;
    line_ = end == block ? Line{} : Line{block, static_cast<BlockId>(parent.index())};
  }

  void take_out(BlockId block) noexcept {
    index.erase(block);
    eviction.remove(block);
    quota.remove(block);
    if (block == line_.end) {
      line_ = {};
    }
    if constexpr (Events::listens) {
      events(BlockRemoved{events_++, block});
    }
  }

  struct Line {
    BlockId victim = no_block;
    BlockId end = no_block;  // the victim, or a descendant of it
  };
  Line line_;
  Index evictions_ = 0;
  std::uint64_t events_ = 0;
};

}  // namespace kvc::inline v0::detail
