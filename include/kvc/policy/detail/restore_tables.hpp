// restore_tables: the tables of a sequence that was computed elsewhere.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kvc/core/group_rule.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/group_table.hpp"
#include "kvc/policy/restore_options.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Whether a restored sequence takes a block from `like`, an open sequence: all its rows that both sequences have lie
/// in the positions that are the same in both.
template <class Sequence>
[[nodiscard]] bool shares_block(const Sequence& like, std::size_t group, Pos number, const RestoreOptions& options) {
  const GroupTable& table = like.tables[group];
  if (!table.grows()) {
    return options.shares_cross && like.has_cross;
  }
  const Index last = std::min((Index{number} + 1) * table.block_tokens(), Index{options.length});
  return last <= std::min(options.shared, like.lengths.committed) && table.has(number) && table.is_complete(number);
}

/// Gives an empty sequence the blocks of options.length positions that its groups hold, and those of other inputs: new
/// ones, or those of `like` (nullptr: none) that it can share. False, and nothing has changed, if there is no room.
/// Throws std::bad_alloc; nothing has changed then. O(groups + blocks).
///   beside   blocks that must be left
template <class Blocks, class Sequence>
[[nodiscard]] bool restore_tables(Blocks& blocks, const GroupRules& rules, Sequence& s, Sequence* like,
                                  const RestoreOptions& options, Index beside) {
  ScopeGuard undo([&] { s.forget_rows(); });
  const auto for_each_restored = [&](auto&& f) {  // f(group, table)
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      if (s.tables[g].grows() || !s.has_cross) {
        f(g, s.tables[g]);
      }
    }
  };
  const auto is_shared = [&](std::size_t g, Pos number) {
    return like != nullptr && detail::shares_block(*like, g, number, options);
  };
  struct Rows {
    Pos length, settled;
    PosRange missing;
  };
  const auto rows_of = [&](std::size_t g) {
    return rules.groups[g].cross_rows > 0
               ? Rows{rules.groups[g].cross_rows, 0, {0, 0}}
               : Rows{options.length, std::max(options.length - rules.rewind, 0), missing_of(rules, g, options)};
  };
  Index wanted = 0;
  for_each_restored([&](std::size_t g, const GroupTable& table) {
    const Rows rows = rows_of(g);
    wanted += table.blocks_to_restore(rows.length, rows.settled, rows.missing);
  });
  if (wanted > blocks.size()) {  // no table is made whose blocks, shared or not, are more than there are
    return false;
  }
  Index taken = beside;
  for_each_restored([&](std::size_t g, GroupTable& table) {
    const Rows rows = rows_of(g);
    table.restore(rows.length, rows.settled, rows.missing);
    table.for_each_number([&](Pos number) { taken += is_shared(g, number) ? 0 : 1; });
  });
  if (taken > blocks.available()) {
    return false;
  }
  undo.dismiss();
  for_each_restored([&](std::size_t g, GroupTable& table) {
    table.for_each_number([&](Pos number) {
      if (is_shared(g, number)) {
        table[number] = like->tables[g][number];
        blocks.ref_referenced(table[number]);
        like->share_tails();
      } else {
        table[number] = blocks.allocate();
      }
    });
  });
  return true;
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
