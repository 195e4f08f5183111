// GroupCachedBlocks: the blocks of several layer groups in one pool, each free, referenced, or evictable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_pool.hpp"
#include "kvc/policy/detail/block_sizes.hpp"
#include "kvc/policy/detail/cross_blocks.hpp"
#include "kvc/policy/detail/group_nodes.hpp"
#include "kvc/policy/detail/state_chains.hpp"
#include "kvc/policy/detail/tenant_quota.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/eviction/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The source of blocks of GroupTokenTables (see GroupBlockSource): binds the pool, the index of prefixes, the eviction
/// policy, quotas and the listener. Every change of one that the others must know goes through here. All blocks have
/// the same number of bytes, so a victim of any group makes room for any other.
template <EvictionPolicy Eviction, class Hash, EventListener Events>
class GroupCachedBlocks {
 public:
  using Nodes = GroupNodes<Hash>;
  using Node = typename Nodes::Node;
  using Parent = typename Nodes::Parent;
  using SequenceContext = typename Eviction::SequenceContext;

  BlockPool pool;
  Nodes nodes;
  Eviction eviction;
  TenantQuota quota;
  [[no_unique_address]] Events events;
  std::uint64_t now = 0;

  GroupCachedBlocks(Index blocks, Index index_nodes, const GroupRules& rules, const BlockSizes& sizes,
                    Index tenant_quota, const typename Eviction::Config& eviction_config, const Hash& hash)
      : pool(blocks),
        nodes(blocks, index_nodes, sizes, hash),
        eviction(blocks, eviction_config),
        quota(blocks, tenant_quota),
        evictable_(nodes.columns(), 0),
        keeps_everything_(nodes.columns(), 0),
        states_(blocks, nodes.groups(), sizes.states) {
    for (std::size_t g = 0; g < nodes.groups(); ++g) {
      keeps_everything_[g] = rules.groups[g].retained.everything() && rules.groups[g].cross_rows == 0 ? 1 : 0;
    }
    if constexpr (FollowsLru<Eviction>) {
      if (!rules.states.empty()) {
        eviction.follow_lru();
      }
    }
  }

  [[nodiscard]] Index size() const noexcept { return pool.size(); }
  [[nodiscard]] Index available() const noexcept { return pool.available() + evictable(); }
  /// Blocks that eviction would make free: those that the eviction policy has, and the others of states.
  [[nodiscard]] Index evictable() const noexcept { return eviction.size() + evictable_others_; }
  [[nodiscard]] Index evictions() const noexcept { return evictions_; }
  /// Blocks of one state of a kind behind the first one; 0 of a layer group.
  [[nodiscard]] Index others(std::size_t column) const noexcept { return states_.others(column); }
  /// Evictable blocks of a column that the eviction policy has.
  [[nodiscard]] Index evictable(std::size_t group) const noexcept { return evictable_[group]; }

  [[nodiscard]] KVC_ALWAYS_INLINE BlockId allocate() noexcept {
    if (pool.available() == 0) [[unlikely]] {
      make_room();
    }
    return pool.allocate();
  }
  void ref(BlockId block) noexcept {
    if (pool.ref_count(block) == 0) {
      acquire(block);
    }
    pool.ref(block);
  }
  void ref_referenced(BlockId block) noexcept { pool.ref(block); }
  [[nodiscard]] bool unshared(BlockId block) const noexcept { return pool.ref_count(block) == 1; }
  [[nodiscard]] bool is_private(BlockId block) const noexcept { return unshared(block) && !nodes.is_cached(block); }
  /// One reference less, of a sequence whose state has a `context`.
  void release(BlockId block, const auto& state) noexcept {
    if (pool.unref(block) > 0) {
      return;
    }
    if (!nodes.is_cached(block)) {
      pool.free(block);
      return;
    }
    make_evictable(block, state);
    if (const BlockId excess = quota.in_excess(block); excess != no_block) {
      evict_for(excess);
    }
  }
  /// Whether the rows behind the first `rows` may be written: nothing else references the block, and no prefix has
  /// them.
  [[nodiscard]] bool writable(BlockId block, Pos rows) const noexcept {
    return pool.ref_count(block) == 1 && (!nodes.is_cached(block) || nodes.rows(block) <= rows);
  }
  [[nodiscard]] bool reclaimable(BlockId block, Pos /*rows*/) const noexcept { return pool.ref_count(block) == 1; }
  /// Takes a block with one reference from the index, and with it what is of use only behind it.
  void reclaim(BlockId block) noexcept {
    if (!nodes.is_cached(block)) {
      return;
    }
    if (is_needed_by_descendants(block)) {
      victim_ = no_block;
      while (evict_descendant(nodes.last_node(block), nodes.last_node(block))) {
      }
    }
    uncache(block);
    ++evictions_;
  }

