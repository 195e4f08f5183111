// LoadPlanner: decides what a load reads, and reserves the room for it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/policy/expected_prefix.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/tier/detail/load.hpp"
#include "kvc/tier/detail/load_ends.hpp"
#include "kvc/tier/detail/tier_link.hpp"
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

/// Plans loads, once the tiers have answered. With one group that keeps everything, the beginning of a prompt that the
/// pool lacks. With several groups, the longest prefix that tiers and pool have together (LoadEnds), and of it what the
/// policy reserved room for; rows of these blocks that the pool has are copied there.
template <class Cache>
class LoadPlanner {
 public:
  LoadPlanner(Cache& cache, const TiersConfig& config, const std::vector<TierLink>& tiers, PoolKeys& keys,
              const PoolBytes<Cache>& bytes, TierPolicy& policy, TiersStats& stats)
      : cache_(cache),
        tiers_(tiers),
        keys_(keys),
        bytes_(bytes),
        policy_(policy),
        stats_(stats),
        rules_(cache.policy().group_rules()),
        is_plain_(rules_.is_plain()),
        node_tokens_(static_cast<std::size_t>(cache.policy().node_tokens())),
        ends_(cache.policy().node_tokens()),
        layers_per_read_(config.layers_per_read),
        steps_(steps_of(cache, config.layers_per_read)) {
    for (std::size_t g = 0; g < rules_.groups.size(); ++g) {
      const auto in_block = static_cast<std::size_t>(cache.policy().block_tokens(static_cast<Index>(g)));
      ends_.add({in_block / node_tokens_, &rules_.groups[g].retained});
      most_block_ = std::max(most_block_, in_block / node_tokens_);
    }
    for (std::size_t kind = 0; kind < rules_.states.size(); ++kind) {
      ends_.add({1, nullptr});
    }
  }
  LoadPlanner(const LoadPlanner&) = delete;  // ends_ refers to rules_
  LoadPlanner& operator=(const LoadPlanner&) = delete;

  [[nodiscard]] bool is_plain() const noexcept { return is_plain_; }
  /// Steps in which the layers are read.
  [[nodiscard]] std::size_t steps() const noexcept { return steps_.size(); }
  /// The step that brings a layer of the model.
  [[nodiscard]] std::size_t step_of(Index layer) const noexcept {
    return static_cast<std::size_t>(layers_per_read_ > 0 ? layer / layers_per_read_ : 0);
  }
  /// The layers of a column that a step reads.
  [[nodiscard]] PartRange parts(std::size_t column, std::size_t step) const noexcept { return steps_[step][column]; }
  /// Where an item of a planned load is read to.
  [[nodiscard]] PoolPlace place(const Load& load, std::size_t item) const noexcept {
    const std::size_t column = item % load.columns;
    const Load::Item& i = load.items[item];
    if (column < rules_.groups.size()) {
      return {column, std::span(&i.to, 1), i.row};
    }
    const std::size_t begin = load.state_at[column];
    return {column, std::span(load.states).subspan(begin, load.state_at[column + 1] - begin), 0};
  }

  /// A load of the first `nodes` nodes of a prompt, of which the pool has `cached`. Throws std::bad_alloc.
  [[nodiscard]] std::unique_ptr<Load> make(std::span<const Token> prompt, const Salt& salt, std::size_t nodes,
                                           std::size_t cached) {
    auto load = std::make_unique<Load>();
    load->salt = salt;
    load->prompt.assign(prompt.begin(), prompt.end());
    load->columns = ends_.columns();
    load->steps = steps_.size();
    load->items.resize(nodes * load->columns);
    load->units.resize(load->items.size() * load->steps);
    for (std::size_t s = 0; s < load->columns; ++s) {
      KeyChain& chain = keys_.chain(salt.bytes(), s);
      for (std::size_t i = 0; i < nodes; ++i) {
        const auto tokens = std::span<const Token>(load->prompt).subspan(i * node_tokens_, node_tokens_);
        load->items[i * load->columns + s].info = keys_.next(chain, s, tokens);
      }
    }
    load->cached = load->arrived = cached;
    load->first = cached / most_block_ * most_block_;  // a block may be there in part
    load->end = nodes;
    for (std::size_t item = load->first * load->columns; item < load->items.size(); ++item) {
      load->keys.push_back(load->items[item].info.key);
    }
    load->found.resize(tiers_.size() * load->keys.size(), 0);
    return load;
  }

  /// Decides how much to load, and reserves the room.
  void plan(Load& load) {
    load.planned = true;
    load.wanted = 0;
    load.next = load.units.size();
    const std::size_t begin =
        static_cast<std::size_t>(cache_.match_length(load.prompt, {.salt = load.salt})) / node_tokens_;
    load.arrived = load.end = load.cached;
    if (begin < load.cached) {  // evicted meanwhile, and nobody was asked for it
      ++stats_.loads_overtaken;
      return;
    }
    load.arrived = load.end = begin;
    if (is_plain_) {
      plan_one_group(load, begin);
    } else if (++load.attempts <= most_attempts) {
      plan_groups(load, begin);
    }
  }

