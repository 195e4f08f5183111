// GroupedPrefixShared: PrefixShared with several layer groups, or one that drops rows. The contracts are those of
// PrefixShared.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/policy/detail/block_sizes.hpp"
#include "kvc/policy/detail/cached_prefix_list.hpp"
#include "kvc/policy/detail/group_blocks.hpp"
#include "kvc/policy/detail/group_demand.hpp"
#include "kvc/policy/detail/grouped_prefixes.hpp"
#include "kvc/policy/detail/prefix_policy_base.hpp"
#include "kvc/policy/expected_prefix.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/policy/prefix_shared_config.hpp"
#include "kvc/policy/restore_options.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

template <class Eviction, class Hash, class Events>
class GroupedPrefixShared
    : public PrefixPolicyBase<PrefixSharedConfig<Eviction>, GroupCachedBlocks<Eviction, Hash, Events>,
                              GroupedPrefixes<GroupCachedBlocks<Eviction, Hash, Events>>> {
  using Blocks = GroupCachedBlocks<Eviction, Hash, Events>;
  using Tables = GroupedPrefixes<Blocks>;
  using Base = PrefixPolicyBase<PrefixSharedConfig<Eviction>, Blocks, Tables>;
  using Parent = typename Tables::Parent;
  using Sequence = typename Tables::Sequence;
  using Base::all_but_one;
  using Base::blocks_;
  using Base::config_;
  using Base::pins_;
  using Base::sequences_;
  using Base::tables_;

 public:
  using Config = PrefixSharedConfig<Eviction>;

  GroupedPrefixShared(const Config& config, const GroupRules& rules, const Hash& hash)
      : GroupedPrefixShared(config, rules, checked_sizes(config, rules), hash) {}
  [[nodiscard]] Pos match_length(std::span<const Token> prompt, const OpenOptions& options) const {
    (void)checked_count(prompt.size(), "prompt.size()");
    const std::optional<Parent> root = blocks_.nodes.index.roots().find(options.salt);
    if (!root) {
      return 0;
    }
    std::vector<BlockId> path;
    tables_.reserve_path(path, prompt);
    return tables_.match(*root, all_but_one(prompt), path).length();
  }

  [[nodiscard]] Admission admission(std::span<const Token> prompt, Pos reserve, const OpenOptions& options) const {
    const Pos size = checked_count(prompt.size(), "prompt.size()");
    require_between(reserve, Pos{0}, static_cast<Pos>(max_pos - size), "reserve");
    const Pos pass = config_.pass_tokens > 0 ? config_.pass_tokens : max_pos;
    Index found = 0;      // blocks that this sequence need not take as long as it needs them
    Index evictable = 0;  // found blocks that cease to be evictable when this sequence references them
    std::array<PosRange, max_groups> others{};  // found blocks of other sequences, until the group drops them
    Pos cached = 0;
    if (const std::optional<Parent> root = blocks_.nodes.index.roots().find(options.salt)) {
      std::vector<BlockId> path;
      tables_.reserve_path(path, prompt);
      const auto hit = tables_.match(*root, all_but_one(prompt), path);
      cached = hit.length();
      for (const BlockId block : blocks_.cross(*root)) {
        ++found;
        evictable += blocks_.pool.ref_count(block) == 0 ? 1 : 0;
      }
      tables_.for_each_found(hit, path, [&](std::size_t g, Pos number, BlockId block) {
        const bool is_evictable = blocks_.pool.ref_count(block) == 0;
        // A block that is found in part is copied, unless no other sequence references it.
        const bool is_whole = (Index{number} + 1) * blocks_.nodes.block_tokens(g) <= cached;
        if (is_evictable || (is_whole && demand_.keeps(g, number))) {
          ++found;
        } else if (is_whole) {
          // One range of them counts, the last one: between two may be evictable blocks, which count already.
          others[g] = {others[g].last == number ? others[g].first : number, number + 1};
        }
        evictable += is_evictable ? 1 : 0;
      });
    }
    const auto fits = [&](Pos from, const auto& shared, Index room) {
      return demand_.most_blocks(from, size, pass, reserve) <= room ||
             demand_.peak_blocks(from, size, pass, reserve, shared, room) <= room;
    };
    if (fits(cached, others, blocks_.available() - evictable - config_.watermark + found)) {
      return Admission::now;
    }
    const bool can_wait = blocks_.available() < config_.blocks;  // for another sequence
    return can_wait && fits(0, std::array<PosRange, max_groups>{}, config_.blocks - config_.watermark)
               ? Admission::later
               : Admission::never;
  }

  std::optional<Opened> try_open(std::span<const Token> prompt, const OpenOptions& options) {
    require_between(options.retention.priority, 0, 100, "options.retention.priority");
    const auto [seq, cached] = tables_.open_on(prompt, all_but_one(prompt), options.salt);
    Sequence& s = tables_.at(seq);
    s.state.retention = options.retention;
    blocks_.eviction.on_open(s.state.context, tables_.leading_blocks(s), s.state.retention, blocks_.now);
    tables_.take_found(s);
    tables_.count_lost();
    const Pos unit = blocks_.nodes.node_tokens();
    this->count_open(prompt, cached, cached / unit, unit);
    return Opened{seq, cached};
  }

  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens) {
    return tables_.try_extend(seq, count, tokens);
  }
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens,
                                      std::span<const Pos> states_at) {
    return tables_.try_extend(seq, count, tokens, states_at);
  }
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options) {
    return tables_.try_restore(seq, options);
  }
  void commit(SeqId seq) { tables_.commit(seq); }
  void rollback(SeqId seq) noexcept { tables_.rollback(seq); }

  [[nodiscard]] const std::string& salt_bytes(SeqId seq) const {
    return blocks_.nodes.index.roots().salt(tables_.at(seq).state.root);
  }

  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    const SeqId seq = tables_.fork(parent, at);
    Sequence& s = tables_.at(seq);
    blocks_.eviction.on_open(s.state.context, tables_.leading_blocks(s), s.state.retention, ++blocks_.now);
    ++sequences_;
    return Forked{seq, {}};
  }
  void truncate(SeqId seq, Pos length) { tables_.truncate(seq, length); }
  std::optional<Opened> try_pin(std::span<const Token> prefix, const Salt& salt) {
    const Opened pin = tables_.open_on(prefix, this->whole_units(prefix, blocks_.nodes.node_tokens()), salt);
    Sequence& s = tables_.at(pin.seq);
    tables_.take_found(s);
    if (pin.cached == 0) {  // it may have rows of another input all the same
      tables_.release_sequence(pin.seq);
      return std::nullopt;
    }
    s.state.is_pin = true;
    ++pins_;
    return pin;
  }

  /// A pin on a sequence as try_restore makes them, of the whole nodes of a prefix.
  struct Expected {
    SeqId pin;
    Pos cached = 0;
    std::span<const BlockId> blocks{};
  };
  std::optional<Expected> try_expect(std::span<const Token> prefix, const Salt& salt) {
    const std::span<const Token> whole = this->whole_units(prefix, blocks_.nodes.node_tokens());
    const auto length = static_cast<Pos>(whole.size());
    const std::optional<Opened> found = try_pin(whole, salt);
    if (found && found->cached == length) {
      return Expected{found->seq, length};
    }
    ScopeGuard undo_found([&] {
      if (found) {
        this->unpin(found->seq);
      }
    });
    const SeqId pin = tables_.open_on({}, {}, salt).seq;
    tables_.take_found(tables_.at(pin));
    tables_.at(pin).state.is_pin = true;
    ++pins_;
    ScopeGuard undo([&] { this->unpin(pin); });
    tables_.at(pin).state.tokens.reserve(whole.size());  // so that arrive cannot fail
    std::array<PosRange, max_groups> missing{};
    for (std::size_t g = 0; g < tables_.rules().groups.size(); ++g) {
      const Retained& retained = tables_.rules().groups[g].retained;
      const Pos tokens = blocks_.nodes.block_tokens(g);  // blocks without gaps, so that the index takes them
      const Pos from = retained.everything() ? 0 : retained.first_seen(length) / tokens * tokens;
      const Index kept = ceil_div(Index{retained.kept}, Index{tokens}) * tokens;
      missing[g] = from > kept ? PosRange{static_cast<Pos>(kept), from} : PosRange{0, 0};
    }
    const RestoredState state{length, false};
    RestoreOptions options{.length = length, .missing = std::span(missing).first(tables_.rules().groups.size())};
    options.states = std::span(&state, tables_.has_states() && length > 0 ? 1 : 0);
    if (found) {
      options.like = found->seq;
      options.shared = std::min(found->cached, length);
    }
    if (!tables_.try_restore(pin, options)) {
      return std::nullopt;
    }
    tables_.commit(pin);  // of unknown tokens: nobody finds them
    tables_.at(pin).state.expects = true;
    undo.dismiss();
    return Expected{pin, found ? found->cached : 0};
  }
  /// f(ExpectedBlock) for what an expected prefix lacks.
  template <class F>
  void for_each_expected(SeqId pin, F&& f) const {
    const Sequence& s = checked_pin(pin);
    if (!s.state.expects) {
      return;
    }
    const Pos length = s.lengths.committed;
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      const GroupTable& table = s.tables[g];
      if (!table.grows()) {
        continue;
      }
      table.for_each_number([&](Pos number) {
        const BlockId block = table[number];
        if (blocks_.is_private(block)) {
          const Pos first = number * table.block_tokens();
          const auto end = static_cast<Pos>(std::min(Index{first} + table.block_tokens(), Index{length}));
          f(ExpectedBlock{static_cast<std::int32_t>(g), first, end, std::span(&block, 1)});
        }
      });
    }
    for (std::size_t kind = 0; kind < tables_.rules().states.size(); ++kind) {
      const std::span<const BlockId> blocks = tables_.state_blocks(s, static_cast<Index>(kind), length);
      if (blocks_.is_private(blocks[0])) {
        f(ExpectedBlock{static_cast<std::int32_t>(s.tables.size() + kind), length, length, blocks});
      }
    }
  }
  bool arrive(SeqId pin, std::span<const Token> prefix) {
    (void)checked_pin(pin);
    Sequence& s = tables_.at(pin);
    if (!s.state.expects) {
      return false;
    }
    require(std::cmp_equal(prefix.size(), s.lengths.committed), "prefix.size()", prefix.size(),
            "that of the expected prefix: its groups have what a hit of this length needs");
    tables_.publish_tokens(s, prefix);
    s.state.expects = false;
    return true;
  }
  SeqId open_expected(SeqId pin) {
    const Pos length = checked_pin(pin).lengths.committed;
    const SeqId seq = tables_.fork(pin, length);
    Sequence& s = tables_.at(seq);
    s.state.prompt_end = 0;  // publish_tokens says it
    blocks_.eviction.on_open(s.state.context, {}, s.state.retention, ++blocks_.now);
    ++sequences_;
    return seq;
  }
  [[nodiscard]] Pos node_tokens() const noexcept { return blocks_.nodes.node_tokens(); }
  [[nodiscard]] Index nodes() const noexcept { return blocks_.nodes.nodes(); }
  [[nodiscard]] BlockId next_state_block(BlockId block) const noexcept { return blocks_.next_of_state(block); }
  template <class F>
  void for_each_node(F&& f) const {
    blocks_.nodes.index.for_each([&](Parent root, Parent, BlockId node) { f(blocks_.added(root, node)); });
  }

  void clear() noexcept {
    blocks_.clear();
    tables_.for_each([&](Sequence& s) { tables_.forget_index(s); });
  }

  template <class F>
  void for_each_cached(F&& f) const {
    blocks_.nodes.index.roots().for_each([&](Parent root) {
      for (const BlockId block : blocks_.cross(root)) {
        f(blocks_.stored_cross(blocks_.next_event(), root, blocks_.nodes.group(block), block));
      }
    });
    blocks_.nodes.index.for_each([&](Parent root, Parent, BlockId node) {
      for (std::size_t g = 0; g < blocks_.nodes.columns(); ++g) {
        if (const BlockId block = blocks_.nodes.block(node, g); block != no_block) {
          f(blocks_.stored(blocks_.next_event(), root, node, g, block));
        }
      }
    });
  }

  template <class F>
  void for_each_cached_prefix(F&& f) const {
    CachedPrefixList<Blocks>(blocks_, tables_.rules()).for_each(f);
  }

  [[nodiscard]] LimitMet why_not_extend(SeqId seq, Pos count) const {
    const Sequence& s = tables_.at(seq);
    return tables_.why_not_extend(s, s.lengths.checked_extension(seq, count, 0), config_.block_tokens);
  }
  [[nodiscard]] LimitMet why_not_fork(SeqId seq, Pos at) const {
    tables_.at(seq).lengths.check_fork(at);
    tables_.require_retained(tables_.at(seq), at, "at");
    return {};
  }
  /// The sequences and pins.
  [[nodiscard]] const Tables& sequences() const noexcept { return tables_; }
  using Base::stats;
  [[nodiscard]] Stats stats(Index group) const {
    Stats stats;
    stats.block_tokens = tables_.block_tokens(group);
    stats.sequences = sequences_;
    tables_.add_to(stats, group);
    stats.blocks_cached = blocks_.evictable(static_cast<std::size_t>(group));
    stats.lost_tokens = tables_.lost(group);
    return stats;
  }

  void verify() const {
    BlockArray<std::int32_t> references = tables_.verify();
    blocks_.add_references(references);
    BlockArray<std::int32_t> ends(blocks_.nodes.nodes(), 0);
    auto counts = this->verify_reference_counts(blocks_.nodes.index.roots().entries(), [&](const Sequence& s) {
      if (!s.state.last.is_root()) {
        ++ends[s.state.last.block()];
      }
      tables_.verify_sequence(s);
    });
    blocks_.nodes.index.roots().for_each(
        [&](Parent root) { counts.roots[root.root_index()] += blocks_.cross(root).empty() ? 0 : 1; });
    blocks_.verify(references, ends, counts.tenants);
    blocks_.nodes.index.roots().verify(counts.roots);
  }

 private:
  template <class>
  friend struct testing::Corruption;

  [[nodiscard]] const Sequence& checked_pin(SeqId pin) const {
    require(tables_.contains(pin) && tables_.at(pin).state.is_pin, "pin", pin, "a pin that is there");
    return tables_.at(pin);
  }

  GroupedPrefixShared(const Config& config, const GroupRules& rules, const BlockSizes& sizes, const Hash& hash)
      : Base(
            config,
            [&] {
              return Blocks(config.blocks, index_nodes(config, rules, sizes), rules, sizes, config.tenant_quota,
                            config.eviction, hash);
            },
            [&](Blocks& blocks) { return Tables(blocks, rules, sizes); }),
        demand_(rules, sizes) {}

  [[nodiscard]] static BlockSizes checked_sizes(const Config& config, const GroupRules& rules) {
    require(rules.groups.size() <= max_groups, "groups", rules.groups.size(), "at most 16");
    require(rules.states.size() <= max_groups, "states", rules.states.size(), "at most 16 sizes of recurrent states");
    return block_sizes(rules, config.block_tokens);
  }
  /// Nodes of the index. A prefix is of use as long as all groups that keep everything have its blocks, so these bound
  /// the tokens of all prefixes that are of use at once; others take nodes beside them until they are evicted.
  [[nodiscard]] static Index index_nodes(const Config& config, const GroupRules& rules, const BlockSizes& sizes) {
    const auto blocks = static_cast<double>(config.blocks);
    double blocks_per_node = 0;  // of groups that keep everything
    for (std::size_t g = 0; g < rules.groups.size(); ++g) {
      const GroupRule& rule = rules.groups[g];
      const bool keeps = rule.retained.everything() && rule.cross_rows == 0;
      blocks_per_node += keeps ? static_cast<double>(sizes.node_tokens) / sizes.tokens[g] : 0.0;
    }
    const Pos most = sizes.tokens.empty() ? sizes.node_tokens : std::ranges::max(sizes.tokens);
    const double held = blocks_per_node > 0 ? blocks / blocks_per_node : 0.0;
    const double nodes = config.index_tokens > 0 ? static_cast<double>(config.index_tokens) / sizes.node_tokens
                         : held > 0              ? held + std::max(held / 4, 64.0)
                                                 : blocks * most / sizes.node_tokens * 8;
    return static_cast<Index>(std::clamp(nodes, 1.0, static_cast<double>(1 << 29)));
  }

  GroupDemand demand_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
