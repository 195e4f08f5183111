// Loader: brings blocks from the tiers to the pool.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/detail/load.hpp"
#include "kvc/tier/detail/load_planner.hpp"
#include "kvc/tier/detail/tier_link.hpp"
#include "kvc/tier/detail/try_or.hpp"
#include "kvc/tier/detail/writer.hpp"
#include "kvc/tier/pool_bytes.hpp"
#include "kvc/tier/pool_keys.hpp"
#include "kvc/tier/record_info.hpp"
#include "kvc/tier/tier_policy.hpp"
#include "kvc/tier/tiers_config.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// A load goes through three steps. It asks all tiers which blocks of a prompt they have; room is taken only once they
/// have answered. It reads blocks into room that the policy has reserved, which nothing finds or reads. It makes those
/// that have arrived matchable: with one group in their order, and the first block that fails ends the load before it;
/// with several groups all at once, and if a block fails, a shorter prefix is tried.
template <class Cache>
class Loader {
 public:
  Loader(Cache& cache, const TiersConfig& config, std::vector<TierLink>& tiers, PoolKeys& keys,
         const PoolBytes<Cache>& bytes, Writer<Cache>& writer, TierPolicy& policy, TiersStats& stats)
      : cache_(cache),
        config_(config),
        tiers_(tiers),
        keys_(keys),
        bytes_(bytes),
        writer_(writer),
        policy_(policy),
        stats_(stats),
        planner_(cache, config, tiers, keys, bytes, policy, stats),
        node_tokens_(static_cast<std::size_t>(cache.policy().node_tokens())) {
    spans_.reserve(bytes.most_spans());
  }

  /// The number of a load that brings blocks of this prompt behind the first `cached` nodes of it: one that is there,
  /// or a new one; 0 if the prompt has no more whole nodes before its last token. Throws std::bad_alloc; nothing has
  /// changed then.
  std::uint64_t begin(std::span<const Token> prompt, const Salt& salt, std::size_t cached) {
    const std::size_t nodes = (prompt.size() - 1) / node_tokens_;
    if (nodes <= cached) {
      return 0;
    }
    std::unique_ptr<Load> load = planner_.make(prompt, salt, nodes, cached);
    for (const auto& other : loads_) {
      if (other->cached <= cached && cached < other->end && other->arrived <= cached &&
          other->items[cached * load->columns].info.key == load->items[cached * load->columns].info.key) {
        return other->number;  // those behind what the two have in common may follow in a load of their own
      }
    }
    for (TierLink& tier : tiers_) {
      tier.reserve();
    }
    loads_.reserve(loads_.size() + 1);
    load->number = ++last_;
    Load& begun = *load;
    loads_.push_back(std::move(load));
    ++begun.lookups;  // until all of them have begun
    for (std::size_t t = 0; t < tiers_.size(); ++t) {
      try_or(
          [&] {
            tiers_[t].remember({.operation = StoreOperation::lookup,
                                .ticket = tiers_[t].store.lookup(begun.keys, begun.answers(t)),
                                .load = begun.number});
            ++begun.lookups;
          },
          [&] { ++tiers_[t].stats.lookups_failed; });
    }
    --begun.lookups;
    return begun.number;
  }

