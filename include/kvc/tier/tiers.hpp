// Tiers<Cache>: slower tiers behind a prefix cache. Blocks that the pool evicts are not lost, and a prompt finds them
// again.
#pragma once

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "kvc/cache/fingerprint.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/token_span.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/group_table.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/tier/any_store.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/detail/load.hpp"
#include "kvc/tier/detail/loader.hpp"
#include "kvc/tier/detail/tier_link.hpp"
#include "kvc/tier/detail/writer.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/pool_bytes.hpp"
#include "kvc/tier/pool_keys.hpp"
#include "kvc/tier/record_info.hpp"
#include "kvc/tier/tier_policy.hpp"
#include "kvc/tier/tiers_config.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// The number of a load, for `pending` and `cancel`; 0: there is none. Numbers are not used again.
enum class LoadId : std::uint64_t {};
inline constexpr LoadId no_load{0};

/// What the tiers have of a prompt.
struct Found {
  Pos cached = 0;         ///< tokens in the pool: `open` finds them
  Pos pending = 0;        ///< tokens behind them that may still arrive: `open` finds them once `poll` has them
  LoadId load = no_load;  ///< that brings them
};
/// A sequence, and what the tiers have of its prompt beyond what it has.
struct Opened {
  SeqId seq{};
  Pos cached = 0;   ///< tokens in place: extend the sequence by the others
  Pos pending = 0;  ///< as in Found: to wait for them, `poll` until there are none, and open the prompt again
  LoadId load = no_load;
  operator SeqId() const noexcept { return seq; }  // NOLINT: as kvc::Opened
};

/// A cache whose policy reports events to an EventCallback, in memory that the CPU can access, used by one thread.
template <class Cache>
concept TierableCache =
    ExpectsPrefixes<BarePolicy<typename Cache::PolicyType>> && IndexesNodes<BarePolicy<typename Cache::PolicyType>> &&
    KeepsPrefixes<BarePolicy<typename Cache::PolicyType>> && !LocksItself<typename Cache::PolicyType> &&
    requires(Cache& cache) {
      { cache.events() } -> std::same_as<EventCallback&>;
      requires std::remove_cvref_t<decltype(cache.space())>::host_accessible;
    };

/// Only of a cache that is no TierableCache: says what is missing.
template <class Cache>
class Tiers {
  static_assert(TierableCache<Cache>,
                "kvc: Tiers needs a cache in memory of the CPU, without a lock, whose policy shares prefixes and "
                "reports events to "
                "an EventCallback: KvCache<T, PrefixShared<ReuseHazard, ChainHash, EventCallback>>");

 public:
  /// Takes what Tiers of such a cache take, so that its call is not an error as well.
  template <class... Stores>
  Tiers(Cache&, const TiersConfig&, Stores&...) {}
};

