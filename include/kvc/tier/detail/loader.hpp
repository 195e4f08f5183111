// Loader: brings blocks from the tiers to the pool.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/policy/expected_prefix.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/tier/detail/tier_link.hpp"
#include "kvc/tier/detail/writer.hpp"
#include "kvc/tier/pool_bytes.hpp"
#include "kvc/tier/pool_keys.hpp"
#include "kvc/tier/tier_policy.hpp"
#include "kvc/tier/tiers_config.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// A load goes through three steps. It asks all tiers which blocks of a prompt they have; room is taken only once they
/// have answered. It reads blocks into room that the policy has reserved, which nothing finds or reads. It makes those that
/// have arrived matchable, in their order; the first block that fails ends the load before it.
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
        block_tokens_(static_cast<std::size_t>(cache.policy().block_tokens())) {
    spans_.reserve(bytes.pieces());
  }

  /// The number of a load that brings blocks of this prompt behind the first `cached` of it: one that is there, or a new
  /// one; 0 if the prompt has no more full blocks before its last token. Throws std::bad_alloc; nothing has changed then.
  std::uint64_t begin(std::span<const Token> prompt, const Salt& salt, std::size_t cached) {
    const std::size_t blocks = (prompt.size() - 1) / block_tokens_;
    if (blocks <= cached) {
      return 0;
    }
    auto load = std::make_unique<Load>();
    load->salt = salt;
    load->prompt.assign(prompt.begin(), prompt.end());
    load->blocks.resize(blocks);
    KeyChain& chain = keys_.chain(salt.bytes());
    for (std::size_t i = 0; i < blocks; ++i) {
      load->blocks[i].info = chain.next(std::span<const Token>(load->prompt).subspan(i * block_tokens_, block_tokens_));
    }
    for (const auto& other : loads_) {
      if (other->first <= cached && cached < other->end && other->arrived <= cached &&
          other->blocks[cached].info.key == load->blocks[cached].info.key) {
        return other->number;  // those behind what the two have in common may follow in a load of their own
      }
    }
    load->first = cached;
    load->arrived = load->next = cached;
    load->end = blocks;
    for (std::size_t i = cached; i < blocks; ++i) {
      load->keys.push_back(load->blocks[i].info.key);
    }
    load->found.resize(tiers_.size() * load->keys.size(), 0);
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
    return load == nullptr ? 0 : static_cast<Pos>((load->end - std::min(load->arrived, load->end)) * block_tokens_);
  }
  /// The length of the prefix that will be in the pool once a load is over; 0 if it is.
  [[nodiscard]] Pos end(std::uint64_t number) const noexcept {
    const Load* const load = find(number);
    return load == nullptr ? 0 : static_cast<Pos>(load->end * block_tokens_);
  }
  /// Ends a load. What has arrived stays. Reads that cannot be stopped keep their room until they end.
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
    tier.bytes_reading -= static_cast<double>(bytes_.bytes());
    Load* const load = find(begun.load);
    if (load == nullptr) {
      return;
    }
    --load->reads;
    Loading& block = load->blocks[begun.item];
    if (completion.outcome == StoreOutcome::done) {
      policy_.reads(t).add(begun.bytes_before, config_.seconds() - begun.began);
      block.state = State::in_place;
      return;
    }
    tier.stats.load_misses += completion.outcome == StoreOutcome::missing ? 1 : 0;
    tier.stats.load_refused += completion.outcome == StoreOutcome::refused ? 1 : 0;
    tier.stats.load_failed += completion.outcome == StoreOutcome::failed ? 1 : 0;
    load->answers(t)[begun.item - load->first] = 0;
    block.state = State::absent;
    if (begun.item < load->end) {
      if (source(*load, begun.item)) {
        load->next = std::min(load->next, begun.item);  // another tier has it
      } else {
        shorten(*load, begun.item);
      }
    }
    if (completion.outcome == StoreOutcome::refused) {  // nobody is to find it again
      try_or(
          [&] {
            tier.reserve();
            tier.remember({.operation = StoreOperation::erase, .ticket = tier.store.erase(block.info.key)});
          },
          [] {});
    }
  }

  /// Carries all loads on: begins reads, at most `most` and as many as may be under way; makes what has arrived matchable;
  /// forgets what is over. `ended(tier)` is called after each read has begun: to complete it if it has ended.
  /// Returns the blocks that became matchable.
  template <class F>
  std::size_t advance(std::size_t& most, F&& ended) {
    std::size_t matchable = 0;
    for (std::size_t i = 0; i < loads_.size();) {
      Load& load = *loads_[i];
      if (load.lookups == 0) {
        if (!load.planned) {
          plan(load);
        }
        read_more(load, most, ended);
        matchable += arrive(load);
      }
      if (load.lookups == 0 && load.reads == 0 && load.arrived >= load.end) {
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
  enum class State : std::uint8_t { absent, reading, in_place };
  struct Loading {
    RecordInfo info{};  // its tokens are those of the prompt
    BlockId to = no_block;
    State state = State::absent;
    std::uint8_t tier = 0;  // that it is, or was, read from
  };
  struct Load {
    std::uint64_t number = 0;
    std::vector<Token> prompt;
    Salt salt;
    std::vector<Loading> blocks;      // of the prompt
    std::vector<BlockKey> keys;       // of the blocks from `first` on
    std::vector<std::uint8_t> found;  // [tiers, keys] the answers
    std::size_t first = 0;
    std::size_t arrived = 0;  // blocks at the beginning that are matchable
    std::size_t end = 0;      // and that will be, at most
    std::size_t next = 0;     // the next to read
    std::size_t lookups = 0;  // under way
    std::size_t reads = 0;
    std::size_t wanted = 0;  // blocks that the load began with
    bool planned = false;
    std::optional<PinId> pin;

    [[nodiscard]] std::span<std::uint8_t> answers(std::size_t tier) noexcept {
      return std::span(found).subspan(tier * keys.size(), keys.size());
    }
  };

  /// f(), and `otherwise()` if that throws.
  template <class F, class G>
  static void try_or(F&& f, [[maybe_unused]] G&& otherwise) {
#if KVC_HAS_EXCEPTIONS
    try {
      f();
    } catch (...) {
      otherwise();
    }
#else
    f();
#endif
  }

  [[nodiscard]] Load* find(std::uint64_t number) const noexcept {
    const auto found = std::ranges::find_if(loads_, [&](const auto& load) { return load->number == number; });
    return found == loads_.end() ? nullptr : found->get();
  }
  /// The fastest tier that has a block.
  [[nodiscard]] std::optional<std::size_t> source(Load& load, std::size_t block) noexcept {
    for (std::size_t t = 0; t < tiers_.size(); ++t) {
      if (load.answers(t)[block - load.first] != 0) {
        return t;
      }
    }
    return std::nullopt;
  }

  /// Decides how much to load, and reserves the room.
  void plan(Load& load) {
    load.planned = true;
    const std::size_t begin =
        static_cast<std::size_t>(cache_.match_length(load.prompt, {.salt = load.salt})) / block_tokens_;
    const std::size_t end = std::exchange(load.end, load.first);
    if (begin < load.first) {  // evicted meanwhile, and nobody was asked for it
      ++stats_.loads_overtaken;
      return;
    }
    load.arrived = load.next = load.end = begin;
    std::vector<std::uint8_t> tiers;
    for (std::size_t i = begin; i < end; ++i) {
      const std::optional<std::size_t> tier = source(load, i);
      if (!tier) {
        break;
      }
      tiers.push_back(static_cast<std::uint8_t>(*tier));
    }
    std::array<double, TierPolicy::max_tiers> under_way{};
    for (std::size_t t = 0; t < tiers_.size(); ++t) {
      under_way[t] = tiers_[t].bytes_reading;
    }
    LoadCandidate candidate{.cached = static_cast<Pos>(begin * block_tokens_),
                            .prompt = static_cast<Pos>(load.prompt.size()),
                            .block_tokens = static_cast<Pos>(block_tokens_),
                            .block_bytes = static_cast<double>(bytes_.bytes()),
                            .tiers = tiers,
                            .bytes_under_way = std::span(under_way).first(tiers_.size())};
    std::size_t count = policy_.blocks_to_load(candidate);
    stats_.blocks_computed += static_cast<Index>(tiers.size() - count);
    if (count == 0) {
      return;
    }
    const auto expect = [&] {
      return cache_.try_expect(std::span<const Token>(load.prompt).first((begin + count) * block_tokens_), load.salt);
    };
    auto expected = expect();
    if (const auto room = cache_.available() - static_cast<Index>(begin); !expected && room > 0) {
      count = std::min(count, static_cast<std::size_t>(room));  // what is cached of the prefix may be evictable now
      expected = expect();
    }
    if (!expected) {
      ++stats_.loads_no_room;
      return;
    }
    ++stats_.loads;
    load.pin = expected->pin;
    load.end = begin + count;
    load.wanted = load.end;
    KVC_ASSERT(expected->blocks.size() == count);
    for (std::size_t i = 0; i < expected->blocks.size(); ++i) {
      load.blocks[load.next + i].to = expected->blocks[i];
    }
  }

  template <class F>
  void read_more(Load& load, std::size_t& most, F&& ended) {
    while (load.next < load.end && most > 0 && reads() < config_.reads) {
      const std::size_t i = load.next;
      Loading& block = load.blocks[i];
      const std::optional<std::size_t> tier = source(load, i);
      if (block.state != State::absent || !tier) {
        load.next += tier ? 1 : 0;
        if (!tier) {
          shorten(load, i);
        }
        continue;
      }
      KVC_ASSERT(block.to != no_block);
      TierLink& link = tiers_[*tier];
      link.reserve();
      spans_.clear();
      bytes_.for_each(block.to, [&](io::ByteSpan piece) { spans_.push_back(piece); });
      const double now = config_.seconds();
      const Ticket ticket = link.store.read(block.info, spans_);
      link.bytes_reading += static_cast<double>(bytes_.bytes());
      link.remember({.operation = StoreOperation::read,
                     .ticket = ticket,
                     .load = load.number,
                     .item = i,
                     .began = now,
                     .bytes_before = link.bytes_reading});
      block.state = State::reading;
      block.tier = static_cast<std::uint8_t>(*tier);
      ++load.reads;
      ++load.next;
      --most;
      ended(*tier);
    }
  }

  /// Makes the blocks matchable that have arrived, and all before them.
  std::size_t arrive(Load& load) {
    std::size_t arrived = load.arrived;
    while (arrived < load.end && load.blocks[arrived].state == State::in_place) {
      std::uint8_t tiers = 0;
      for (std::size_t t = 0; t < tiers_.size(); ++t) {
        tiers = static_cast<std::uint8_t>(tiers | (load.answers(t)[arrived - load.first] != 0 ? 1 : 0) << t);
      }
      writer_.set_held_by(load.blocks[arrived].to, tiers);
      ++arrived;
    }
    if (arrived == load.arrived) {
      return 0;
    }
    const bool taken = cache_.arrive(*load.pin, static_cast<Pos>(arrived * block_tokens_));
    for (std::size_t i = load.arrived; i < arrived; ++i) {
      writer_.set_held_by(load.blocks[i].to, 0);
      TierStats& tier = tiers_[load.blocks[i].tier].stats;
      (taken ? tier.loaded : tier.loads_unused) += 1;
      tier.bytes_loaded += taken ? static_cast<Index>(bytes_.bytes()) : 0;
    }
    const std::size_t count = arrived - load.arrived;
    if (!taken) {  // the cache was cleared
      ++stats_.loads_cancelled;
      shorten(load, load.arrived);
      return 0;
    }
    load.arrived = arrived;
    return count;
  }

  /// No block from `end` on will arrive.
  void shorten(Load& load, std::size_t end) {
    load.end = std::min(load.end, end);
    load.planned = true;  // if nothing has been planned, nothing will be
    for (TierLink& tier : tiers_) {
      const std::vector<Begun>& begun = tier.begun;
      for (std::size_t i = begun.size(); i-- > 0;) {
        const Begun operation = begun[i];
        const bool is_read = operation.operation == StoreOperation::read;
        if (operation.load != load.number || (is_read && operation.item < load.end) ||
            (!is_read && load.end > load.first) || !tier.store.cancel(operation.ticket)) {
          continue;
        }
        (void)tier.recall(operation.ticket);
        if (is_read) {
          tier.bytes_reading -= static_cast<double>(bytes_.bytes());
          load.blocks[operation.item].state = State::absent;
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
      for (std::size_t block = load.end; block < load.wanted; ++block) {
        tiers_[load.blocks[block].tier].stats.loads_unused += load.blocks[block].state == State::in_place ? 1 : 0;
      }
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
  std::size_t block_tokens_;
  std::vector<std::unique_ptr<Load>> loads_;
  std::vector<io::ByteSpan> spans_;
  std::uint64_t last_ = 0;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