  /// A block of a sequence that a node gets: it becomes cached, unless it is already.
  ///   number   which block of its group it is, from the first position on
  void attach(SequenceContext& context, int tenant, Parent root, Node node, std::size_t group, Pos number,
              BlockId block) noexcept {
    const bool was_cached = nodes.is_cached(block);
    nodes.attach(node, group, number * nodes.block_tokens(group), block);
    if (!was_cached) {
      quota.on_cached(block, tenant);
      eviction.on_cached(context,
                         StoredBlock{block, key(node, group), number, as_group(group),
                                     nodes.block_tokens(group) / nodes.node_tokens()},
                         now);
    }
    if constexpr (Events::listens) {
      events(stored(events_++, root, node, group, block));
    }
  }
  /// The states of one kind that a sequence references, after the last token of a node: the first block becomes cached,
  /// and the index references the others as long as it is.
  void attach_state(SequenceContext& context, int tenant, Parent root, Node node, std::size_t kind,
                    std::span<const BlockId> blocks) noexcept {
    const std::size_t column = nodes.groups() + kind;
    const auto number = static_cast<Pos>(nodes.end(Parent(node)) / nodes.node_tokens() - 1);
    nodes.attach_state(node, kind, blocks[0]);
    states_.link(blocks);
    for (const BlockId other : blocks.subspan(1)) {
      pool.ref(other);
    }
    quota.on_cached(blocks[0], tenant);
    eviction.on_cached(context, StoredBlock{blocks[0], key(node, column), number, as_group(column)}, now);
    if constexpr (Events::listens) {
      events(stored(events_++, root, node, column, blocks[0]));
    }
  }
  /// The block of cached states behind this one; no_block behind the last one.
  [[nodiscard]] BlockId next_of_state(BlockId block) const noexcept { return states_.next(block); }
  /// Adds the references that the index has to blocks of states.
  void add_references(BlockArray<std::int32_t>& references) const noexcept {
    for (Index i = 0; i < pool.size(); ++i) {
      const BlockId first{static_cast<std::int32_t>(i)};
      if (nodes.is_cached(first)) {
        states_.for_each_other(first, nodes.group(first), [&](BlockId block) { ++references[block]; });
      }
    }
  }
  /// A sequence that references `own` takes the cached block `equal`, which has the same rows, in its place.
  void merge(BlockId own, BlockId equal, const auto& state) noexcept {
    ref(equal);
    if (nodes.is_cached(own) && unshared(own)) {  // others keep what they have found
      const std::size_t group = nodes.group(equal);
      forget(own, group);
      nodes.replace(own, equal, [&](Node node) {
        if constexpr (Events::listens) {
          events(stored(events_++, state.root, node, group, equal));
        }
        (void)node;
      });
    }
    release(own, state);
  }
  /// Takes a block that a sequence references from the index, because no later prompt could hit it.
  void uncache(BlockId block) noexcept {
    if (nodes.is_cross(block)) [[unlikely]] {
      drop_cross(block);
      return;
    }
    const std::size_t group = nodes.group(block);
    victim_ = block == victim_ ? no_block : victim_;
    nodes.detach(block);
    forget(block, group);
    release_others(block, group);
  }
  /// The same, and takes back the reference, which is the only one: the block is free.
  void uncache_and_free(BlockId block) noexcept {
    uncache(block);
    pool.unref(block);
    pool.free(block);
  }

  /// Takes a cached block that nothing references from the index. Blocks that no prompt can hit any more go first.
  void discard(BlockId block) noexcept {
    acquire(block);
    uncache(block);
    pool.free(block);
  }

  // --- rows of other inputs ------------------------------------------------------------------------------------------

  /// Makes room, so that attach_cross cannot fail. Throws std::bad_alloc.
  void reserve_cross(Parent root, std::size_t blocks) { cross_.reserve(root, blocks); }
  /// The blocks of a root, group after group: see CrossBlocks.
  [[nodiscard]] std::span<const BlockId> cross(Parent root) const noexcept { return cross_.of(root); }
  /// A block that a sequence references and has written becomes one of its root.
  void attach_cross(SequenceContext& context, int tenant, Parent root, std::size_t group, BlockId block) noexcept {
    const std::size_t number = cross(root).size();
    if (number == 0) {
      nodes.index.roots().ref(root);
    }
    nodes.attach_cross(root, group, block);
    quota.on_cached(block, tenant);
    const std::uint64_t key = nodes.index.roots().hash(root) + (number + 1) * 0x9e37'79b9'7f4a'7c15U;
    eviction.on_cached(context, StoredBlock{block, key, static_cast<Pos>(number), as_group(group)}, now);
    cross_.add(root, block);
    if constexpr (Events::listens) {
      events(stored_cross(events_++, root, group, block));
    }
  }
  [[nodiscard]] BlockStored stored_cross(std::uint64_t number, Parent root, std::size_t group,
                                         BlockId block) const noexcept {
    return {number, block, no_block, nodes.index.roots().salt(root), {}, as_group(group)};
  }