/// Connects a cache to stores, the fastest first:
///
///   kvc::KvCache<float, kvc::PrefixShared<kvc::ReuseHazard, kvc::ChainHash, kvc::EventCallback>> cache(shape, config);
///   kvc::tier::HostStore<> host({.bytes = 8 << 30, .reports_evictions = true});
///   kvc::tier::Tiers tiers(cache, {.model = "llama-3-8b, revision 2"}, host);
///
///   const auto found = tiers.prefetch(prompt);         // {cached, pending}; begins to load what is pending
///   while (tiers.pending(found.load) > 0) tiers.poll();  // between other work
///   const auto opened = tiers.open(prompt);            // finds it in the pool
///
/// All else of the cache is used as without tiers; call `poll` between steps. docs/tiers.md has the rules, and what
/// happens at each fault:
///
///   - A block is written while it is cached, so that its rows are complete; a block whose parent a tier does not hold
///     is not written to it. A block that leaves the pool unwritten is copied before anybody can overwrite it, or given
///     up.
///   - Rows are read into blocks that nothing finds or reads. They become matchable in order, when they are in place
///     and the store has compared all that their record says. A read that fails makes the hit shorter.
///   - Nothing waits for a store, except `wait`, `flush` and the destructor.
///   - After `cache.clear()` nothing is read or written until `renew` names the model again: the records of the stores
///     were computed with other weights.
///
/// With several layer groups, each group has blocks and keys of its own. A load brings what a hit needs: of a group
/// with a window its tail, and of recurrent layers the states behind the last token. It arrives as a whole. A group
/// with rows of another input, or with compressed rows for more tokens than a node of the index has, is refused.
///
/// The cache and the stores must outlive it, and no other callback may be set on the cache. A writer of the cache is
/// the writer here: one thread at a time.
template <TierableCache Cache>
class Tiers<Cache> {
 public:
  /// Takes the events of the cache. Blocks that are cached already are written too, where a rule says so. Throws
  /// std::invalid_argument for a bad config, too many stores or a group that is refused; std::bad_alloc.
  template <BlockStore... Stores>
  Tiers(Cache& cache, const TiersConfig& config, Stores&... stores)
      : cache_(cache),
        config_(checked(cache, config, sizeof...(Stores))),
        policy_(config.load),
        bytes_(cache),
        keys_(make_keys(cache, config.model)),
        tiers_(make_tiers(config_, keys_.blocks(), stores...)),
        writer_(cache, config_, tiers_, keys_, bytes_, policy_),
        loader_(cache, config_, tiers_, keys_, bytes_, writer_, policy_, stats_) {
    take_cached();
    cache_.events().call([this](const EventCallback::Event& event) {
      if (std::holds_alternative<AllBlocksCleared>(event)) {
        loader_.forget_early();  // rows of other weights
        cleared_ = true;
      }
      if (!cleared_ || std::holds_alternative<AllBlocksCleared>(event)) {
        std::visit([&](const auto& e) { writer_(e); }, event);
      }
    });
    cache_.events().call_for_nodes([this](const NodeAdded& node) {
      if (!cleared_) {
        writer_(node);
      }
    });
  }
  Tiers(const Tiers&) = delete;  // the callback refers to it
  Tiers& operator=(const Tiers&) = delete;
  /// Cancels the operations that are under way, and waits for those that cannot be cancelled. Blocks that wait to be
  /// written are not written: see `flush`.
  ~Tiers() {
    cache_.events().call({});
    cache_.events().call_for_nodes({});
    loader_.cancel_all();
    for (detail::TierLink& tier : tiers_) {
      for (std::size_t i = tier.begun.size(); i-- > 0;) {
        const detail::Begun begun = tier.begun[i];
        if (begun.operation != StoreOperation::write || !tier.store.cancel(begun.ticket)) {
          continue;
        }
        (void)tier.recall(begun.ticket);
      }
      while (!tier.begun.empty()) {
        if (const std::optional<Completion> ended = tier.store.poll()) {
          complete(tier, *ended);
        } else {
          (void)tier.store.wait(std::chrono::steady_clock::now() + std::chrono::milliseconds(100));
        }
      }
    }
    std::size_t none = 0;
    (void)loader_.advance(none, [](std::size_t) {});
  }

  // --- finding -------------------------------------------------------------------------------------------------------

