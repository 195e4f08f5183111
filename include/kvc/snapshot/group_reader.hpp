// Loads a snapshot of a cache with layer groups: version 2 of the format.
//
// Sequences are restored one after the other, the longest first (RestoresSequences), and share the blocks of the one
// before that has most in common with them. Then the rows are read. Tokens are published last: until then no prompt
// matches a row and no handle has been given out, so everything can be taken back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/detail/stored_runs.hpp"
#include "kvc/policy/restore_options.hpp"
#include "kvc/snapshot/group_contents.hpp"
#include "kvc/snapshot/reader.hpp"
#include "kvc/snapshot/restore.hpp"
#include "kvc/snapshot/row_reader.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {
namespace detail {

/// How the sequences of a snapshot are restored.
class RestorePlan {
 public:
  explicit RestorePlan(const GroupContents& contents) : c_(contents), order_(contents.histories.sequences.size()) {
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::ranges::stable_sort(order_, [&](std::size_t a, std::size_t b) { return length(a) > length(b); });
    std::vector<std::int32_t> owners(c_.blocks.size(), -1);
    like_.resize(order_.size());
    for (const std::size_t s : order_) {
      for (std::size_t g = 0; g < c_.groups.size(); ++g) {
        for (const std::int32_t block : c_.table(s, g)) {
          std::int32_t& owner = owners[static_cast<std::size_t>(block)];
          if (owner < 0) {
            owner = static_cast<std::int32_t>(s);
          } else if (static_cast<std::size_t>(owner) != s) {
            add_shared(s, g, static_cast<std::size_t>(owner), block);
          }
        }
      }
      limit_to_equal_tokens(s);
      limit_to_equal_blocks(s);
    }
  }

  /// Restores all sequences in an owner: a cache, or a policy without rows. `opened(i, seq)` is called for
  /// each before its rows are reserved. False if there is no room; sequences stay open then.
  template <class Owner, class F>
  [[nodiscard]] bool try_restore(Owner& owner, F&& opened) const {
    std::vector<SeqId> handles(order_.size());
    for (const std::size_t s : order_) {
      OpenOptions options;
      options.salt = salt(s);
      const std::optional<Opened> open = owner.try_open(std::span<const Token>{}, options);
      if (!open) {
        return false;
      }
      handles[s] = open->seq;
      opened(s, open->seq);
      if (!has_rows(s)) {
        continue;
      }
      RestoreOptions restored{.length = length(s), .missing = missing(s)};
      if (like_[s].owner >= 0) {
        restored.like = handles[static_cast<std::size_t>(like_[s].owner)];
        restored.shared = like_[s].shared;
        restored.shares_cross = like_[s].cross;
      }
      auto step = owner.try_restore(open->seq, restored);
      if (!step) {
        return false;
      }
      if constexpr (Policy<Owner>) {
        owner.commit(open->seq);
      } else {
        owner.commit(std::move(*step));
      }
    }
    return true;
  }
  /// Sequences in the order in which they are restored.
  [[nodiscard]] std::span<const std::size_t> order() const noexcept { return order_; }

 private:
  struct Like {
    std::int32_t owner = -1;
    Pos shared = 0;
    bool cross = false;
  };

  [[nodiscard]] Pos length(std::size_t s) const noexcept { return c_.histories.sequences[s].length; }
  [[nodiscard]] const Salt& salt(std::size_t s) const {
    return c_.histories.salts[static_cast<std::size_t>(c_.histories.salt_of(c_.histories.sequences[s].last))];
  }
  [[nodiscard]] std::span<const PosRange> missing(std::size_t s) const noexcept {
    return std::span(c_.missing).subspan(s * c_.groups.size(), c_.groups.size());
  }
  [[nodiscard]] bool has_rows(std::size_t s) const noexcept {
    for (std::size_t g = 0; g < c_.groups.size(); ++g) {
      if (!c_.table(s, g).empty()) {
        return true;
      }
    }
    return length(s) > 0;
  }
  void add_shared(std::size_t s, std::size_t g, std::size_t owner, std::int32_t block) {
    Like& like = like_[s];
    const bool is_cross = c_.groups[g].cross_rows > 0;
    const Pos end = is_cross ? 0 : std::min(c_.range(block, s, g).last, c_.range(block, owner, g).last);
    if (like.owner < 0 || end > like.shared) {
      like.cross = like.cross && like.owner == static_cast<std::int32_t>(owner);
      like.owner = static_cast<std::int32_t>(owner);
      like.shared = std::max(like.shared, end);
    }
    like.cross = like.cross || (is_cross && like.owner == static_cast<std::int32_t>(owner));
  }
  /// Rows are shared only behind equal tokens, as far as these are known, and for equal salts: anybody can write a file
  /// that says otherwise.
  void limit_to_equal_tokens(std::size_t s) {
    Like& like = like_[s];
    if (like.owner < 0) {
      return;
    }
    const auto other = static_cast<std::size_t>(like.owner);
    if (salt(s).bytes() != salt(other).bytes()) {
      like = {};
      return;
    }
    const std::vector<Token> mine = c_.histories.tokens_of(s);
    const std::vector<Token> theirs = c_.histories.tokens_of(other);
    const auto common = static_cast<std::size_t>(std::ranges::mismatch(mine, theirs).in1 - mine.begin());
    if (common < std::min(mine.size(), theirs.size())) {
      like.shared = std::min(like.shared, static_cast<Pos>(common));
    }
  }

