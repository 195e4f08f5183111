// GroupReader: loads a snapshot of a cache with layer groups, layer by layer: version 2 of the format.
//
// Sequences are restored one after the other, the longest first (RestoresSequences), and share the blocks of the one
// before that has most in common with them. Then rows and states are read. Tokens are published last: until then no
// prompt matches a row and no handle has been given out, so everything can be taken back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/detail/stored_runs.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/snapshot/group_contents.hpp"
#include "kvc/snapshot/options.hpp"
#include "kvc/snapshot/recurrent_layers.hpp"
#include "kvc/snapshot/restore.hpp"
#include "kvc/snapshot/restore_plan.hpp"
#include "kvc/snapshot/row_reader.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {
namespace detail {

/// Loads a snapshot of version 2: into a cache with the same layer groups. The contract is that of Reader.
template <class Cache>
class GroupReader {
 public:
  using Policy = typename Cache::PolicyType;
  using T = typename Cache::Element;
  using Storage = StorageOf<T>;

  GroupReader(Cache& cache, io::ByteSource& source, const LoadOptions& options)
      : cache_(cache),
        in_(source, format::group_version),
        c_(GroupContentsReader<T>(in_, cache.layers()).read()),
        file_order_(layers_of_file(cache.layers())),
        order_(order_of(in_, c_.histories)),
        decode_(decoder_of<T>(in_, c_.histories, options.convert_elements)),
        plan_(with_small_tables(), options.cached_prefixes && KeepsPrefixes<BarePolicy<Policy>>),
        layers_(c_.stored_layers(), c_.recurrent.size()),
        scratch_(batch_bytes) {}
  GroupReader(const GroupReader&) = delete;
  GroupReader& operator=(const GroupReader&) = delete;
  ~GroupReader() { close_all(); }

  [[nodiscard]] const Contents& contents() const noexcept { return c_.histories; }
  /// Positions of all sequences.
  [[nodiscard]] Index tokens() const noexcept {
    Index sum = 0;
    for (const format::SequenceRecord& s : c_.histories.sequences) {
      sum += s.length;
    }
    return sum;
  }

  [[nodiscard]] bool try_reserve() {
    require(!reserved_, "try_reserve", "called again", "called once");
    if constexpr (KeepsPrefixes<Policy>) {
      if (!can_evict()) {
        return false;
      }
    }
    sequences_.resize(c_.histories.sequences.size());
    std::vector<bool> had_cross(sequences_.size(), false);
    opened_.reserve(sequences_.size());
    if (!plan_.try_restore(cache_, [&](std::size_t s, SeqId seq) {
          opened_.push_back(seq);
          sequences_[s] = seq;
          had_cross[s] = has_cross(seq);
        })) {
      close_all();
      return false;
    }
    add_targets(sequences_, had_cross);
    add_state_targets(sequences_);
    reserved_ = true;
    return true;
  }

  std::optional<Index> next_layer() {
    require(reserved_ && !ended_, "next_layer", "called before try_reserve or after the end", "called in between");
    const std::optional<Index> stored_layer = begin_layer();
    if (!stored_layer) {
      ended_ = true;
      return std::nullopt;
    }
    if (const Index recurrent = *stored_layer - c_.stored_layers(); recurrent >= 0) {
      read_states(recurrent);
    } else {
      read_rows(*stored_layer);
    }
    in_.finish();
    return file_order_[static_cast<std::size_t>(*stored_layer)];
  }

