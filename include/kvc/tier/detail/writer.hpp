// Writer: brings cached blocks of a pool to the tiers that lack them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/eviction/block_value.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/tier/detail/tier_link.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/pool_bytes.hpp"
#include "kvc/tier/pool_keys.hpp"
#include "kvc/tier/record_info.hpp"
#include "kvc/tier/tier_policy.hpp"
#include "kvc/tier/tiers_config.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// f(PoolPlace) of a cached tier block. `state` holds the blocks of states during the call.
template <class Cache, class F>
void with_pool_place(const Cache& cache, const PoolKeys& keys, TierBlock block, std::vector<BlockId>& state, F&& f) {
  const auto& policy = cache.policy();
  const std::size_t column = keys.column(block);
  const BlockId first = keys.pool_block(block);
  if (column < static_cast<std::size_t>(policy.groups())) {
    const Pos node = keys.depth(block) * policy.node_tokens();
    f(PoolPlace{column, std::span(&first, 1), node % policy.block_tokens(static_cast<Index>(column))});
    return;
  }
  state.clear();
  for (BlockId next = first; next != no_block; next = policy.next_state_block(next)) {
    state.push_back(next);
  }
  f(PoolPlace{column, state, 0});
}

/// Hears what the cache stores and removes. Blocks are those of the tiers: see TierBlock. A block is only written while
/// it is cached: its rows are complete then and do not change. Bytes are copied before a store reads them, unless it
/// copies at once, so no write under way refers to the pool. A block that leaves the pool unwritten is copied aside
/// while the event is reported, before anybody can overwrite it, if its parent is recorded already and there is room
/// aside; otherwise it is lost to the tier.
template <class Cache>
class Writer {
 public:
  Writer(Cache& cache, const TiersConfig& config, std::vector<TierLink>& tiers, PoolKeys& keys,
         const PoolBytes<Cache>& bytes, const TierPolicy& policy)
      : cache_(cache),
        tiers_(tiers),
        keys_(keys),
        bytes_(bytes),
        policy_(policy),
        most_(config.writes),
        reserve_(config.reserve > 0 ? config.reserve : cache.policy().blocks() / 8),
        node_tokens_(cache.policy().node_tokens()) {
    path_.reserve(static_cast<std::size_t>(cache.policy().nodes()));
    spans_.reserve(bytes.most_spans());
    state_.reserve(static_cast<std::size_t>(cache.layers().layers()));
    if (std::ranges::any_of(tiers, [](const TierLink& t) { return t.rule != WriteRule::never; })) {
      staged_.resize(config.writes);
      for (Staged& staged : staged_) {
        staged.bytes.resize(bytes.most_bytes());
        staged.tokens.resize(static_cast<std::size_t>(node_tokens_));
      }
    }
  }

  // --- events, in the middle of an operation of the cache ------------------------------------------------------------

  void operator()(const NodeAdded& event) noexcept {
    (void)named([&] {
      keys_.add(event);
      return TierBlock{0};
    });
  }
  void operator()(const BlockStored& event) noexcept {
    const TierBlock block = named([&] { return keys_.store(event); });
    if (block == no_block) {
      return;
    }
    std::uint8_t holders = 0;
    if (!arriving_.empty()) {
      const auto arriving = arriving_.find(keys_.find(block)->key);
      holders = arriving != arriving_.end() ? arriving->second : holders;
    }
    for (std::size_t t = 0; t < tiers_.size(); ++t) {
      if ((holders >> t & 1) != 0) {
        tiers_[t].queue.hold(block);
      } else if (tiers_[t].rule != WriteRule::selective) {
        plan(tiers_[t], block);
      }
    }
  }
  void operator()(const BlockRemoved& event) noexcept {
    keys_.for_each_in(event.block, [&](TierBlock block) {
      for (std::size_t t = 0; t < tiers_.size(); ++t) {
        WriteQueue& queue = tiers_[t].queue;
        const bool ready = queue.state(block) == WriteState::ready;
        if (ready || (queue.state(block) == WriteState::none && worth(tiers_[t], block))) {
          rescue(t, block);
        }
        queue.forget(block);
      }
      for (Staged& staged : staged_) {
        staged.block = staged.block == block ? no_block : staged.block;
      }
    });
    keys_.remove(event.block);
  }
  void operator()(const AllBlocksCleared&) noexcept {
    for (TierLink& tier : tiers_) {
      tier.queue.clear();
    }
    for (Staged& staged : staged_) {
      staged.block = no_block;
      staged.use = staged.use == Use::rescued ? Use::free : staged.use;
    }
    keys_.clear();
  }