  /// Tokens that a load may still bring. 0 once it is over. O(loads).
  [[nodiscard]] Pos pending(std::uint64_t number) const noexcept {
    const Load* const load = find(number);
    return load == nullptr ? 0 : static_cast<Pos>((load->end - std::min(load->arrived, load->end)) * node_tokens_);
  }
  /// The length of the prefix that will be in the pool once a load is over; 0 if it is.
  [[nodiscard]] Pos end(std::uint64_t number) const noexcept {
    const Load* const load = find(number);
    return load == nullptr ? 0 : static_cast<Pos>(load->end * node_tokens_);
  }
  /// A load that has its room; nullptr if it is over, or its tiers have not answered. O(loads).
  [[nodiscard]] const Load* with_room(std::uint64_t number) const noexcept {
    const Load* const load = find(number);
    return load != nullptr && load->pin && load->arrived < load->end ? load : nullptr;
  }
  /// A sequence on a load that has its room.
  [[nodiscard]] EarlySequence open_early(std::uint64_t number) {
    Load& load = *find(number);
    early_.reserve(early_.size() + 1);
    const SeqId seq = cache_.open_expected(*load.pin);
    load.is_early = true;
    return {seq, cache_.length(seq), number, static_cast<std::uint64_t>(load.attempts)};
  }
  /// Whether all of its prefix has arrived.
  [[nodiscard]] bool has_arrived(const EarlySequence& early) const noexcept {
    const auto found =
        std::ranges::find_if(early_, [&](const Early& e) { return e.load == early.load && e.length == early.pending; });
    return found != early_.end() && found->attempt == early.attempt;
  }
  /// Tokens at its beginning whose rows of a layer are in place; empty if the load has ended without all. O(loads +
  /// nodes).
  [[nodiscard]] std::optional<Pos> ready(const EarlySequence& early, Index layer) const noexcept {
    if (has_arrived(early)) {
      return early.pending;
    }
    const Load* const load = with_room(early.load);
    if (load == nullptr || load->lacks || static_cast<std::uint64_t>(load->attempts) != early.attempt ||
        load->end != load->wanted) {
      return std::nullopt;
    }
    const std::size_t step = planner_.step_of(layer);
    std::size_t node = first_of(*load);
    for (; node < load->end; ++node) {
      for (std::size_t s = 0; s < load->columns; ++s) {
        const std::size_t item = node * load->columns + s;
        if (load->items[item].is_needed && !load->in_place(step, item)) {
          return static_cast<Pos>(node * node_tokens_);
        }
      }
    }
    return static_cast<Pos>(node * node_tokens_);
  }
  /// No sequence that was opened early can be finished.
  void forget_early() noexcept { early_.clear(); }
  /// Ends a load. Blocks that have arrived stay. Reads that cannot be stopped keep their room until they end.
  void cancel(std::uint64_t number) {
    if (Load* const load = find(number)) {
      ++stats_.loads_cancelled;
      shorten(*load, load->arrived);
    }
  }
  /// All loads.
  void cancel_all() {
    for (const auto& load : loads_) {
      cancel(load->number);
    }
  }
  [[nodiscard]] std::size_t size() const noexcept { return loads_.size(); }

  /// The answers of a tier are there.
  void looked_up(std::size_t t, const Begun& begun, StoreOutcome outcome) noexcept {
    Load* const load = find(begun.load);
    if (load == nullptr) {
      return;
    }
    --load->lookups;
    if (outcome != StoreOutcome::done) {
      ++tiers_[t].stats.lookups_failed;
      std::ranges::fill(load->answers(t), std::uint8_t{0});
    }
  }
  /// A read has ended.
  void read(std::size_t t, const Begun& begun, const Completion& completion) {
    TierLink& tier = tiers_[t];
    tier.bytes_reading -= begun.bytes;
    Load* const load = find(begun.load);
    if (load == nullptr) {
      return;
    }
    --load->reads;
    Load::Unit& unit = load->units[begun.item];
    if (completion.outcome == StoreOutcome::done) {
      policy_.reads(t).add(begun.bytes_before, config_.seconds() - begun.began);
      unit.state = Load::State::in_place;
      return;
    }
    tier.stats.load_misses += completion.outcome == StoreOutcome::missing ? 1 : 0;
    tier.stats.load_refused += completion.outcome == StoreOutcome::refused ? 1 : 0;
    tier.stats.load_failed += completion.outcome == StoreOutcome::failed ? 1 : 0;
    const std::size_t item = begun.item % load->items.size();
    load->forget(t, item);
    unit.state = Load::State::absent;
    if (item < load->end * load->columns) {
      if (load->source(item)) {
        load->next = std::min(load->next, begun.item);  // another tier has it
      } else {
        lack(*load, item);
      }
    }
    if (completion.outcome == StoreOutcome::refused) {  // nobody is to find it again
      try_or(
          [&] {
            tier.reserve();
            tier.remember({.operation = StoreOperation::erase, .ticket = tier.store.erase(load->items[item].info.key)});
          },
          [] {});
    }
  }

  /// Carries all loads on: begins reads, at most `most` and as many as may be under way; makes what has arrived
  /// matchable; forgets what is over. `ended(tier)` is called after each read has begun: to complete it if it has
  /// ended. Returns the blocks that became matchable.
  template <class F>
  std::size_t advance(std::size_t& most, F&& ended) {
    std::size_t matchable = 0;
    for (std::size_t i = 0; i < loads_.size();) {
      Load& load = *loads_[i];
      if (load.lookups == 0) {
        while (!load.planned || load.lacks) {
          if (load.reads > 0) {
            break;
          }
          if (load.lacks) {
            reset(load);
          }
          planner_.plan(load);
        }
        if (!load.lacks) {
          read_more(load, most, ended);
        }
        matchable += load.lacks ? 0 : arrive(load);
      }
      if (load.lookups == 0 && load.reads == 0 && load.arrived >= load.end && !load.lacks) {
        finish(i);
      } else {
        ++i;
      }
    }
    return matchable;
  }
  /// Reads of all loads that are under way.
  [[nodiscard]] std::size_t reads() const noexcept {
    std::size_t sum = 0;
    for (const TierLink& tier : tiers_) {
      sum += tier.under_way(StoreOperation::read);
    }
    return sum;
  }