  /// Makes a free node by evicting. False if there is none after a few evictions: most nodes lead to where open
  /// sequences are, then, and more evictions would be in vain, too.
  bool make_free_node() noexcept {
    for (int tries = 0; tries < most_tries && !nodes.has_free_node() && eviction.size() > 0; ++tries) {
      evict_for(eviction.victim(now));
    }
    return nodes.has_free_node();
  }

  /// An evictable block is used, and is then as new as one that is released now.
  void refresh(BlockId block, const auto& state) noexcept {
    if (nodes.is_cached(block) && pool.ref_count(block) == 0) {
      acquire(block);
      make_evictable(block, state);
    }
  }

  [[nodiscard]] std::uint64_t next_event() const noexcept { return events_; }
  /// The event of a node that got a block. Not of a node without one.
  [[nodiscard]] BlockStored stored(std::uint64_t number, Parent root, Node node, std::size_t group,
                                   BlockId block) const noexcept {
    const Parent parent = nodes.index.parent(node);
    return {number,
            block,
            parent.is_root() ? no_block : nodes.block(parent.block(), group),
            nodes.index.roots().salt(root),
            nodes.index.tokens(node),
            as_group(group),
            static_cast<std::int32_t>(node)};
  }
  /// The event of a new node.
  [[nodiscard]] NodeAdded added(Parent root, Node node) const noexcept {
    const Parent parent = nodes.index.parent(node);
    return {static_cast<std::int32_t>(node),
            parent.is_root() ? BlockStored::no_node : static_cast<std::int32_t>(parent.block()),
            nodes.index.roots().salt(root), nodes.index.tokens(node)};
  }
  /// Tells a listener that wants to hear it of a new node.
  void report_node(Parent root, Node node) noexcept {
    if constexpr (Events::listens && NodeListener<Events>) {
      events.on_node(added(root, node));
    }
    (void)root;
    (void)node;
  }

  /// Drops everything cached. Referenced blocks stay referenced; nobody may end at a node any more. O(blocks + nodes).
  void clear() noexcept {
    for (Index i = 0; i < pool.size(); ++i) {
      const BlockId block{static_cast<std::int32_t>(i)};
      if (!nodes.is_cached(block)) {
        continue;
      }
      const std::size_t group = nodes.group(block);
      if (pool.ref_count(block) == 0) {
        acquire(block);
        pool.free(block);
      }
      eviction.on_uncached(block);
      quota.on_uncached(block);
      release_others(block, group);
    }
    nodes.clear();
    cross_.clear_all([&](Parent root) { nodes.index.roots().release(root); });
    victim_ = no_block;
    if constexpr (Events::listens) {
      events(AllBlocksCleared{events_++});
    }
  }

  void verify(const BlockArray<std::int32_t>& references, const BlockArray<std::int32_t>& ends,
              std::span<const Index> sequences_of_tenants) const {
    nodes.verify(ends);
    Index cross = cross_.verify(nodes);
    references.for_each([&](BlockId block, std::int32_t) { cross -= nodes.is_cross(block) ? 1 : 0; });
    if (cross != 0) {
      throw_error(InvariantError("kvc: blocks with rows of another input belong to no salt"));
    }
    std::vector<Index> evictable(evictable_.size(), 0);
    Index all = 0;
    references.for_each([&](BlockId block, std::int32_t count) {
      if (count == 0 && nodes.is_cached(block)) {
        ++evictable[nodes.group(block)];
        ++all;
      }
    });
    pool.verify(references, all);
    if (evictable != evictable_ || all != eviction.size()) {
      throw_error(InvariantError("kvc: the eviction policy has " + std::to_string(eviction.size()) + " blocks, and " +
                                 std::to_string(all) + " are evictable"));
    }
    quota.verify(
        sequences_of_tenants, [&](BlockId block) { return nodes.is_cached(block); },
        [&](BlockId block) { return pool.ref_count(block) == 0; });
  }