  /// The block of this key is about to become cached, and these tiers hold it, one bit for each: its rows came from one
  /// of them. Until forget_arriving. Throws std::bad_alloc.
  void set_arriving(const BlockKey& key, std::uint8_t tiers) { arriving_.insert_or_assign(key, tiers); }
  void forget_arriving() noexcept { arriving_.clear(); }
  /// Later prompts have found these blocks of the pool.
  void found(std::span<const BlockId> blocks) noexcept {
    for (const BlockId block : blocks) {
      keys_.for_each_in(block, [&](TierBlock each) {
        for (TierLink& tier : tiers_) {
          plan(tier, each);
        }
      });
    }
  }
  /// The tier has evicted the record of this key.
  void lose(std::size_t tier, const BlockKey& key) noexcept {
    const BlockId block = keys_.find(key);
    if (block != no_block && tiers_[tier].queue.state(block) == WriteState::recorded) {
      tiers_[tier].queue.forget(block);
    }
  }

  // --- writes --------------------------------------------------------------------------------------------------------

  /// Begins to write the next blocks that a rule wants written, `all`: whatever the rule, to one tier. `ended()` is
  /// called after a write to a store that copies at once, to complete it. Returns how many were begun.
  template <class F>
  std::size_t write(std::size_t t, bool all, F&& ended) {
    TierLink& tier = tiers_[t];
    std::size_t count = 0;
    for (Staged& staged : staged_) {
      if (staged.use == Use::rescued && staged.tier == t) {
        send(staged);
        ++count;
      }
    }
    while (count < most_ && (all || due(tier)) && (tier.store.copies_at_once() || free_stage() != nullptr)) {
      const std::optional<BlockId> block = tier.queue.take();
      if (!block) {
        break;
      }
      kvc::detail::ScopeGuard undo([&] { tier.queue.put_back(*block); });
      if (tier.store.copies_at_once()) {
        tier.reserve();
        spans_.clear();
        with_place(*block, [&](const PoolPlace& place) {
          bytes_.for_each(place, [&](io::ByteSpan span) { spans_.push_back(span); });
        });
        const Ticket ticket = tier.store.write(*keys_.find(*block), spans_);
        tier.remember({.operation = StoreOperation::write,
                       .ticket = ticket,
                       .block = *block,
                       .bytes = static_cast<double>(bytes_.bytes(keys_.column(*block)))});
        undo.dismiss();
        ended();
      } else {
        Staged& staged = *free_stage();
        fill(staged, t, *block);
        send(staged);
        undo.dismiss();
      }
      ++count;
    }
    return count;
  }

  /// A write has ended.
  void ended(std::size_t t, const Begun& begun, StoreOutcome outcome) {
    TierLink& tier = tiers_[t];
    BlockId block = begun.block;
    if (block == no_block) {
      Staged& staged = staged_[begun.item];
      block = std::exchange(staged.block, no_block);
      staged.use = Use::free;
    }
    const bool done = outcome == StoreOutcome::done;
    tier.stats.stored += done ? 1 : 0;
    tier.stats.bytes_stored += done ? static_cast<Index>(begun.bytes) : 0;
    tier.stats.store_full += outcome == StoreOutcome::full ? 1 : 0;
    tier.stats.store_failed += !done && outcome != StoreOutcome::full ? 1 : 0;
    if (block == no_block) {  // it left the pool
      return;
    }
    if (!done) {
      tier.queue.forget(block);
    } else if (!tier.queue.finish(block)) {
      tier.reserve();
      tier.remember({.operation = StoreOperation::erase, .ticket = tier.store.erase(keys_.find(block)->key)});
    }
  }

  /// Blocks that were copied aside and not yet sent.
  [[nodiscard]] std::size_t rescued() const noexcept {
    return static_cast<std::size_t>(std::ranges::count(staged_, Use::rescued, &Staged::use));
  }

 private:
  enum class Use : std::uint8_t { free, rescued, under_way };
  struct Staged {
    Use use = Use::free;
    std::size_t tier = 0;
    BlockId block = no_block;  // while it is in the pool
    RecordInfo info{};
    std::vector<Token> tokens;
    std::vector<std::byte> bytes;
    std::size_t size = 0;
  };

  /// f(), a tier block; no_block if it throws: without a name nothing is stored, and the cache itself is whole.
  template <class F>
  [[nodiscard]] static TierBlock named(F&& f) noexcept {
#if KVC_HAS_EXCEPTIONS
    try {
      return f();
    } catch (...) {
      return no_block;
    }
#else
    return f();
#endif
  }

  /// Plans to write a block, and what lacks of the blocks before it.
  void plan(TierLink& tier, BlockId block) noexcept {
    if (tier.rule == WriteRule::never) {
      return;
    }
    path_.clear();
    for (; block != no_block && tier.queue.state(block) == WriteState::none; block = keys_.parent(block)) {
      if (keys_.find(block) == nullptr) {
        return;
      }
      path_.push_back(block);
    }
    for (; !path_.empty(); path_.pop_back()) {
      const BlockId next = path_.back();
      (void)tier.queue.add(next, keys_.parent(next));
    }
  }