  /// Says what the pool has of a prompt and what a slower tier may have; begins to load it, as the load rule decides. A
  /// load that is under way for the same prefix is joined. Never waits; may evict. O(prompt.size()).
  Found prefetch(TokenSpan prompt, const OpenOptions& options = {}) {
    Found found{cache_.match_length(prompt, options), 0, no_load};
    if (policy_.rule() == LoadRule::never || cleared_ || prompt.empty()) {
      return found;
    }
    const Pos node_tokens = cache_.policy().node_tokens();
    const auto cached = static_cast<std::size_t>(found.cached / node_tokens);
    found.load = LoadId{loader_.begin(prompt, options.salt, cached)};
    if (found.load != no_load) {
      (void)poll();  // a store in memory has answered
      found.cached = cache_.match_length(prompt, options);
      const auto nodes = static_cast<Pos>(prompt.size() - 1) / node_tokens;
      const Pos end = std::min(loader_.end(static_cast<std::uint64_t>(found.load)), nodes * node_tokens);
      found.pending = std::max(0, end - found.cached);
      found.load = found.pending > 0 ? found.load : no_load;
    }
    return found;
  }
  /// As `prefetch`, and a sequence with what the pool has of the prompt, as by Cache::open. To use what is pending,
  /// wait with the computation, and open the prompt again once it has arrived.
  Opened open(TokenSpan prompt, const OpenOptions& options = {}) {
    const Found found = prefetch(prompt, options);
    const kvc::Opened opened = cache_.open(prompt, options);
    count_found(opened);
    return {opened.seq, opened.cached, found.pending, found.load};
  }
  /// Tokens that a load may still bring; 0 when it is over. O(loads under way).
  [[nodiscard]] Pos pending(LoadId load) const noexcept { return loader_.pending(static_cast<std::uint64_t>(load)); }
  /// A sequence with all positions of a load, for a prefill that begins before all layers are there: a layer may be
  /// read once it is `ready`. The caller extends it without tokens by the rest of the prompt, and calls `finish` when
  /// the load is over and all is committed. Empty if the load is over, or its tiers have not answered. Takes no block.
  /// O(blocks).
  [[nodiscard]] std::optional<EarlySequence> open_early(LoadId load) {
    const auto number = static_cast<std::uint64_t>(load);
    if (loader_.with_room(number) == nullptr) {
      return std::nullopt;
    }
    return loader_.open_early(number);
  }
  /// Tokens of such a sequence, from the first on, whose rows, or states, of one layer of the model are in place: those
  /// of the pool, and of what is pending as far as it has been read. With config.layers_per_read the first layers are
  /// ready while the last ones are on their way. Empty if the load has ended before all was there: call `finish`.
  /// Throws std::invalid_argument if there is no such layer. O(loads + nodes).
  [[nodiscard]] std::optional<Pos> ready(const EarlySequence& early, Index layer) {
    require_between(layer, Index{0}, cache_.layers().layers() - 1, "layer");
    for (std::size_t t = 0; t < tiers_.size(); ++t) {
      take_completions(t);
    }
    return loader_.ready(early, layer);
  }
  /// Ends what open_early began, with the tokens of all committed positions. True: the whole prefix has arrived, and
  /// later prompts find the rows that were computed behind it from now on. False: it has not, or not yet; these rows
  /// are of no use, and the sequence is closed. Throws std::bad_alloc; nothing has changed then.
  [[nodiscard]] bool finish(const EarlySequence& early, TokenSpan tokens) {
    if (!loader_.has_arrived(early)) {
      cache_.close(early.seq);
      return false;
    }
    cache_.publish_tokens(early.seq, tokens);
    return true;
  }
  /// Ends a load. Blocks that have arrived stay cached. Does nothing if the load is over.
  void cancel(LoadId load) {
    loader_.cancel(static_cast<std::uint64_t>(load));
    std::size_t none = 0;
    (void)loader_.advance(none, [](std::size_t) {});
  }

  // --- progress ------------------------------------------------------------------------------------------------------

  /// Takes what the stores have completed, makes blocks matchable that have arrived, and begins reads and writes: at
  /// most config.reads, and config.writes for each tier. Returns the blocks that became matchable. Throws what a store
  /// throws when an operation begins; all else has been carried on then. Never waits.
  std::size_t poll() {
    const auto take = [&](std::size_t t) { take_completions(t); };
    for (std::size_t t = 0; t < tiers_.size(); ++t) {
      take(t);
    }
    std::size_t reads = config_.reads;
    std::size_t matchable = loader_.advance(reads, take);
    for (std::size_t t = 0; t < tiers_.size(); ++t) {
      if (tiers_[t].rule != WriteRule::never && !cleared_) {
        (void)writer_.write(t, false, [&] { take(t); });
      }
    }
    return matchable;
  }
  /// Polls until a load is over, for a program that has nothing else to do. False if it is not at `until`.
  bool wait(LoadId load, TimePoint until) {
    while (pending(load) > 0) {
      (void)poll();
      if (pending(load) > 0 && std::chrono::steady_clock::now() >= until) {
        return false;
      }
      wait_for_any(until);
    }
    return true;
  }
  /// Writes every cached block to each tier whose rule is not `never`, before a shutdown for example, and waits for it.
  /// False if that is not done at `until`. A block that a store has refused is not tried again.
  bool flush(TimePoint until) {
    for (;;) {
      (void)poll();
      bool busy = false;
      for (std::size_t t = 0; t < tiers_.size(); ++t) {
        detail::TierLink& tier = tiers_[t];
        if (tier.rule == WriteRule::never || cleared_) {
          continue;
        }
        (void)writer_.write(t, true, [&] { take_completions(t); });
        busy = busy || tier.queue.pending() > 0 || tier.under_way(StoreOperation::write) > 0;
      }
      if (!busy) {
        return true;
      }
      if (std::chrono::steady_clock::now() >= until) {
        return false;
      }
      wait_for_any(until);
    }
  }
  /// After `cache.clear()`: the name of the model with its new weights. Loads and writes go on under it. The name must
  /// not have been used with other weights. Throws std::invalid_argument if it is empty or the one before, or if the
  /// cache was not cleared; std::bad_alloc.
  void renew(const std::string& model) {
    require(cleared_, "cache", "as it was", "cleared: rows of the old weights must not be found under the new name");
    require(!model.empty() && model != config_.model, "model", model, "a new name of the model and its weights");
    PoolKeys keys = make_keys(cache_, model);
    std::string name = model;
    loader_.cancel_all();
    keys_ = std::move(keys);
    config_.model = std::move(name);
    cleared_ = false;
    take_cached();
  }