  /// The numbers of operations agree. Throws InvariantError.
  void verify() const {
    std::size_t reads = 0, lookups = 0;
    for (const auto& load : loads_) {
      reads += load->reads;
      lookups += load->lookups;
    }
    for (const TierLink& tier : tiers_) {
      reads -= tier.under_way(StoreOperation::read);
      lookups -= tier.under_way(StoreOperation::lookup);
    }
    if (reads != 0 || lookups != 0) {
      throw_error(InvariantError("kvc: loads wait for reads or lookups that are not under way"));
    }
  }

 private:
  using State = Load::State;
  /// A load that has arrived as a whole, on which a sequence was opened before.
  struct Early {
    std::uint64_t load;
    std::uint64_t attempt;
    Pos length;
  };
  static constexpr std::size_t most_early = 1024;

  [[nodiscard]] Load* find(std::uint64_t number) const noexcept {
    const auto found = std::ranges::find_if(loads_, [&](const auto& load) { return load->number == number; });
    return found == loads_.end() ? nullptr : found->get();
  }

  /// No tier has a needed item any more.
  void lack(Load& load, std::size_t item) {
    if (planner_.is_plain()) {
      shorten(load, item / load.columns);
      return;
    }
    load.lacks = true;
    cancel_reads(load, 0);
  }
  /// Before another attempt at a prefix that cannot arrive as it was planned.
  void reset(Load& load) {
    count_unused(load);
    if (load.pin) {
      cache_.unpin(*load.pin);
      load.pin.reset();
    }
    load.lacks = load.planned = false;
    load.end = load.nodes();
  }

  template <class F>
  void read_more(Load& load, std::size_t& most, F&& ended) {
    while (load.next < load.units.size() && load.end > load.arrived && !load.lacks && most > 0 &&
           reads() < config_.reads) {
      const std::size_t number = load.next;
      const std::size_t step = number / load.items.size();
      const std::size_t i = number % load.items.size();
      const Load::Item& item = load.items[i];
      Load::Unit& unit = load.units[number];
      const PartRange parts = planner_.parts(i % load.columns, step);
      if (!item.is_needed || i >= load.end * load.columns || unit.state != State::absent || parts.count == 0) {
        ++load.next;
        unit.state = parts.count == 0 ? State::in_place : unit.state;
        continue;
      }
      const std::optional<std::size_t> tier = load.source(i);
      if (!tier) {
        lack(load, i);
        continue;
      }
      TierLink& link = tiers_[*tier];
      link.reserve();
      spans_.clear();
      double bytes = 0;
      bytes_.for_each(planner_.place(load, i), parts.first, parts.first + parts.count, [&](io::ByteSpan span) {
        spans_.push_back(span);
        bytes += static_cast<double>(span.size());
      });
      const double now = config_.seconds();
      const Ticket ticket = link.store.read(item.info, spans_, parts);
      link.bytes_reading += bytes;
      link.remember({.operation = StoreOperation::read,
                     .ticket = ticket,
                     .load = load.number,
                     .item = number,
                     .bytes = bytes,
                     .began = now,
                     .bytes_before = link.bytes_reading});
      unit = {State::reading, static_cast<std::uint8_t>(*tier)};
      ++load.reads;
      ++load.next;
      --most;
      ended(*tier);
    }
  }

