// GroupContents: everything in a snapshot of a cache with layer groups but the rows and states. Integers and tokens
// only.
//
// Of each group, rows at consecutive positions are a stored block, once however many sequences reference them, and a
// sequence is a list of blocks per group. Positions that no block has are those that the group has dropped. The states
// of all recurrent layers after one length are a stored state, once however many sequences have it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/describe.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/snapshot/recurrent_layers.hpp"
#include "kvc/snapshot/row_reader.hpp"
#include "kvc/snapshot/sections.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {
namespace detail {

/// The contents of a snapshot of a cache with layer groups but the rows and states.
struct GroupContents {
  Contents histories;  ///< tokens, salts and lengths of the sequences; `shape` is that of the first group
  std::vector<format::GroupRecord> groups;
  std::vector<format::LayerRecord> layers;
  std::vector<format::GroupBlockRecord> blocks;
  std::vector<std::int32_t> tables;  ///< by sequence and group: a count, and so many block numbers
  RecurrentLayers recurrent;
  std::vector<format::StateRecord> states;  ///< by sequence and length

  // Derived from the above.
  std::vector<std::size_t> table_at;  ///< [sequences, groups] index in `tables` of the count
  std::vector<PosRange> missing;      ///< [sequences, groups] positions without rows
  std::vector<std::uint64_t> rows;    ///< [groups] of all blocks
  std::vector<std::size_t> state_at;  ///< [sequences + 1] index in `states` of the first one
  std::size_t stored_states = 0;      ///< of all layers after one length each

  /// The states of a sequence, by length.
  [[nodiscard]] std::span<const format::StateRecord> states_of(std::size_t sequence) const noexcept {
    return std::span(states).subspan(state_at[sequence], state_at[sequence + 1] - state_at[sequence]);
  }
  /// Whether a sequence stands for a prefix that was cached.
  [[nodiscard]] bool is_cached(std::size_t sequence) const noexcept {
    return histories.sequences[sequence].flags == format::SequenceRecord::cached;
  }
  /// Blocks of a sequence in a group, by position.
  [[nodiscard]] std::span<const std::int32_t> table(std::size_t sequence, std::size_t group) const noexcept {
    const std::size_t at = table_at[sequence * groups.size() + group];
    return std::span(tables).subspan(at + 1, static_cast<std::size_t>(tables[at]));
  }
  /// Positions of a sequence in a group.
  [[nodiscard]] Pos length(std::size_t sequence, std::size_t group) const noexcept {
    return groups[group].cross_rows > 0 ? groups[group].cross_rows : histories.sequences[sequence].length;
  }
  /// The positions of a block that a sequence has.
  [[nodiscard]] PosRange range(std::int32_t block, std::size_t sequence, std::size_t group) const noexcept {
    const format::GroupBlockRecord& b = blocks[static_cast<std::size_t>(block)];
    return {b.first, std::min<Pos>(b.first + b.rows, length(sequence, group))};
  }
  /// Layers that store rows, in the order of the groups.
  [[nodiscard]] Index stored_layers() const noexcept {
    std::uint64_t sum = 0;
    for (const format::GroupRecord& g : groups) {
      sum += g.layers;
    }
    return static_cast<Index>(sum);
  }
  /// The group of a stored layer, and its number in the group.
  [[nodiscard]] LayerPlace place(Index stored_layer) const noexcept {
    Index group = 0;
    for (; stored_layer >= static_cast<Index>(groups[static_cast<std::size_t>(group)].layers); ++group) {
      stored_layer -= static_cast<Index>(groups[static_cast<std::size_t>(group)].layers);
    }
    return {group, stored_layer};
  }
  /// Bytes of all rows of a stored layer; behind these layers are the recurrent ones, with all states of one.
  [[nodiscard]] std::uint64_t layer_bytes(Index stored_layer) const noexcept {
    if (const Index with_rows = stored_layers(); stored_layer >= with_rows) {
      return format::bounded_product(stored_states,
                                     static_cast<std::uint64_t>(recurrent.bytes(stored_layer - with_rows)));
    }
    const auto g = static_cast<std::size_t>(place(stored_layer).group);
    return format::bounded_product(rows[g], format::token_bytes(groups[g]));
  }
};

/// Derives the number of rows.
inline void count_rows(GroupContents& c) {
  c.rows.assign(c.groups.size(), 0);
  for (const format::GroupBlockRecord& b : c.blocks) {
    c.rows[static_cast<std::size_t>(b.group)] += static_cast<std::uint64_t>(b.rows);
  }
}

/// Derives where the states of each sequence are, and how many there are in all.
inline void count_states(GroupContents& c) {
  c.state_at.assign(c.histories.sequences.size() + 1, 0);
  for (const format::StateRecord& state : c.states) {
    ++c.state_at[static_cast<std::size_t>(state.sequence) + 1];
    c.stored_states = std::max(c.stored_states, static_cast<std::size_t>(state.number) + 1);
  }
  std::partial_sum(c.state_at.begin(), c.state_at.end(), c.state_at.begin());
}

/// Writes all sections that precede the rows.
inline void write_contents(SectionWriter& out, const format::DescriptionRecord& description, const GroupContents& c) {
  write_contents(out, description, c.histories);
  out.section(section::groups, std::as_bytes(std::span(c.groups)));
  out.section(section::layer_map, std::as_bytes(std::span(c.layers)));
  out.section(section::group_blocks, std::as_bytes(std::span(c.blocks)));
  out.section(section::tables, std::as_bytes(std::span(c.tables)));
  if (c.recurrent.size() > 0) {
    out.section(section::state_kinds, std::as_bytes(c.recurrent.kinds()));
    out.section(section::states, std::as_bytes(std::span(c.states)));
  }
}

/// Reads all sections that precede the rows, and checks that a cache with these layers, whose elements are T, can hold
/// them. Throws FormatError.
template <class T>
class GroupContentsReader {
 public:
  GroupContentsReader(SectionReader& in, const LayerGroups& layers) : in_(in), layers_(layers) {}

