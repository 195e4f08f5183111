// Counts of the blocks that sequences of several layer groups hold, made anew from their tables: for Stats and verify.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "kvc/core/error.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/group_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Adds the blocks that sequences hold of one group, and the rows in them; a shared block counts once. `tables` is a
/// GroupTables over `blocks` blocks. O(blocks + table entries).
template <class Tables>
void add_referenced_blocks(const Tables& tables, Index blocks, std::size_t group, Stats& stats) {
  BlockArray<Pos> filled(blocks, -1);
  tables.for_each([&](const auto& s) {
    const GroupTable& table = s.tables[group];
    const Pos committed = tables.committed(s, group);
    const auto put = [&](BlockId block, Pos number) {
      Pos& most = filled[block];
      const Index rows = Index{committed} - Index{number} * table.block_tokens();
      most = std::max(most, static_cast<Pos>(std::clamp<Index>(rows, 0, table.block_tokens())));
    };
    table.for_each_number([&](Pos number) { put(table[number], number); });
    if (s.replaced[group] != no_block) {
      put(s.replaced[group], committed / table.block_tokens());
    }
  });
  for (const Pos rows : filled.values()) {
    if (rows >= 0) {
      ++stats.blocks_referenced;
      stats.tokens_stored += rows;
      stats.tokens_reserved += tables.block_tokens(static_cast<Index>(group));
    }
  }
}

/// Adds the blocks of recurrent states that sequences hold; a shared block counts once. O(blocks + states).
template <class Tables>
void add_referenced_states(const Tables& tables, Index blocks, Stats& stats) {
  if (!tables.has_states()) {
    return;
  }
  BlockArray<char> is_state(blocks, 0);
  tables.for_each([&](const auto& s) {
    for (const BlockId block : s.states.blocks()) {
      stats.blocks_referenced += is_state[block] == 0 ? 1 : 0;
      is_state[block] = 1;
    }
  });
}

/// Checks each sequence against its own counts; returns the references to each block. Throws InvariantError. O(blocks +
/// table entries).
template <class Tables>
[[nodiscard]] BlockArray<std::int32_t> count_references(const Tables& tables, Index blocks) {
  BlockArray<std::int32_t> references(blocks, 0);
  tables.for_each([&](const auto& s) {
    if (s.lengths.committed > s.lengths.reserved ||
        (!s.lengths.uncommitted && (s.lengths.committed != s.lengths.reserved || s.adds_cross))) {
      throw_error(InvariantError("kvc: the lengths of a sequence contradict each other"));
    }
    const std::span<const Pos> states = s.states.lengths();
    if (!s.states.can_end_at(s.lengths.committed) || !s.states.can_end_at(s.lengths.reserved) ||
        (!states.empty() && (states.front() <= 0 || states.back() > s.lengths.reserved))) {
      throw_error(InvariantError("kvc: a sequence lacks a recurrent state, or has one of another length"));
    }
    for (const BlockId block : s.states.blocks()) {
      ++references[block];
    }
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      const GroupTable& table = s.tables[g];
      const Pos length = tables.positions(s, static_cast<Index>(g));
      if (table.end() != ceil_div(length, table.block_tokens()) ||
          (table.grows() && Index{s.fits_until} > table.room()) ||
          (!s.lengths.uncommitted && s.replaced[g] != no_block) ||
          !table.rows(tables.settled(s)).can_end_at(s.lengths.committed)) {
        throw_error(InvariantError("kvc: group " + std::to_string(g) + " has blocks up to number " +
                                   std::to_string(table.end()) + " for " + std::to_string(length) + " positions"));
      }
      for (const BlockId block : table.blocks()) {
        ++references[block];
      }
      if (s.replaced[g] != no_block) {
        ++references[s.replaced[g]];
      }
    }
  });
  return references;
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