  /// Makes what has arrived matchable, and all before it.
  std::size_t arrive(Load& load) {
    if (!load.pin) {
      return 0;
    }
    std::size_t arrived = first_of(load);
    while (arrived < load.end && node_in_place(load, arrived)) {
      ++arrived;
    }
    if (arrived <= load.arrived || (!planner_.is_plain() && arrived < load.end)) {
      return 0;
    }
    for_each_needed(load, first_of(load), arrived,
                    [&](std::size_t item) { writer_.set_arriving(load.items[item].info.key, load.holders(item)); });
    const std::span<const Token> prefix = std::span<const Token>(load.prompt).first(arrived * node_tokens_);
    const bool taken = planner_.is_plain() ? cache_.arrive(*load.pin, static_cast<Pos>(prefix.size()))
                                           : cache_.arrive(*load.pin, TokenSpan(prefix));
    writer_.forget_arriving();
    if (!taken) {  // the cache was cleared
      ++stats_.loads_cancelled;
      shorten(load, load.arrived);
      return 0;
    }
    std::size_t count = 0;
    for_each_needed(load, first_of(load), arrived, [&](std::size_t item) {
      if (const std::uint8_t t = load.units[item].tier; t != Load::from_pool) {
        TierStats& tier = tiers_[t].stats;
        ++tier.loaded;
        tier.bytes_loaded += static_cast<Index>(bytes_.bytes(item % load.columns));
      }
      ++count;
    });
    load.arrived = arrived;
    if (load.is_early && arrived == load.wanted) {
      if (early_.size() == most_early) {
        early_.erase(early_.begin());
      }
      early_.push_back({load.number, static_cast<std::uint64_t>(load.attempts), static_cast<Pos>(prefix.size())});
    }
    return count;
  }
  /// The first node that may lack something: of several groups, a block may be read whose first rows the pool has.
  [[nodiscard]] std::size_t first_of(const Load& load) const noexcept { return planner_.is_plain() ? load.arrived : 0; }
  [[nodiscard]] bool node_in_place(const Load& load, std::size_t node) const noexcept {
    for (std::size_t s = 0; s < load.columns; ++s) {
      const std::size_t item = node * load.columns + s;
      if (load.items[item].is_needed && !load.in_place(item)) {
        return false;
      }
    }
    return true;
  }
  /// f(item) for the items of these nodes that are to be read.
  template <class F>
  static void for_each_needed(const Load& load, std::size_t first, std::size_t last, F&& f) {
    for (std::size_t item = first * load.columns; item < last * load.columns; ++item) {
      if (load.items[item].is_needed) {
        f(item);
      }
    }
  }
  /// Counts what was read and serves nobody.
  void count_unused(const Load& load) noexcept {
    for_each_needed(load, first_of(load), load.arrived < load.wanted ? load.wanted : 0, [&](std::size_t item) {
      const std::uint8_t t = load.units[item].tier;
      if (t != Load::from_pool && load.in_place(item)) {
        ++tiers_[t].stats.loads_unused;
      }
    });
  }

  /// No node from `end` on will arrive.
  void shorten(Load& load, std::size_t end) {
    load.end = std::min(load.end, end);
    load.planned = true;  // if nothing has been planned, nothing will be
    load.lacks = false;
    cancel_reads(load, load.end * load.columns);
    if (load.end > load.cached) {
      return;
    }
    cancel_if(load, [](const Begun& begun) { return begun.operation == StoreOperation::lookup; });
  }
  /// Cancels the reads of items from this one on, as far as that is possible.
  void cancel_reads(Load& load, std::size_t from) {
    cancel_if(load, [&](const Begun& begun) {
      return begun.operation == StoreOperation::read && begun.item % load.items.size() >= from;
    });
  }
  template <class F>
  void cancel_if(Load& load, F&& is_meant) {
    for (TierLink& tier : tiers_) {
      const std::vector<Begun>& begun = tier.begun;
      for (std::size_t i = begun.size(); i-- > 0;) {
        const Begun operation = begun[i];
        if (operation.load != load.number || !is_meant(operation) || !tier.store.cancel(operation.ticket)) {
          continue;
        }
        (void)tier.recall(operation.ticket);
        if (operation.operation == StoreOperation::read) {
          tier.bytes_reading -= operation.bytes;
          load.units[operation.item].state = State::absent;
          --load.reads;
        } else {
          --load.lookups;
        }
      }
    }
  }

  void finish(std::size_t i) {
    Load& load = *loads_[i];
    if (load.pin) {
      count_unused(load);
      stats_.loads_short += load.end < load.wanted ? 1 : 0;
      cache_.unpin(*load.pin);
    }
    loads_.erase(loads_.begin() + static_cast<std::ptrdiff_t>(i));
  }

  Cache& cache_;
  const TiersConfig& config_;
  std::vector<TierLink>& tiers_;
  PoolKeys& keys_;
  const PoolBytes<Cache>& bytes_;
  Writer<Cache>& writer_;
  TierPolicy& policy_;
  TiersStats& stats_;
  LoadPlanner<Cache> planner_;
  std::size_t node_tokens_;
  std::vector<std::unique_ptr<Load>> loads_;
  std::vector<io::ByteSpan> spans_;
  std::vector<Early> early_;
  std::uint64_t last_ = 0;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