  [[nodiscard]] GroupContents read() {
    c_.histories = ContentsReader(in_, true).read();
    c_.groups = same<format::GroupRecord>(section::groups, "groups", describe_groups(layers_, [&](Index dim) {
                                            return stored_row_bytes<T>(c_.histories.element, dim);
                                          }));
    c_.layers = same<format::LayerRecord>(section::layer_map, "layers", describe_layers(layers_));
    read_blocks();
    count_rows(c_);
    read_tables();
    c_.recurrent = RecurrentLayers(layers_);
    if (c_.recurrent.size() > 0) {
      read_state_kinds();
      read_states();
    }
    count_states(c_);
    return std::move(c_);
  }

 private:
  std::uint64_t expect(SectionName name) {
    (void)in_.expect(name);
    return in_.payload_offset();
  }
  /// Reads records that must be those of the cache.
  template <class Record>
  [[nodiscard]] std::vector<Record> same(SectionName name, const char* what, const std::vector<Record>& own) {
    const std::uint64_t base = expect(name);
    std::vector<Record> records = in_.records<Record>(what);
    for (std::size_t i = 0; i < std::min(own.size(), records.size()); ++i) {
      if (std::memcmp(&own[i], &records[i], sizeof(Record)) != 0) {
        in_.fail_at(base + i * sizeof(Record), kvc::detail::concat({what, " as the cache has, found number ",
                                                                    std::to_string(i), " to be another"}));
      }
    }
    if (own.size() != records.size()) {
      in_.fail_at(base, kvc::detail::concat({std::to_string(own.size()), " ", what, ", as the cache has, found ",
                                             std::to_string(records.size())}));
    }
    return records;
  }

  void read_blocks() {
    const std::uint64_t base = expect(section::group_blocks);
    c_.blocks = in_.records<format::GroupBlockRecord>("blocks of groups");
    if (c_.blocks.size() > static_cast<std::size_t>(max_pos)) {
      in_.fail_at(base, "at most 2^31 - 1 blocks");
    }
    for (std::size_t i = 0; i < c_.blocks.size(); ++i) {
      const format::GroupBlockRecord& b = c_.blocks[i];
      const bool is_group = b.group >= 0 && static_cast<std::size_t>(b.group) < c_.groups.size();
      const std::int32_t cross = is_group ? c_.groups[static_cast<std::size_t>(b.group)].cross_rows : 0;
      const Pos most = cross > 0 ? cross : max_pos;
      if (!is_group || b.first < 0 || b.rows < 1 || b.first > most - b.rows || b.zero != 0) {
        in_.fail_at(base + i * sizeof b,
                    kvc::detail::concat({"block ", std::to_string(i), " of a group, with rows at its positions"}));
      }
    }
  }