  [[nodiscard]] Loaded commit() {
    require(ended_, "commit", "called before the end was read", "called after it");
    ended_ = reserved_ = false;
    Loaded loaded;
    loaded.sequences.reserve(sequences_.size());
    if constexpr (KnowsTokens<Policy>) {
      Pos most = 0;
      for (const format::SequenceRecord& s : c_.histories.sequences) {
        most = std::max(most, s.known_tokens);
      }
      // The last thing that can fail: the plan shares rows only where tokens agree, and try_restore has taken the
      // memory.
      std::vector<Token> tokens(static_cast<std::size_t>(most));
      for (const std::size_t s : plan_.order()) {
        const format::SequenceRecord& record = c_.histories.sequences[s];
        const auto known = std::span(tokens).first(static_cast<std::size_t>(record.known_tokens));
        c_.histories.copy_tokens(record.last, record.known_tokens, known);
        cache_.publish_tokens(sequences_[s], known);
      }
    }
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      if (!c_.is_cached(s)) {
        loaded.sequences.push_back(sequences_[s]);
      }
    }
    opened_.clear();
    for (const std::size_t s : plan_.order()) {
      if (c_.is_cached(s)) {
        cache_.close(sequences_[s]);  // it stays for later prompts
      }
    }
    std::erase_if(c_.histories.sequences, [](const format::SequenceRecord& s) { return s.flags != 0; });
    loaded.contents = std::move(c_.histories);
    return loaded;
  }

 private:
  void close_all() noexcept {
    for (const SeqId seq : opened_) {
      cache_.close(seq);
    }
    opened_.clear();
  }
  /// The next layer in the order of the file, or nothing after reading the end.
  [[nodiscard]] std::optional<Index> begin_layer() {
    return layers_.next(in_, [&](Index layer) { return c_.layer_bytes(layer); });
  }
  [[nodiscard]] bool has_cross(SeqId seq) const {
    for (std::size_t g = 0; g < c_.groups.size(); ++g) {
      if (c_.groups[g].cross_rows > 0 && cache_.policy().positions(seq, static_cast<Index>(g)) > 0) {
        return true;
      }
    }
    return false;
  }

  /// The contents. A few bytes can ask for a large block table, and for as much work: allows no more than the bytes of
  /// the rows, which the source must have. Throws FormatError.
  [[nodiscard]] const GroupContents& with_small_tables() const {
    constexpr std::uint64_t most = std::uint64_t{1} << 62U;
    std::uint64_t entries = 0;
    std::uint64_t bytes = std::uint64_t{1} << 20U;
    for (std::size_t g = 0; g < c_.groups.size(); ++g) {
      const Pos size = cache_.policy().block_tokens(static_cast<Index>(g));
      bytes = std::min(
          most, bytes + format::bounded_product(format::bounded_product(c_.rows[g], format::token_bytes(c_.groups[g])),
                                                c_.groups[g].layers));
      for (std::size_t s = 0; s < c_.histories.sequences.size(); ++s) {
        for (const std::int32_t block : c_.table(s, g)) {
          entries += static_cast<std::uint64_t>(c_.range(block, s, g).size() / size) + 2;
        }
      }
    }
    std::uint64_t state_bytes = 0;
    for (const format::StateKindRecord& kind : c_.recurrent.kinds()) {
      state_bytes += kind.layers * kind.bytes;
    }
    bytes = std::min(most, bytes + format::bounded_product(c_.stored_states, state_bytes));
    entries += c_.states.size() * static_cast<std::uint64_t>(c_.recurrent.size());  // a block for a layer, at most
    if (const std::uint64_t table_bytes = format::bounded_product(entries, sizeof(BlockId)); table_bytes > bytes) {
      in_.fail_at(sizeof(format::FileHeader),
                  kvc::detail::concat({"sequences whose block tables are smaller than the rows, found ",
                                       std::to_string(table_bytes), " bytes of tables"}));
    }
    return c_;
  }

  /// Whether there is room, found out with a policy without rows: an attempt would evict before it fails. If room must
  /// be made by evicting and the source can rewind, all rows are checked first.
  [[nodiscard]] bool can_evict() {
    const Stats now = cache_.stats();
    if (now.blocks_cached == 0) {
      return true;
    }
    Policy probe(cache_.config(), cache_.policy().group_rules());
    if (!plan_.try_restore(probe, [](std::size_t, SeqId) {})) {
      return false;
    }
    const Index blocks = probe.stats().blocks_referenced;
    if (blocks > now.blocks_free + now.blocks_cached) {
      return false;
    }
    if (blocks > now.blocks_free && in_.can_rewind()) {
      const SectionReader::Mark rows = in_.mark();
      while (begin_layer()) {
        in_.skip();
        in_.finish();
      }
      in_.rewind(rows);
      layers_.restart();
    }
    return true;
  }