  /// Whether the rule wants blocks written now.
  [[nodiscard]] bool due(const TierLink& tier) const noexcept {
    return tier.rule != WriteRule::back || cache_.available() - tier.queue.pending() < reserve_;
  }
  /// Whether a block that leaves the pool, and that is not planned to be written, is wanted: the tier has evicted it,
  /// or the rule is selective, and no prompt has found the block.
  [[nodiscard]] bool worth(TierLink& tier, BlockId block) noexcept {
    const BlockId parent = keys_.parent(block);
    if (tier.rule == WriteRule::never || (parent != no_block && tier.queue.state(parent) != WriteState::recorded)) {
      return false;
    }
    if (tier.rule != WriteRule::selective) {
      return true;
    }
    if constexpr (EstimatesReuse<std::remove_cvref_t<decltype(cache_.policy().eviction())>>) {
      const auto size = static_cast<double>(bytes_.bytes(keys_.column(block)));
      const BlockCost cost{miss_cost(tier, keys_.depth(block), size), size};
      const double value =
          kvc::block_value(cache_.policy().eviction(), keys_.pool_block(block), cache_.policy().time(), cost);
      const bool more = value > tier.mean_value;
      tier.mean_value += (value - tier.mean_value) / 256;
      tier.stats.not_worth += more ? 0 : 1;
      return more;
    } else {
      ++tier.stats.not_worth;
      return false;
    }
  }

  /// The cost that a hit in the tier saves: computing a block with `depth` blocks before it, less reading it, in units
  /// of computing a first block. Measured, or if no prefill was, as compute_cost has it, and a read costs nothing.
  [[nodiscard]] double miss_cost(const TierLink& tier, Pos depth, double bytes) const noexcept {
    const Pos tokens = node_tokens_;
    const PrefillSpeed& prefill = policy_.prefill();
    const double first = prefill.known() ? prefill.seconds({0, tokens}) : 0;
    if (!(first > 0)) {
      return compute_cost(depth);
    }
    // The latency is that of a whole prefix.
    const ReadSpeed& reads = policy_.reads(static_cast<std::size_t>(&tier - tiers_.data()));
    const double read = reads.seconds(bytes) - reads.seconds(0);
    return std::max(0.0, prefill.seconds({depth * tokens, (depth + 1) * tokens}) - read) / first;
  }

  /// f(PoolPlace) of a cached block; of states with the blocks of all layers.
  template <class F>
  void with_place(TierBlock block, F&& f) noexcept {
    detail::with_pool_place(cache_, keys_, block, state_, f);
  }
  [[nodiscard]] Staged* free_stage() noexcept {
    const auto found = std::ranges::find(staged_, Use::free, &Staged::use);
    return found == staged_.end() ? nullptr : &*found;
  }
  void fill(Staged& staged, std::size_t tier, BlockId block) noexcept {
    staged.tier = tier;
    staged.block = block;
    staged.info = *keys_.find(block);
    std::ranges::copy(staged.info.tokens, staged.tokens.begin());
    staged.info.tokens = staged.tokens;
    staged.size = bytes_.bytes(keys_.column(block));
    with_place(block, [&](const PoolPlace& place) { bytes_.copy_out(place, staged.bytes.data()); });
  }
  void rescue(std::size_t t, BlockId block) noexcept {
    Staged* const staged = free_stage();
    if (staged == nullptr) {
      return;
    }
    fill(*staged, t, block);
    staged->use = Use::rescued;
    ++tiers_[t].stats.rescued;
    if (tiers_[t].queue.state(block) == WriteState::ready) {
      tiers_[t].queue.take(block);
    }
  }
  void send(Staged& staged) {
    TierLink& tier = tiers_[staged.tier];
    tier.reserve();
    const io::ConstByteSpan bytes(staged.bytes.data(), staged.size);
    const Ticket ticket = tier.store.write(staged.info, std::span(&bytes, 1));
    tier.remember({.operation = StoreOperation::write,
                   .ticket = ticket,
                   .item = static_cast<std::size_t>(&staged - staged_.data()),
                   .bytes = static_cast<double>(staged.size)});
    staged.use = Use::under_way;
  }

  Cache& cache_;
  std::vector<TierLink>& tiers_;
  PoolKeys& keys_;
  const PoolBytes<Cache>& bytes_;
  const TierPolicy& policy_;
  std::size_t most_;
  Index reserve_;
  Pos node_tokens_;
  std::unordered_map<BlockKey, std::uint8_t, BlockKeyHash> arriving_;
  std::vector<BlockId> path_;
  std::vector<io::ConstByteSpan> spans_;
  std::vector<BlockId> state_;  // blocks of a state
  std::vector<Staged> staged_;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
