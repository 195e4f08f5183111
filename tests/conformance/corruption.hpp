// How the bookkeeping of each policy is broken, to see that verify() finds it.
#pragma once

#include <array>

#include "kvc/policy/block_policy_base.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

template <class P>
  requires std::derived_from<P, kvc::BlockPolicyBase>
struct kvc::testing::Corruption<P> {
  static constexpr int ways = 4;
  static void apply(P& policy, SeqId seq, int way) {
    BlockPolicyBase& base = policy;
    BlockSequence& s = base.sequences_.at(seq);
    switch (way) {
      case 0:
        s.table.pop_back();
        break;
      case 1:
        s.table[0] = s.table[1];
        break;
      case 2:
        base.pool_.ref(s.table[0]);
        break;
      default:
        ++s.lengths.committed;
        s.lengths.uncommitted = false;
    }
  }
};

template <>
struct kvc::testing::Corruption<kvc::Paged> {
  static constexpr int ways = 5;
  static void apply(Paged& policy, SeqId seq, int way) {
    auto& s = policy.tables_.at(seq);
    switch (way) {
      case 0:
        s.table.pop_back();
        break;
      case 1:
        policy.blocks_.pool.ref(s.table[0]);
        break;
      case 2:
        s.lengths.uncommitted = false;
        break;
      case 3:
        s.replaced = s.table[0];
        break;
      default:
        if (policy.blocks_.pool.unref(s.table.back()) == 0) {
          policy.blocks_.pool.free(s.table.back());
        }
    }
  }
};

template <class Eviction, class Hash, class Events>
struct kvc::testing::Corruption<kvc::PrefixShared<Eviction, Hash, Events>> {
  static constexpr int ways = 8;
  static void apply(PrefixShared<Eviction, Hash, Events>& policy, SeqId seq, int way) {
    auto& s = policy.tables_.at(seq);
    switch (way) {
      case 0:
        s.table.pop_back();
        break;
      case 1:
        policy.blocks_.pool.ref(s.table[0]);
        break;
      case 2:
        s.lengths.uncommitted = false;
        break;
      case 3:
        ++s.state.cached_blocks;
        break;
      case 4:
        s.state.unknown_from = s.lengths.reserved + 1;
        break;
      case 5:
        policy.blocks_.index.ref_root(s.state.root);
        break;
      case 6:
        ++policy.sequences_;
        break;
      default:  // the tokens of a cached block, if there is one and the hash depends on them; or another count
        if (s.state.cached_blocks > 0 && Hash{}(0, std::array{1}) != Hash{}(0, std::array{2})) {
          ++policy.blocks_.index.tokens(s.table[0])[0];
        } else {
          ++policy.pins_;
        }
    }
  }
};

template <>
struct kvc::testing::Corruption<kvc::Contiguous> {
  static constexpr int ways = 4;
  static void apply(Contiguous& policy, SeqId seq, int way) {
    auto& s = policy.sequences_.at(seq);
    switch (way) {
      case 0:
        ++s.start;
        break;
      case 1:
        --s.capacity;
        break;
      case 2:
        s.lengths.committed = s.lengths.reserved + 1;
        break;
      default:
        policy.holes_.free({s.start, s.capacity});
    }
  }
};