 private:
  static constexpr int most_attempts = 16;

  /// [steps, columns] the layers that each step reads: so many layers of the model, 0: all of them.
  [[nodiscard]] static std::vector<std::vector<PartRange>> steps_of(const Cache& cache, Index layers_per_read) {
    const LayerGroups& layers = cache.layers();
    const std::size_t groups = layers.groups().size();
    std::vector<std::vector<PartRange>> steps;
    std::vector<PartRange> step(groups + layers.states().size(), {0, 0});
    const Index size = layers_per_read > 0 ? layers_per_read : layers.layers();
    for (Index layer = 0; layer < layers.layers(); ++layer) {
      const bool is_state = layers.is_recurrent(layer);
      const bool is_owner = is_state || layers.place(layer).is_owner;
      const std::size_t column = is_state ? groups + static_cast<std::size_t>(layers.state_place(layer).kind)
                                          : static_cast<std::size_t>(layers.place(layer).group);
      step[column].count += is_owner ? 1 : 0;
      if ((layer + 1) % size == 0 || layer + 1 == layers.layers()) {
        steps.push_back(step);
        for (PartRange& parts : step) {
          parts = {parts.first + parts.count, 0};
        }
      }
    }
    return steps;
  }

  /// How many of the nodes behind `begin` to load. tiers [nodes] that each is read from, bytes of each.
  [[nodiscard]] std::size_t choose(const Load& load, std::size_t begin, std::span<const std::uint8_t> tiers,
                                   double bytes) {
    std::array<double, TierPolicy::max_tiers> under_way{};
    for (std::size_t t = 0; t < tiers_.size(); ++t) {
      under_way[t] = tiers_[t].bytes_reading;
    }
    const std::size_t count = policy_.blocks_to_load({.cached = static_cast<Pos>(begin * node_tokens_),
                                                      .prompt = static_cast<Pos>(load.prompt.size()),
                                                      .block_tokens = static_cast<Pos>(node_tokens_),
                                                      .block_bytes = bytes,
                                                      .tiers = tiers,
                                                      .bytes_under_way = std::span(under_way).first(tiers_.size())});
    return count;
  }
  [[nodiscard]] std::optional<ExpectedPrefix> expect(const Load& load, std::size_t nodes) {
    return cache_.try_expect(std::span<const Token>(load.prompt).first(nodes * node_tokens_), load.salt);
  }
  void begin_reads(Load& load, PinId pin, std::size_t end) noexcept {
    ++stats_.loads;
    load.pin = pin;
    load.end = load.wanted = end;
    load.next = 0;
    std::ranges::fill(load.units, Load::Unit{});
    for (Load::Item& item : load.items) {
      item.is_needed = false;
    }
  }

  void plan_one_group(Load& load, std::size_t begin) {
    tiers_of_.clear();
    for (std::size_t i = begin; i < load.nodes(); ++i) {
      const std::optional<std::size_t> tier = load.source(i);
      if (!tier) {
        break;
      }
      tiers_of_.push_back(static_cast<std::uint8_t>(*tier));
    }
    std::size_t count = choose(load, begin, tiers_of_, static_cast<double>(bytes_.bytes(0)));
    stats_.blocks_computed += static_cast<Index>(tiers_of_.size() - count);
    if (count == 0) {
      return;
    }
    auto expected = expect(load, begin + count);
    if (const auto room = cache_.available() - static_cast<Index>(begin); !expected && room > 0) {
      count = std::min(count, static_cast<std::size_t>(room));  // the cached part of the prefix may be evictable now
      expected = expect(load, begin + count);
    }
    if (!expected) {
      ++stats_.loads_no_room;
      return;
    }
    begin_reads(load, expected->pin, begin + count);
    KVC_ASSERT(expected->blocks.size() == count);
    for (std::size_t i = 0; i < expected->blocks.size(); ++i) {
      Load::Item& item = load.items[begin + i];
      item.to = expected->blocks[i];
      item.is_needed = true;
    }
  }