  /// Finds the places of all rows. A place that two sequences share is one.
  void add_targets(const std::vector<SeqId>& sequences, const std::vector<bool>& had_cross) {
    targets_.resize(c_.groups.size());
    std::set<std::tuple<std::size_t, BlockId, Pos>> seen;
    for (const std::size_t s : plan_.order()) {
      for (std::size_t g = 0; g < c_.groups.size(); ++g) {
        const std::span<const std::int32_t> table = c_.table(s, g);
        if (table.empty() || (c_.groups[g].cross_rows > 0 && had_cross[s])) {
          continue;  // its salt says which other input it is, and the rows are there
        }
        std::size_t i = 0;
        kvc::detail::for_each_stored_run(cache_.policy(), sequences[s], static_cast<Index>(g), {0, c_.length(s, g)},
                                         [&](const SlotRun& run) {
                                           if (!seen.emplace(g, run.block, run.offset).second) {
                                             return;
                                           }
                                           while (c_.range(table[i], s, g).last <= run.first) {
                                             ++i;
                                           }
                                           add_targets(s, g, run, table.subspan(i));
                                         });
      }
    }
    for (std::vector<Target>& targets : targets_) {
      std::ranges::stable_sort(targets, [](const Target& a, const Target& b) {
        return std::pair(a.source, a.row) < std::pair(b.source, b.row);
      });
    }
  }
  void add_targets(std::size_t s, std::size_t g, const SlotRun& run, std::span<const std::int32_t> table) {
    for (const std::int32_t block : table) {
      const PosRange range = c_.range(block, s, g);
      const Pos first = std::max(range.first, run.first);
      const Pos last = std::min(range.last, run.first + run.count);
      if (first >= last) {
        return;
      }
      targets_[g].push_back(
          {block, true, first - range.first, {run.block, run.offset + (first - run.first), last - first}});
    }
  }

  /// Finds the places of all states that the sequences keep.
  void add_state_targets(const std::vector<SeqId>& sequences) {
    std::set<BlockId> seen;
    for (const std::size_t s : plan_.order()) {
      for (const Pos length : detail::state_lengths(cache_.policy(), sequences[s])) {
        if (seen.insert(detail::state_block(cache_.policy(), sequences[s], length)).second) {
          const auto states = c_.states_of(s);
          const auto state = std::ranges::lower_bound(states, length, {}, &format::StateRecord::length);
          state_targets_.push_back({static_cast<std::size_t>(state->number), sequences[s], length});
        }
      }
    }
    std::ranges::stable_sort(state_targets_, {}, &StateTarget::number);
  }
  /// Reads the states of a recurrent layer to their first places, and copies them to the others.
  void read_states(Index recurrent) {
    const Index layer = c_.recurrent.model_layer(recurrent);
    const auto bytes = static_cast<std::uint64_t>(c_.recurrent.bytes(recurrent));
    std::span<const StateTarget> targets = state_targets_;
    for (std::size_t number = 0; number < c_.stored_states; ++number) {
      io::ByteSpan first;
      for (; !targets.empty() && targets[0].number == number; targets = targets.subspan(1)) {
        const io::ByteSpan to = detail::writable_state_bytes(cache_, layer, targets[0].seq, targets[0].length);
        if (first.empty()) {
          first = to;
          in_.add(to);
          in_.flush();
        } else {
          std::ranges::copy(first, to.begin());
        }
      }
      if (first.empty()) {
        in_.skip(bytes);
      }
    }
  }

