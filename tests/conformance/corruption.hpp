// How the bookkeeping of each policy is broken, to see that verify() finds it.
#pragma once

#include <array>
#include <concepts>
#include <vector>

#include "kvc/policy/block_policy_base.hpp"
#include "kvc/policy/block_pool.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/policy/sequence_table.hpp"

namespace kvc_test {

/// The ways that are the same in every policy of blocks: 0 to block_ways - 1.
inline constexpr int block_ways = 4;
inline void corrupt_blocks(kvc::SequenceLengths& lengths, std::vector<kvc::BlockId>& table, kvc::BlockPool& pool,
                           int way) {
  switch (way) {
    case 0:
      table.pop_back();
      break;
    case 1:
      pool.ref(table[0]);
      break;
    case 2:
      lengths.uncommitted = false;
      break;
    default:
      pool.unref(pool.allocate());  // neither free nor referenced
  }
}

}  // namespace kvc_test

template <class P>
  requires std::derived_from<P, kvc::BlockPolicyBase>
struct kvc::testing::Corruption<P> {
  static constexpr int ways = kvc_test::block_ways + 1;
  static void apply(P& policy, SeqId seq, int way) {
    BlockPolicyBase& base = policy;
    BlockSequence& s = base.sequences_.at(seq);
    switch (way) {
      case kvc_test::block_ways:
        s.table[0] = s.table[1];
        break;
      default:
        kvc_test::corrupt_blocks(s.lengths, s.table, base.pool_, way);
    }
  }
};

template <>
struct kvc::testing::Corruption<kvc::Paged> {
  static constexpr int ways = kvc_test::block_ways + 2;
  static void apply(Paged& policy, SeqId seq, int way) {
    auto& s = policy.tables_.at(seq);
    BlockPool& pool = policy.blocks_.pool;
    switch (way) {
      case kvc_test::block_ways:
        s.replaced = s.table[0];
        break;
      case kvc_test::block_ways + 1:
        if (pool.unref(s.table.back()) == 0) {
          pool.free(s.table.back());
        }
        break;
      default:
        kvc_test::corrupt_blocks(s.lengths, s.table, pool, way);
    }
  }
};

template <class Eviction, class Hash, class Events>
struct kvc::testing::Corruption<kvc::PrefixShared<Eviction, Hash, Events>> {
  static constexpr int ways = kvc_test::block_ways + 5;
  static void apply(PrefixShared<Eviction, Hash, Events>& prefix_shared, SeqId seq, int way) {
    auto& policy = *prefix_shared.plain_;
    auto& s = policy.tables_.at(seq);
    switch (way) {
      case kvc_test::block_ways:
        ++s.state.cached_blocks;
        break;
      case kvc_test::block_ways + 1:
        s.state.unknown_from = s.lengths.reserved + 1;
        break;
      case kvc_test::block_ways + 2:
        policy.blocks_.index.roots().ref(s.state.root);
        break;
      case kvc_test::block_ways + 3:
        ++policy.sequences_;
        break;
      case kvc_test::block_ways + 4:
        // The tokens of a cached block, if there is one and the hash depends on them; or another count.
        if (s.state.cached_blocks > 0 && Hash{}(0, std::array{1}) != Hash{}(0, std::array{2})) {
          ++policy.blocks_.index.tokens(s.table[0])[0];
        } else {
          ++policy.pins_;
        }
        break;
      default:
        kvc_test::corrupt_blocks(s.lengths, s.table, policy.blocks_.pool, way);
    }
  }
};

template <>
struct kvc::testing::Corruption<kvc::Contiguous> {
  static constexpr int ways = 4;
  static void apply(Contiguous& policy, SeqId seq, int way) {
    auto& s = policy.plain_->sequences_.at(seq);
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
        policy.plain_->holes_.free({s.start, s.capacity});
    }
  }
};
