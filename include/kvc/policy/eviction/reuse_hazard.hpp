// ReuseHazard: evicts the block that is least likely to be used again soon, and never finds much less than leaf-first
// LRU. The default of PrefixShared.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/eviction/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/eviction/lru_shadow.hpp"
#include "kvc/policy/eviction/reuse_model.hpp"
#include "kvc/policy/retention.hpp"

namespace kvc {
inline namespace v0 {

/// Evicts the block that is least likely to be used again soon, judged by the fate of prompts like the one that
/// released it (ReuseModel), as long as that costs no hits that leaf-first LRU would have. docs/eviction.md says what
/// each part gains.
///
/// **Choice.** Each kind of prompt has a list in the order of release. The learned victim is, of the oldest blocks of
/// the lists, the one with the lowest hazard. Before anything is learned, and where kinds do not differ, that is
/// leaf-first LRU.
///
/// **Guarantee.** A shadow of leaf-first LRU (LruShadow) counts the hits that only one of the two caches has, and the
/// ghosts: blocks that only LRU still caches. The credit is what may be lost:
///
///     credit = allowance + allowance_per_hit * (hits of LRU)
///              + (hits that LRU does not have) - (hits that only LRU has)
///
/// A learned victim that LRU would keep becomes a ghost, so it is evicted only while there are fewer ghosts than
/// credit. Otherwise a block goes that costs nothing against LRU: one that LRU has evicted, or the one that it evicts
/// next. Each ghost is a hit lost at most once. So for requests one after another, whatever they are:
///
///     hits >= hits of LRU * (1 - allowance_per_hit) - allowance - blocks of the longest prompt
///
/// where the allowance is 1/32 of the blocks, or eight usual prompts if these are more, but never more than 1/16.
///
/// O(1) per block; about 48 bytes per block.
class ReuseHazard {
 public:
  static constexpr std::string_view name = "hazard";

  struct SequenceContext {
    Pos known = 0;            // blocks up to where an earlier prompt ended, or that were found cached
    bool continues = false;   // a remembered prompt
    std::uint8_t kind = 1;    // index of its list, once it is closed
    BlockId tail = no_block;  // its last block, once it is closed
  };

  using Config = ReuseConfig;

  /// No block is cached; the default config. Throws std::bad_alloc. O(blocks).
  explicit ReuseHazard(Index blocks) : ReuseHazard(blocks, Config{}) {}
  /// No block is cached, and nothing is learned. Throws std::invalid_argument if a value of config is not allowed, and
  /// std::bad_alloc. O(blocks).
  ReuseHazard(Index blocks, const Config& config)
      : config_(config),
        lists_(blocks, kinds),
        released_(blocks),
        keys_(blocks),
        kind_(blocks),
        is_node_(blocks, 0),
        model_(std::max(least_prompts, static_cast<std::size_t>(blocks) / blocks_per_prompt), config),
        shadow_(blocks, most_ghosts(blocks)),
        most_credit_(static_cast<double>(most_ghosts(blocks)) - 1) {
    grant(config_.allowance * static_cast<double>(blocks));
  }

  /// Records that the prompt which the found blocks end is continued. O(1) amortised.
  void on_open(SequenceContext& context, std::span<const BlockId> found, const Retention&, std::uint64_t now) noexcept {
    chosen_ = false;
    settle();
    context.known = static_cast<Pos>(found.size());
    // The prompt that this one continues ended here, or one block further, in text that has been replaced.
    for (std::size_t back = 1; back <= 2 && back <= found.size(); ++back) {
      const Continued continued = model_.record_continuation(keys_[found[found.size() - back]], now);
      context.continues = context.continues || continued != Continued::nothing;
      if (continued == Continued::whole) {
        break;
      }
    }
  }

  /// A block that had to be computed may belong to a prompt that is remembered: its blocks were evicted too early. LRU
  /// may have it.
  void on_cached(SequenceContext& context, const StoredBlock& stored, std::uint64_t now) noexcept {
    chosen_ = false;
    keys_[stored.block] = stored.key;
    is_node_[stored.block] = stored.nodes == 1 ? 1 : 0;
    shadow_.compute(stored.key);
    if (config_.remembers_evicted && model_.record_continuation(stored.key, now) != Continued::nothing) {
      context.known = std::max(context.known, stored.depth + 1);
      context.continues = true;
    }
  }

  /// Chooses the kind of the sequence, and remembers its prompt. O(1) amortised.
  void on_close(SequenceContext& context, std::span<const BlockId> referenced, std::uint64_t now) noexcept {
    chosen_ = false;
    oldest_known_ = false;
    settle();
    if (referenced.empty()) {
      return;
    }
    const auto added = static_cast<double>(std::max<Index>(0, static_cast<Index>(referenced.size()) - context.known));
    context.kind = model_.kind_of(added, context.continues);
    const std::uint64_t last = keys_[referenced.back()];
    // The last node of a prompt is mostly replaced in the next one: a tail. A single block is the tail of nothing. A
    // block of several nodes holds more than the last one. Without it the next prompt would find far less, so it is of
    // the kind of the others, and what becomes of it is the evidence about them.
    const bool has_tail = referenced.size() > 1 && is_node_[referenced.back()] != 0;
    const std::uint64_t before_last = has_tail ? keys_[referenced[referenced.size() - 2]] : last;
    if (model_.remember(before_last, last, context.kind, added, now)) {
      context.tail = referenced.back();
    }
    const auto blocks = static_cast<double>(released_.size());
    grant(std::min(blocks * config_.allowance * 2, usual_prompts * model_.usual_added()));
  }

  /// The block enters the list of its kind. O(1).
  void on_evictable(const SequenceContext& context, BlockId block, std::uint64_t now) noexcept {
    chosen_ = false;
    oldest_known_ = false;
    last_acquired_ = no_block;
    released_[block] = now;
    kind_[block] = block == context.tail ? static_cast<std::uint8_t>(tail_kind) : context.kind;
    lists_.push_newest(kind_[block], block);
    shadow_.release(block);
    ++size_;
  }
  /// The block leaves its list. O(1).
  void on_acquired(BlockId block) noexcept {
    lists_.erase(block);
    --size_;
    if (chosen_) {
      shadow_.evict(block, keys_[block]);
      last_acquired_ = no_block;
    } else {
      shadow_.acquire(block);
      last_acquired_ = block;
    }
    chosen_ = false;
  }
  /// Prompts are remembered longer than their blocks. O(1).
  void on_uncached(BlockId block) noexcept {
    if (block == last_acquired_) {
      shadow_.withdraw_hit();
    }
    last_acquired_ = no_block;
  }

  /// The block with the lowest hazard that may be evicted. Requires size() > 0. O(1).
  [[nodiscard]] BlockId victim(std::uint64_t now) noexcept {
    KVC_ASSERT(size_ > 0);
    chosen_ = true;
    if (!oldest_known_ || oldest_at_ != now) {
      oldest_.fill({});
      oldest_known_ = true;
      oldest_at_ = now;
    }
    constexpr Choice nothing;
    const Choice* best = &nothing;
    for (int kind = 0; kind < kinds; ++kind) {
      Choice& oldest = oldest_[static_cast<std::size_t>(kind)];
      if (const BlockId block = lists_.oldest(kind); block != oldest.block) {
        if (block == no_block) {
          oldest = {};
        } else if (oldest.block != no_block && released_[block] == oldest.released) {
          oldest.block = block;  // released with the last one: of the same hazard
        } else {
          oldest = choice(block, now);
        }
      }
      best = &better(*best, oldest);
    }
    const BlockId learned = best->block;
    const auto at_risk = static_cast<double>(shadow_.at_risk());
    if (!config_.guarded || !shadow_.contains(learned) || at_risk + 1 <= credit_) {
      return learned;
    }
    // A victim that costs no hit of LRU: the victim of LRU, unless too much is at risk already, or a block that LRU has
    // evicted.
    const BlockId next = shadow_.next();
    const Choice of_lru = next != no_block && at_risk <= credit_ ? choice(next, now) : Choice{};
    const Choice* safe = &of_lru;
    for (const Choice& oldest : oldest_) {
      if (oldest.block != no_block && !shadow_.contains(oldest.block)) {
        safe = &better(*safe, oldest);
      }
    }
    return safe->block != no_block ? safe->block : next != no_block ? next : learned;
  }
  /// Evictable blocks. O(1).
  [[nodiscard]] Index size() const noexcept { return size_; }

  /// From now on no hit of LRU is at risk: with `guarded`, victims are those of leaf-first LRU. See FollowsLru.
  void follow_lru() noexcept {
    config_.allowance = 0;
    config_.allowance_per_hit = 0;
    credit_ = 0;
    most_credit_ = 0;
  }

  /// The estimated chance per unit of time that a block is used again now, which is evictable or was the last victim.
  /// It is good for comparing blocks; block_value makes of it what keeping the block is worth. O(1).
  [[nodiscard]] double hazard(BlockId block, std::uint64_t now) const noexcept {
    return model_.hazard(kind_[block], now - released_[block]);
  }
  /// The learned hazard of a kind's blocks, relative to that of all blocks.
  [[nodiscard]] double factor(int kind) const noexcept { return model_.factor(kind); }
  /// The cache of LRU, and the hits that only one of the two has.
  [[nodiscard]] const LruShadow& shadow() const noexcept { return shadow_; }
  /// The hits of LRU that may still be lost.
  [[nodiscard]] double credit() const noexcept { return credit_; }

  static constexpr int kinds = ReuseModel::kinds;
  static constexpr int tail_kind = ReuseModel::tail_kind;

 private:
  using Continued = ReuseModel::Continued;
  static constexpr std::size_t least_prompts = 256;
  static constexpr std::size_t blocks_per_prompt = 4;  // of the pool, per record; a prompt mostly has two
  static constexpr double usual_prompts = 8;           // that may be lost; fewer are too few to learn from

  struct Choice {
    BlockId block = no_block;
    double hazard = 0;
    std::uint64_t released = 0;
  };

  /// Small pools have room for as many ghosts as blocks: a prompt may need all of them. Blocks and ghosts together have
  /// numbers below 2^31.
  [[nodiscard]] static Index most_ghosts(Index blocks) noexcept {
    return std::min(std::max<Index>({1, std::min<Index>(blocks, 4096), blocks / 8}), Index{max_pos} - blocks);
  }

  [[nodiscard]] Choice choice(BlockId block, std::uint64_t now) const noexcept {
    return {block, hazard(block, now), released_[block]};
  }
  [[nodiscard]] static const Choice& better(const Choice& a, const Choice& b) noexcept {
    const bool is_b =
        a.block == no_block ||
        (b.block != no_block && (b.hazard < a.hazard || (b.hazard == a.hazard && b.released < a.released)));
    return is_b ? b : a;
  }

  /// Raises the allowance to so many blocks.
  void grant(double blocks) noexcept {
    if (blocks > granted_) {
      credit_ = std::min(most_credit_, credit_ + blocks - granted_);
      granted_ = blocks;
    }
  }
  /// A request is over: its gains and losses change the credit. Credit that cannot be used is not kept, so that a
  /// change of the traffic costs little.
  void settle() noexcept {
    shadow_.settle();
    const Counts now{shadow_.gains(), shadow_.losses(), shadow_.lru_hits()};
    credit_ += static_cast<double>(now.gains - settled_.gains) - static_cast<double>(now.losses - settled_.losses) +
               config_.allowance_per_hit * static_cast<double>(now.lru_hits - settled_.lru_hits);
    credit_ = std::min(most_credit_, credit_);
    settled_ = now;
  }

  Config config_;
  BlockLists lists_;
  BlockArray<std::uint64_t> released_;  // time of release
  BlockArray<std::uint64_t> keys_;
  BlockArray<std::uint8_t> kind_;
  BlockArray<std::uint8_t> is_node_;  // it has room for one node of the index
  Index size_ = 0;
  ReuseModel model_;

  struct Counts {
    std::uint64_t gains = 0, losses = 0, lru_hits = 0;
  };
  LruShadow shadow_;
  Counts settled_;  // of the shadow, as they are in the credit
  double most_credit_;
  double credit_ = 0;
  double granted_ = 0;
  std::array<Choice, kinds> oldest_{};  // of each list, as of oldest_at_
  std::uint64_t oldest_at_ = 0;
  bool oldest_known_ = false;
  bool chosen_ = false;               // the next block that is acquired is evicted
  BlockId last_acquired_ = no_block;  // if it is uncached now, it was no hit
};
static_assert(EvictionPolicy<ReuseHazard> && EstimatesReuse<ReuseHazard> && FollowsLru<ReuseHazard>);

}  // namespace v0
}  // namespace kvc