  void plan_groups(Load& load, std::size_t begin) {
    const auto has = [&](std::size_t node, std::size_t column) {
      const std::size_t item = node * load.columns + column;
      return load.source(item).has_value() || keys_.find(load.items[item].info.key) != no_block;
    };
    std::vector<std::size_t> ends;
    std::ranges::copy(ends_.find(begin, load.nodes(), has), std::back_inserter(ends));
    if (ends.empty()) {
      return;
    }
    const std::size_t longest = ends.back();
    const std::size_t count = choose_nodes(load, begin, longest);
    while (!ends.empty() && ends.back() > begin + count) {
      ends.pop_back();
    }
    stats_.blocks_computed += static_cast<Index>(longest - (ends.empty() ? begin : ends.back()));
    if (ends.empty()) {
      return;
    }
    // The cached part of the prefix stays while room is taken for the rest: rows of it may be copied.
    const auto pin = cache_.try_pin(std::span<const Token>(load.prompt).first(begin * node_tokens_), load.salt);
    const kvc::detail::ScopeGuard unpin([&] {
      if (pin) {
        cache_.unpin(pin->pin);
      }
    });
    std::optional<ExpectedPrefix> expected;
    while (!ends.empty() && !(expected = expect(load, ends.back()))) {
      const std::size_t half = begin + (ends.back() - begin) / 2;
      do {
        ends.pop_back();
      } while (!ends.empty() && ends.back() > half);
    }
    if (!expected) {
      ++stats_.loads_no_room;
      return;
    }
    begin_reads(load, expected->pin, ends.back());
    kvc::detail::ScopeGuard forget([&] { load.lacks = true; });
    list_items(load);
    forget.dismiss();
    for (std::size_t item = 0; item < load.end * load.columns; ++item) {
      if (load.items[item].is_needed && !load.source(item) && !copy(load, item)) {
        load.lacks = true;  // it was evicted when room was taken
        return;
      }
    }
  }
  /// How many nodes to load: a node counts as read from the slowest tier that has something of it, and all as equally
  /// large.
  [[nodiscard]] std::size_t choose_nodes(const Load& load, std::size_t begin, std::size_t end) {
    tiers_of_.assign(end - begin, 0);
    double bytes = 0;
    for (std::size_t s = 0; s < load.columns; ++s) {
      const std::size_t first = std::max(ends_.first_needed(s, end), begin);
      for (std::size_t node = first; node < end; ++node) {
        const std::optional<std::size_t> tier = load.source(node * load.columns + s);
        if (tier) {
          std::uint8_t& slowest = tiers_of_[node - begin];
          slowest = std::max(slowest, static_cast<std::uint8_t>(*tier));
          bytes += static_cast<double>(bytes_.bytes(s));
        }
      }
    }
    return choose(load, begin, tiers_of_, bytes / static_cast<double>(end - begin));
  }
  /// Lists the items for which the policy has reserved room.
  void list_items(Load& load) {
    load.states.clear();
    load.state_at.assign(load.columns + 1, 0);
    cache_.for_each_expected(*load.pin, [&](const ExpectedBlock& block) {
      const auto column = static_cast<std::size_t>(block.column);
      if (column >= rules_.groups.size()) {
        load.states.insert(load.states.end(), block.blocks.begin(), block.blocks.end());
        std::fill(load.state_at.begin() + static_cast<std::ptrdiff_t>(column) + 1, load.state_at.end(),
                  load.states.size());
        Load::Item& item = load.items[(load.end - 1) * load.columns + column];
        item.to = block.blocks[0];
        item.is_needed = true;
        return;
      }
      for (Pos at = block.first; at < block.last; at += static_cast<Pos>(node_tokens_)) {
        Load::Item& item = load.items[static_cast<std::size_t>(at) / node_tokens_ * load.columns + column];
        item.to = block.blocks[0];
        item.row = at - block.first;
        item.is_needed = true;
      }
    });
  }
  /// Copies what the pool has of an item. False if it has nothing.
  [[nodiscard]] bool copy(Load& load, std::size_t item) {
    const TierBlock there = keys_.find(load.items[item].info.key);
    if (there == no_block) {
      return false;
    }
    copied_.resize(bytes_.most_bytes());
    detail::with_pool_place(cache_, keys_, there, state_,
                            [&](const PoolPlace& from) { bytes_.copy_out(from, copied_.data()); });
    bytes_.copy_in(place(load, item), copied_.data());
    for (std::size_t step = 0; step < load.steps; ++step) {
      load.unit(step, item) = {Load::State::in_place, Load::from_pool};
    }
    return true;
  }

  Cache& cache_;
  const std::vector<TierLink>& tiers_;
  PoolKeys& keys_;
  const PoolBytes<Cache>& bytes_;
  TierPolicy& policy_;
  TiersStats& stats_;
  const GroupRules& rules_;
  bool is_plain_;
  std::size_t node_tokens_;
  std::size_t most_block_ = 1;  // nodes of the largest block
  LoadEnds ends_;
  Index layers_per_read_;
  std::vector<std::vector<PartRange>> steps_;  // [steps, columns]
  std::vector<std::uint8_t> tiers_of_;
  std::vector<std::byte> copied_;
  std::vector<BlockId> state_;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