  void read_rows(Index stored_layer) {
    const LayerPlace place = c_.place(stored_layer);
    const auto g = static_cast<std::size_t>(place.group);
    std::span<const Target> targets = targets_[g];
    for (std::size_t b = 0; b < c_.blocks.size(); ++b) {
      if (static_cast<std::size_t>(c_.blocks[b].group) != g) {
        continue;
      }
      std::size_t count = 0;
      Pos next = 0;
      bool is_tiled = decode_ == nullptr;  // each row has one place, in order
      slots_.clear();
      for (; count < targets.size() && targets[count].source == static_cast<std::int32_t>(b); ++count) {
        is_tiled = is_tiled && targets[count].row == next;
        next = targets[count].row + targets[count].to.count;
        slots_.push_back(targets[count].to);
      }
      if (count == 0) {
        in_.skip(static_cast<std::uint64_t>(c_.blocks[b].rows) * format::token_bytes(c_.groups[g]));
      } else if (is_tiled && next == c_.blocks[b].rows) {
        layout::for_each_row_span(
            cache_.group_layout(place.group), place.layer, order_, slots_, [&](Index at, Index units) {
              in_.add(std::as_writable_bytes(std::span(cache_.data() + at, static_cast<std::size_t>(units))));
            });
      } else {
        read_row_by_row(place, c_.blocks[b].rows, targets.first(count));
      }
      targets = targets.subspan(count);
    }
    in_.flush();
  }
  /// Reads a block in parts, and stores each row at all of its places.
  void read_row_by_row(LayerPlace place, Index rows, std::span<const Target> targets) {
    const Shape& shape = cache_.shape(place.group);
    const format::GroupRecord& group = c_.groups[static_cast<std::size_t>(place.group)];
    const Index heads = shape.kv_heads;
    for (const bool keys : {true, false}) {
      const layout::LayerRows part(cache_.group_layout(place.group), place.layer, keys);
      const auto row_bytes = static_cast<std::size_t>(keys ? group.key_row_bytes : group.value_row_bytes);
      if (row_bytes == 0) {
        continue;  // the value is the beginning of the key
      }
      scratch_.resize(std::max(scratch_.size(), row_bytes));
      const Index most = static_cast<Index>(scratch_.size() / row_bytes);
      for (Index begin = 0; begin < rows * heads;) {
        const Index end = std::min(begin + most, rows * heads);
        in_.add(std::span(scratch_).first(static_cast<std::size_t>(end - begin) * row_bytes));
        in_.flush();
        for (const Target& target : targets) {
          for (Index head = 0; head < heads; ++head) {
            // Row i of a head is number head * rows + i, or i * heads + head.
            const bool by_head = order_ == layout::RowOrder::head_major;
            const Index step = by_head ? 1 : heads;
            const Index origin = by_head ? head * rows : head;
            const Index from = std::max<Index>(target.row, ceil_div(std::max<Index>(begin - origin, 0), step));
            const Index to =
                std::min<Index>(target.row + target.to.count, ceil_div(std::max<Index>(end - origin, 0), step));
            for (Index row = from; row < to; ++row) {
              const auto at = static_cast<std::size_t>(origin + row * step - begin) * row_bytes;
              store_row<T>(decode_, std::span<const std::byte>(scratch_).subspan(at, row_bytes),
                           keys ? shape.key_dim : shape.value_dim, cache_.data(), part, head, target.to.block,
                           target.to.slot + static_cast<Pos>(row - target.row), floats_);
            }
          }
        }
        begin = end;
      }
    }
  }

  Cache& cache_;
  SectionReader in_;
  GroupContents c_;
  std::vector<Index> file_order_;  // layers of the model in the order of the file
  layout::RowOrder order_;
  RowDecoder decode_;
  RestorePlan plan_;
  LayerSections layers_;
  std::vector<SeqId> opened_;                 // to be closed again unless they are committed
  std::vector<SeqId> sequences_;              // in the order of the file
  std::vector<std::vector<Target>> targets_;  // [groups] by stored block and row
  struct StateTarget {
    std::size_t number;  // of the stored state
    SeqId seq;
    Pos length;
  };
  std::vector<StateTarget> state_targets_;  // by number
  std::vector<layout::SlotSpan> slots_;
  std::vector<std::byte> scratch_;
  std::vector<float> floats_;
  bool reserved_ = false;
  bool ended_ = false;
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