  // --- measurements and counters -------------------------------------------------------------------------------------

  /// Decides between loading and computing: tell it how long prefills take, `tiers.policy().prefill().add(range,
  /// seconds)`. Reads are measured here.
  [[nodiscard]] TierPolicy& policy() noexcept { return policy_; }
  /// Slower tiers.
  [[nodiscard]] std::size_t size() const noexcept { return tiers_.size(); }
  /// Counts of what happened between the pool and one tier. Throws std::invalid_argument if it is not there.
  [[nodiscard]] TierStats stats(std::size_t tier) const {
    require(tier < tiers_.size(), "tier", tier, "less than the number of stores");
    TierStats stats = tiers_[tier].stats;
    stats.lost = tiers_[tier].queue.dropped();
    return stats;
  }
  /// Counts of prefixes that were prefetched and loaded.
  [[nodiscard]] const TiersStats& stats() const noexcept { return stats_; }
  /// Loads that are not over.
  [[nodiscard]] std::size_t loads() const noexcept { return loader_.size(); }
  /// Blocks of the pool that a tier holds too. O(blocks).
  [[nodiscard]] Index recorded(std::size_t tier) const {
    require(tier < tiers_.size(), "tier", tier, "less than the number of stores");
    Index count = 0;
    for (Index i = 0; i < keys_.blocks(); ++i) {
      count += tiers_[tier].queue.state(static_cast<BlockId>(i)) == WriteState::recorded ? 1 : 0;
    }
    return count;
  }

  /// Checks the cache and what is kept here. Slow. Throws InvariantError.
  void verify() const {
    cache_.verify();
    loader_.verify();
    std::size_t cached = 0;
    cache_.for_each_cached([&](const BlockStored& block) {
      const std::int32_t node =
          block.node == BlockStored::no_node ? static_cast<std::int32_t>(block.block) : block.node;
      const RecordInfo* const info =
          keys_.find(static_cast<TierBlock>(Index{node} * cache_.policy().columns() + block.group));
      cached += info != nullptr ? 1 : 0;
      if (info != nullptr && !std::ranges::equal(info->tokens, block.tokens)) {
        throw_error(InvariantError("kvc: a block has other tokens for the tiers than for the cache"));
      }
    });
    if (cached != keys_.size()) {
      throw_error(InvariantError("kvc: the tiers know blocks that are not cached"));
    }
    for (const detail::TierLink& tier : tiers_) {
      tier.queue.verify();
    }
  }