  void read_tables() {
    base_ = expect(section::tables);
    c_.tables = in_.records<std::int32_t>("tables");
    std::size_t at = 0;
    for (std::size_t s = 0; s < c_.histories.sequences.size(); ++s) {
      const std::size_t begin = at;
      bool has_cross = c_.histories.sequences[s].length > 0;
      for (const auto& group : c_.groups) {
        const std::size_t left = c_.tables.size() - at;
        if (left == 0 || c_.tables[at] < 0 || static_cast<std::size_t>(c_.tables[at]) > left - 1) {
          fail(at, s, "as many blocks as it announces for each group");
        }
        c_.table_at.push_back(at);
        c_.missing.push_back({0, 0});
        has_cross = has_cross || (group.cross_rows > 0 && c_.tables[at] > 0);
        at += 1 + static_cast<std::size_t>(c_.tables[at]);
      }
      for (std::size_t g = 0; g < c_.groups.size(); ++g) {
        if (c_.groups[g].cross_rows == 0 || has_cross) {
          read_table(s, g);
        } else if (!c_.table(s, g).empty()) {
          fail(begin, s, "rows of another input in each group that has such, or in none");
        }
      }
    }
    if (at != c_.tables.size()) {
      in_.fail_at(base_ + at * sizeof(std::int32_t), "the end of the tables");
    }
  }
  /// Checks that blocks follow one another, but for positions that the group drops.
  void read_table(std::size_t s, std::size_t g) {
    const format::GroupRecord& group = c_.groups[g];
    const Retained rule{group.window, group.chunk, group.kept};
    const Pos length = c_.length(s, g);
    const Pos kept = std::min(rule.kept, length);
    const Pos seen = rule.everything() ? 0 : rule.first_seen(length);
    PosRange& missing = c_.missing[s * c_.groups.size() + g];
    const std::size_t table_at = c_.table_at[s * c_.groups.size() + g];
    Pos next = 0;
    const auto go_on_at = [&](Pos first, std::size_t at) {
      if (first == next) {
        return;
      }
      if (first < next || !missing.empty() || next < kept || first > seen) {
        fail(at, s, "rows of all positions that its next row sees, in ascending order");
      }
      missing = {next, first};
    };
    const std::span<const std::int32_t> table = c_.table(s, g);
    for (std::size_t i = 0; i < table.size(); ++i) {
      const std::size_t at = table_at + 1 + i;
      if (table[i] < 0 || static_cast<std::size_t>(table[i]) >= c_.blocks.size() ||
          static_cast<std::size_t>(c_.blocks[static_cast<std::size_t>(table[i])].group) != g) {
        fail(at, s, "the number of a block of the group");
      }
      const PosRange range = c_.range(table[i], s, g);
      if (range.empty()) {
        fail(at, s, "blocks that begin before its end");
      }
      go_on_at(range.first, at);
      next = range.last;
    }
    go_on_at(length, table_at);
  }

  void read_state_kinds() {
    const std::uint64_t base = expect(section::state_kinds);
    const auto kinds = in_.records<format::StateKindRecord>("kinds of recurrent states");
    const auto own = c_.recurrent.kinds();
    for (std::size_t k = 0; k < std::min(own.size(), kinds.size()); ++k) {
      const auto same = [&](std::uint64_t ours, std::uint64_t found, std::size_t field, const char* what) {
        if (ours != found) {
          in_.fail_at(base + k * sizeof(format::StateKindRecord) + field,
                      kvc::detail::concat({std::to_string(ours), what, std::to_string(k), ", as the cache has, found ",
                                           std::to_string(found)}));
        }
      };
      same(own[k].layers, kinds[k].layers, offsetof(format::StateKindRecord, layers), " layers with states of kind ");
      same(own[k].bytes, kinds[k].bytes, offsetof(format::StateKindRecord, bytes), " bytes in a state of kind ");
    }
    if (own.size() != kinds.size()) {
      in_.fail_at(
          base, kvc::detail::concat({std::to_string(own.size()), " kinds of recurrent states, as the cache has, found ",
                                     std::to_string(kinds.size())}));
    }
  }
  /// Checks that each sequence has states by ascending length, the last one of its own length.
  void read_states() {
    base_ = expect(section::states);
    c_.states = in_.records<format::StateRecord>("states");
    std::vector<Pos> lengths;  // [stored states]
    std::size_t sequence = 0;
    Pos before = 0;
    const auto end_sequence = [&](std::size_t i) {
      if (before != c_.histories.sequences[sequence].length) {
        fail_state(i, "states after the last token of sequence ", sequence);
      }
      ++sequence;
      before = 0;
    };
    for (std::size_t i = 0; i < c_.states.size(); ++i) {
      const format::StateRecord& state = c_.states[i];
      if (state.sequence < 0 || static_cast<std::size_t>(state.sequence) >= c_.histories.sequences.size()) {
        fail_state(i, "the number of a sequence of ", c_.histories.sequences.size());
      }
      while (sequence < static_cast<std::size_t>(state.sequence)) {
        end_sequence(i);
      }
      if (static_cast<std::size_t>(state.sequence) < sequence || state.length <= before || state.zero != 0) {
        fail_state(i, "states by sequence and length, found another one of sequence ", sequence);
      }
      if (state.number < 0 || static_cast<std::size_t>(state.number) > lengths.size()) {
        fail_state(i, "the number of stored states, at most ", lengths.size());
      }
      if (static_cast<std::size_t>(state.number) == lengths.size()) {
        lengths.push_back(state.length);
      } else if (lengths[static_cast<std::size_t>(state.number)] != state.length) {
        fail_state(i, "the same length wherever it is, of stored states ", static_cast<std::size_t>(state.number));
      }
      before = state.length;
    }
    while (sequence < c_.histories.sequences.size()) {
      end_sequence(c_.states.size());
    }
  }
  [[noreturn]] void fail_state(std::size_t i, const char* expected, std::size_t number) const {
    in_.fail_at(base_ + i * sizeof(format::StateRecord), kvc::detail::concat({expected, std::to_string(number)}));
  }
  [[noreturn]] void fail(std::size_t at, std::size_t sequence, const char* expected) const {
    in_.fail_at(base_ + at * sizeof(std::int32_t),
                kvc::detail::concat({"sequence ", std::to_string(sequence), " with ", expected}));
  }

  SectionReader& in_;
  const LayerGroups& layers_;
  GroupContents c_;
  std::uint64_t base_ = 0;
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