  /// Rows of the same tokens that were computed twice may differ in their bits: they stay apart.
  void limit_to_equal_blocks(std::size_t s) {
    Like& like = like_[s];
    for (std::size_t g = 0; g < c_.groups.size() && like.owner >= 0; ++g) {
      if (c_.groups[g].cross_rows > 0) {
        continue;
      }
      const auto other = static_cast<std::size_t>(like.owner);
      std::span<const std::int32_t> theirs = c_.table(other, g);
      for (const std::int32_t block : c_.table(s, g)) {
        const PosRange range = c_.range(block, s, g);
        while (!theirs.empty() && c_.range(theirs[0], other, g).last <= range.first) {
          theirs = theirs.subspan(1);
        }
        if (!theirs.empty() && theirs[0] != block && c_.range(theirs[0], other, g).first < range.last) {
          like.shared = std::min(like.shared, std::max(range.first, c_.range(theirs[0], other, g).first));
          break;
        }
      }
    }
  }

  const GroupContents& c_;
  std::vector<std::size_t> order_;
  std::vector<Like> like_;  // [sequences]
};

/// One load.
template <class Cache>
class GroupLoader {
 public:
  using Policy = typename Cache::PolicyType;
  using T = typename Cache::Element;
  using Storage = StorageOf<T>;

  /// Reads and checks all but the rows. Throws FormatError.
  GroupLoader(Cache& cache, io::ByteSource& source, const LoadOptions& options)
      : cache_(cache),
        in_(source, format::group_version),
        c_(GroupContentsReader<T>(in_, cache.layers()).read()),
        order_(order_of(in_, c_.histories)),
        decode_(decoder_of<T>(in_, c_.histories, options.convert_elements)),
        plan_(c_),
        layers_(c_.stored_layers()),
        scratch_(batch_bytes) {
    require_small_tables();
  }
  GroupLoader(const GroupLoader&) = delete;
  GroupLoader& operator=(const GroupLoader&) = delete;
  ~GroupLoader() {
    for (const SeqId seq : opened_) {
      cache_.close(seq);
    }
  }

  /// Positions of all sequences.
  [[nodiscard]] Index tokens() const noexcept {
    Index sum = 0;
    for (const format::SequenceRecord& s : c_.histories.sequences) {
      sum += s.length;
    }
    return sum;
  }

  /// Empty if there is no room. Throws FormatError.
  [[nodiscard]] std::optional<Loaded> load() {
    if constexpr (KeepsPrefixes<Policy>) {
      if (!can_evict()) {
        return std::nullopt;
      }
    }
    std::vector<SeqId> sequences(c_.histories.sequences.size());
    std::vector<bool> had_cross(sequences.size(), false);
    opened_.reserve(sequences.size());
    if (!plan_.try_restore(cache_, [&](std::size_t s, SeqId seq) {
          opened_.push_back(seq);
          sequences[s] = seq;
          had_cross[s] = has_cross(seq);
        })) {
      return std::nullopt;
    }
    add_targets(sequences, had_cross);
    while (const std::optional<Index> layer = next_layer()) {
      read_rows(*layer);
      in_.finish();
    }
    if constexpr (KnowsTokens<Policy>) {
      for (std::size_t s = 0; s < sequences.size(); ++s) {
        cache_.publish_tokens(sequences[s], c_.histories.tokens_of(s));
      }
    }
    opened_.clear();
    Loaded loaded{std::move(sequences), {}};
    loaded.contents = std::move(c_.histories);
    return loaded;
  }

 private:
  [[nodiscard]] std::optional<Index> next_layer() {
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

  /// A few bytes can ask for a large block table. Allow no more than the bytes of the rows, which the source must have.
  void require_small_tables() const {
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
    if (const std::uint64_t table_bytes = format::bounded_product(entries, sizeof(BlockId)); table_bytes > bytes) {
      in_.fail_at(sizeof(format::FileHeader),
                  kvc::detail::concat({"sequences whose block tables are smaller than the rows, found ",
                                       std::to_string(table_bytes), " bytes of tables"}));
    }
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
      while (next_layer()) {
        in_.skip();
        in_.finish();
      }
      in_.rewind(rows);
      layers_.restart(c_.stored_layers());
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
                           keys ? shape.key_dim : shape.value_dim,
                           cache_.data() +
                               part.offset(target.to.block, head, target.to.slot + static_cast<Pos>(row - target.row)),
                           floats_);
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
  layout::RowOrder order_;
  RowDecoder decode_;
  RestorePlan plan_;
  LayerSections layers_;
  std::vector<SeqId> opened_;
  std::vector<std::vector<Target>> targets_;  // [groups] by stored block and row
  std::vector<layout::SlotSpan> slots_;
  std::vector<std::byte> scratch_;
  std::vector<float> floats_;
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
