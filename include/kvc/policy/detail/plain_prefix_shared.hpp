// PlainPrefixShared: PrefixShared with one layer group that keeps everything. The contracts are those of PrefixShared.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/chain_hash.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/policy/detail/cached_blocks.hpp"
#include "kvc/policy/detail/prefix_policy_base.hpp"
#include "kvc/policy/detail/token_tables.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/policy/prefix_shared_config.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {

template <class Eviction, class Hash, class Events>
class PlainPrefixShared : public PrefixPolicyBase<PrefixSharedConfig<Eviction>, CachedBlocks<Eviction, Hash, Events>,
                                                  TokenTables<CachedBlocks<Eviction, Hash, Events>>> {
  using Blocks = CachedBlocks<Eviction, Hash, Events>;
  using Tables = TokenTables<Blocks>;
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

  PlainPrefixShared(const Config& config, const Hash& hash)
      : Base(
            config,
            [&] { return Blocks(config.blocks, config.block_tokens, config.tenant_quota, config.eviction, hash); },
            [&](Blocks& blocks) { return Tables(blocks, config.block_tokens); }) {}

  [[nodiscard]] Pos match_length(std::span<const Token> prompt, const OpenOptions& options = {}) const {
    (void)checked_count(prompt.size(), "prompt.size()");
    const std::optional<Parent> root = blocks_.index.roots().find(options.salt);
    return root ? tables_.match(*root, all_but_one(prompt), [](BlockId) {}) : 0;
  }

  [[nodiscard]] Admission admission(std::span<const Token> prompt, Pos reserve = 0,
                                    const OpenOptions& options = {}) const {
    const Pos size = checked_count(prompt.size(), "prompt.size()");
    require_between(reserve, Pos{0}, static_cast<Pos>(max_pos - size), "reserve");
    const auto wanted = static_cast<Index>(tables_.blocks_for(size + reserve));
    if (wanted > config_.blocks - config_.watermark) {
      return Admission::never;
    }
    Index found = 0;
    Index evictable = 0;  // found blocks that cease to be evictable when this sequence references them
    bool last_is_referenced = false;
    if (const std::optional<Parent> root = blocks_.index.roots().find(options.salt)) {
      const Pos cached = tables_.match(*root, all_but_one(prompt), [&](BlockId block) {
        ++found;
        last_is_referenced = blocks_.pool.ref_count(block) > 0;
        evictable += last_is_referenced ? 0 : 1;
      });
      if (cached % config_.block_tokens != 0 && last_is_referenced) {
        --found;  // a block that matches in part is copied, unless no other sequence references it
      }
    }
    return wanted - found + config_.watermark <= blocks_.available() - evictable ? Admission::now : Admission::later;
  }
  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& options = {}) {
    require_between(options.retention.priority, 0, 100, "options.retention.priority");
    const auto [seq, cached] = tables_.open_on(prompt, all_but_one(prompt), options.salt);
    Sequence& s = tables_.at(seq);
    s.state.retention = options.retention;
    blocks_.eviction.on_open(s.state.context, tables_.leading_blocks(s), s.state.retention, blocks_.now);
    tables_.ref_blocks(s);
    this->count_open(prompt, cached, static_cast<Index>(s.state.cached_blocks), config_.block_tokens);
    return Opened{seq, cached};
  }

  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    Sequence& s = tables_.at(seq);
    const PosRange range = tables_.checked_range(s, seq, count, tokens.size());
    if (tables_.extend_in_place(s, range)) [[likely]] {
      tables_.take_tokens(s, range, tokens);
      return Extension{range, {}};
    }
    return tables_.extend_by_blocks(s, range, tokens);
  }

  void commit(SeqId seq) {
    Sequence& s = tables_.at(seq);
    s.lengths.check_uncommitted(seq);
    if (s.lengths.reserved >= s.state.fills_at || tables_.has_replaced(s)) [[unlikely]] {
      tables_.commit_blocks(s);
    } else {
      s.lengths.commit();
    }
  }
  void rollback(SeqId seq) noexcept {
    if (!tables_.contains(seq)) {
      return;
    }
    ++blocks_.now;
    Sequence& s = tables_.at(seq);
    tables_.rollback(seq);
    tables_.forget_unknown_from(s, s.lengths.committed);
  }

  [[nodiscard]] const std::string& salt_bytes(SeqId seq) const {
    return blocks_.index.roots().salt(tables_.at(seq).state.root);
  }

  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    const SeqId seq = tables_.fork(parent, at);
    Sequence& s = tables_.at(seq);
    s.state = tables_.at(parent).state;
    s.state.unknown_from = s.state.unknown_from < at ? s.state.unknown_from : Tables::nowhere;
    s.state.cached_blocks = std::min(s.state.cached_blocks, tables_.full_blocks(at));
    tables_.set_fills_at(s);
    s.state.context = {};
    s.state.found = at;
    blocks_.index.roots().ref(s.state.root);
    blocks_.quota.ref(s.state.tenant);
    blocks_.eviction.on_open(s.state.context, tables_.leading_blocks(s), s.state.retention, ++blocks_.now);
    ++sequences_;
    return Forked{seq, {}};
  }

  void truncate(SeqId seq, Pos length) {
    Sequence& s = tables_.at(seq);
    s.lengths.check_truncate(seq, length);
    ++blocks_.now;
    tables_.truncate(seq, length);
    s.state.cached_blocks = std::min(s.state.cached_blocks, tables_.full_blocks(length));
    tables_.forget_unknown_from(s, length);
  }

  std::optional<Opened> try_pin(std::span<const Token> prefix, const Salt& salt = {}) {
    const SeqId seq = tables_.open_on(prefix, this->whole_units(prefix, config_.block_tokens), salt).seq;
    Sequence& s = tables_.at(seq);
    s.table.resize(s.state.cached_blocks);  // without one that matches partly
    const Pos tokens = static_cast<Pos>(s.state.cached_blocks) * config_.block_tokens;
    s.lengths.set(tokens);
    if (tokens == 0) {
      tables_.release_sequence(seq);
      return std::nullopt;
    }
    tables_.ref_blocks(s);
    s.state.is_pin = true;
    ++pins_;
    return Opened{seq, tokens};
  }

  struct Expected {
    SeqId pin;
    Pos cached = 0;
    std::span<const BlockId> blocks;
  };
  std::optional<Expected> try_expect(std::span<const Token> prefix, const Salt& salt) {
    const std::span<const Token> whole = this->whole_units(prefix, config_.block_tokens);
    const SeqId seq = tables_.open_on(whole, whole, salt).seq;
    Sequence& s = tables_.at(seq);
    const std::size_t found = s.state.cached_blocks;
    s.table.resize(found);  // without one that matches partly
    s.lengths.set(static_cast<Pos>(tables_.slots(found)));
    tables_.ref_blocks(s);
    s.state.is_pin = true;
    ++pins_;
    ScopeGuard undo([&] { this->unpin(seq); });
    if (!tables_.expect(s, whole.subspan(static_cast<std::size_t>(s.lengths.committed)))) {
      return std::nullopt;
    }
    undo.dismiss();
    return Expected{seq, static_cast<Pos>(tables_.slots(found)), std::span<const BlockId>(s.table).subspan(found)};
  }
  bool arrive(SeqId pin, Pos length) {
    require(tables_.contains(pin) && tables_.at(pin).state.is_pin, "pin", pin, "a pin that is there");
    Sequence& s = tables_.at(pin);
    if (!s.state.expects) {
      return false;
    }
    require(s.state.unknown_from <= length && length <= s.lengths.committed && length % config_.block_tokens == 0,
            "length", length, "whole blocks of the prefix, and no less than before");
    tables_.arrive(s, length);
    return true;
  }

  SeqId open_expected(SeqId pin) {
    require(tables_.contains(pin) && tables_.at(pin).state.is_pin, "pin", pin, "a pin that is there");
    const SeqId seq = try_fork(pin, tables_.at(pin).lengths.committed)->seq;
    Sequence& s = tables_.at(seq);
    s.state.is_pin = s.state.expects = false;
    s.state.unknown_from = s.lengths.committed > 0 ? 0 : Tables::nowhere;  // publish_tokens says all of them
    s.state.cached_blocks = 0;
    tables_.set_fills_at(s);
    return seq;
  }

  void clear() noexcept {
    blocks_.clear();
    tables_.for_each([&](Sequence& s) {
      s.state.expects = false;  // rows that arrive now were computed before
      s.state.unknown_from = s.lengths.reserved > 0 ? 0 : Tables::nowhere;
      s.state.cached_blocks = 0;
      tables_.set_fills_at(s);
    });
  }

  template <class F>
  void for_each_cached(F&& f) const {
    blocks_.index.for_each([&](Parent root, Parent parent, BlockId block) {
      f(BlockStored{blocks_.next_event(), block, parent.is_root() ? no_block : parent.block(),
                    blocks_.index.roots().salt(root), blocks_.index.tokens(block)});
    });
  }

  [[nodiscard]] LimitMet why_not_extend(SeqId seq, Pos count) const {
    return tables_.why_not_extend(tables_.at(seq), tables_.checked_range(tables_.at(seq), seq, count, 0));
  }
  [[nodiscard]] LimitMet why_not_fork(SeqId seq, Pos at) const {
    tables_.at(seq).lengths.check_fork(at);
    return {};
  }

  [[nodiscard]] std::span<const BlockId> block_table(SeqId seq) const { return tables_.at(seq).table; }

  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    tables_.for_each_run(seq, range, f);
  }

  void verify() const {
    const BlockArray<std::int32_t> references = tables_.verify();
    const auto counts = this->verify_reference_counts(blocks_.index.roots().entries(), [&](const Sequence& s) {
      if ((s.state.unknown_from != Tables::nowhere && s.state.unknown_from >= std::max(1, s.lengths.reserved)) ||
          s.state.cached_blocks > tables_.full_blocks(tables_.known(s)) || s.state.fills_at != tables_.fills_at(s)) {
        throw_error(InvariantError("kvc: a sequence knows more tokens than it has"));
      }
      for (std::size_t i = 0; i < s.state.cached_blocks; ++i) {
        if (!blocks_.index.is_child(s.table[i], i == 0 ? s.state.root : Parent(s.table[i - 1]))) {
          throw_error(
              InvariantError("kvc: block " + std::to_string(to_index(s.table[i])) + " of a sequence should be cached"));
        }
      }
    });
    blocks_.verify(references, counts.tenants);
    blocks_.index.roots().verify(counts.roots);
  }

 private:
  template <class>
  friend struct testing::Corruption;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