 private:
  static TiersConfig checked(const Cache& cache, const TiersConfig& config, std::size_t stores) {
    require_valid(config, stores);
    const Index most = std::numeric_limits<std::int32_t>::max();
    require(cache.policy().nodes() <= most / cache.policy().columns(), "cache.policy().nodes()", cache.policy().nodes(),
            "so few that all columns of all nodes are less than 2^31");
    return config;
  }
  [[nodiscard]] static PoolKeys make_keys(Cache& cache, const std::string& model) {
    std::vector<KeyColumn> columns;
    const PoolBytes<Cache> bytes(cache);
    const GroupRules& rules = cache.policy().group_rules();
    for (std::size_t s = 0; s < bytes.columns(); ++s) {
      columns.push_back({bytes.parts(s), s < rules.groups.size() && rules.groups[s].retained.everything()});
    }
    return PoolKeys(cache.policy().blocks(), cache.policy().nodes(), cache.policy().node_tokens(), std::move(columns),
                    format(cache, model));
  }
  /// Names what is cached already.
  void take_cached() {
    cache_.policy().for_each_node([&](const NodeAdded& node) { writer_(node); });
    cache_.for_each_cached([&](const BlockStored& block) { writer_(block); });
  }
  /// A prompt has found the blocks that its sequence begins with.
  void count_found(const kvc::Opened& opened) {
    for (Index g = 0; g < cache_.groups(); ++g) {
      cache_.with_group_blocks(opened.seq, g, [&](const GroupBlocks& blocks) {
        const auto whole = static_cast<std::size_t>(opened.cached / cache_.policy().block_tokens(g));
        const auto first = static_cast<std::size_t>(blocks.first);
        writer_.found(blocks.kept.first(std::min(blocks.kept.size(), whole)));
        writer_.found(blocks.rest.first(std::min(blocks.rest.size(), whole - std::min(whole, first))));
      });
    }
    for (Index kind = 0; opened.cached > 0 && kind < cache_.policy().columns() - cache_.groups(); ++kind) {
      writer_.found(cache_.policy().state_blocks(opened.seq, kind, opened.cached).first(1));
    }
  }
  static std::string format(const Cache& cache, const std::string& model) {
    return model + '\n' + kvc::fingerprint(cache, FingerprintOf::blocks).text;
  }
  template <class... Stores>
  static std::vector<detail::TierLink> make_tiers(const TiersConfig& config, Index blocks, Stores&... stores) {
    std::vector<detail::TierLink> tiers;
    tiers.reserve(sizeof...(Stores));
    const auto add = [&](auto& store) {
      tiers.emplace_back(AnyStore(store), blocks,
                         config.write.empty() ? WriteRule::through : config.write[tiers.size()], config.pipelined);
    };
    (add(stores), ...);
    return tiers;
  }

  /// Until a store may have completed something, and not for long: another one may be faster.
  void wait_for_any(TimePoint until) {
    for (detail::TierLink& tier : tiers_) {
      if (!tier.begun.empty()) {
        (void)tier.store.wait(std::min(until, std::chrono::steady_clock::now() + std::chrono::milliseconds(1)));
        return;
      }
    }
  }
  void take_completions(std::size_t t) {
    detail::TierLink& tier = tiers_[t];
    while (const std::optional<Completion> ended = tier.store.poll()) {
      complete(tier, *ended);
    }
    while (const std::optional<BlockKey> key = tier.store.poll_evicted()) {
      writer_.lose(t, *key);
    }
  }
  void complete(detail::TierLink& tier, const Completion& completion) {
    const auto t = static_cast<std::size_t>(&tier - tiers_.data());
    const std::optional<detail::Begun> begun = tier.recall(completion.ticket);
    if (!begun) {
      return;  // of somebody else who uses the store
    }
    switch (begun->operation) {
      case StoreOperation::lookup:
        loader_.looked_up(t, *begun, completion.outcome);
        break;
      case StoreOperation::read:
        loader_.read(t, *begun, completion);
        break;
      case StoreOperation::write:
        writer_.ended(t, *begun, completion.outcome);
        break;
      case StoreOperation::erase:
        break;
    }
  }

  Cache& cache_;
  TiersConfig config_;
  TierPolicy policy_;
  PoolBytes<Cache> bytes_;
  PoolKeys keys_;
  std::vector<detail::TierLink> tiers_;
  detail::Writer<Cache> writer_;
  TiersStats stats_;
  detail::Loader<Cache> loader_;
  bool cleared_ = false;
};

template <class Cache, class... Stores>
Tiers(Cache&, const TiersConfig&, Stores&...) -> Tiers<Cache>;

}  // namespace tier
}  // namespace v0
}  // namespace kvc