 private:
  [[nodiscard]] static std::int32_t as_group(std::size_t group) noexcept { return static_cast<std::int32_t>(group); }
  /// Of the same prefix, another key in each group.
  [[nodiscard]] std::uint64_t key(Node node, std::size_t group) const noexcept {
    return nodes.index.hash(node) + group * 0x9e37'79b9'7f4a'7c15U;
  }

  void acquire(BlockId block) noexcept {
    eviction.on_acquired(block);
    quota.on_acquired(block);
    --evictable_[nodes.group(block)];
    evictable_others_ -= states_.others(nodes.group(block));
  }
  void make_evictable(BlockId block, const auto& state) noexcept {
    eviction.on_evictable(state.context, block, now);
    quota.on_evictable(block);
    ++evictable_[nodes.group(block)];
    evictable_others_ += states_.others(nodes.group(block));
  }
  /// The index has the states that begin with `first` no more.
  void release_others(BlockId first, std::size_t group) noexcept {
    if (states_.others(group) > 0) [[unlikely]] {
      release_chain(first, group);
    }
  }
  KVC_OUT_OF_LINE void release_chain(BlockId first, std::size_t group) noexcept {
    states_.for_each_other(first, group, [&](BlockId block) {
      if (pool.unref(block) == 0) {
        pool.free(block);
      }
    });
  }
  /// Of a block that is not in the index any more.
  void forget(BlockId block, std::size_t group) noexcept {
    eviction.on_uncached(block);
    quota.on_uncached(block);
    if constexpr (Events::listens) {
      events(BlockRemoved{events_++, block, as_group(group)});
    }
    (void)group;
  }

  /// Takes all blocks from the root of this one, which is about to be used for something else or is referenced. Without
  /// one of them the others are of no use: those that nothing references are free.
  KVC_OUT_OF_LINE void drop_cross(BlockId block) noexcept {
    const Parent root = nodes.cross_root(block);
    for (const BlockId each : cross(root)) {
      const std::size_t group = nodes.group(each);
      const bool is_free = each != block && pool.ref_count(each) == 0;
      if (is_free) {
        acquire(each);
        ++evictions_;
      }
      nodes.detach_cross(each);
      forget(each, group);
      if (is_free) {
        pool.free(each);
      }
    }
    cross_.clear(root);
    nodes.index.roots().release(root);
  }

  /// Whether no hit can go beyond this block without it: it is full, and its group keeps everything.
  [[nodiscard]] bool is_needed_by_descendants(BlockId block) const noexcept {
    return keeps_everything_[nodes.group(block)] != 0 && nodes.is_full(block);
  }

  /// Makes a block free. Requires that one is evictable.
  KVC_OUT_OF_LINE void make_room() noexcept { evict_for(eviction.victim(now)); }

  void evict(BlockId block) noexcept {
    acquire(block);
    uncache(block);
    pool.free(block);
    ++evictions_;
  }

  /// Evicts a block that the eviction policy named, or in its place one that is of use only behind it: descendants go
  /// before ancestors. A policy that names a block with many descendants names it again until they are gone, so the way
  /// down is remembered.
  void evict_for(BlockId victim) noexcept {
    if (is_needed_by_descendants(victim)) {
      const Node top = nodes.last_node(victim);
      if (victim_ != victim) {
        nodes.watch(top);
        victim_ = victim;
      }
      if (evict_descendant(top, nodes.watched())) {
        return;
      }
    }
    evict(victim);
  }
  /// Evicts a block of the newest leaf below `from`, which is `top` or lies below it. False if `top` is a leaf, or all
  /// of that leaf's blocks are referenced.
  bool evict_descendant(Node top, Node from) noexcept {
    Node leaf = from;
    while (nodes.index.has_children(leaf)) {
      leaf = nodes.index.newest_child(leaf);
    }
    if (leaf == top) {
      return false;
    }
    for (const BlockId block : nodes.blocks_of(leaf)) {
      if (block != no_block && pool.ref_count(block) == 0) {
        nodes.watch(leaf);  // if it is removed, its closest ancestor that is left takes its place
        evict(block);
        return true;
      }
    }
    return false;
  }

  static constexpr int most_tries = 64;

  BlockId victim_ = no_block;  // nodes.watched() is its last node, or lies below that
  Index evictions_ = 0;
  CrossBlocks cross_;
  std::vector<Index> evictable_;        // [columns]
  std::vector<char> keeps_everything_;  // [columns]
  StateChains states_;
  Index evictable_others_ = 0;  // blocks of states behind the first one
  std::uint64_t events_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
