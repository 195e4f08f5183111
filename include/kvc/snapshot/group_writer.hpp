// GroupWriter: saves a cache with layer groups, layer by layer: version 2 of the format.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/policy/cached_prefix.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/detail/stored_runs.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/snapshot/collect.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/describe.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/snapshot/group_contents.hpp"
#include "kvc/snapshot/options.hpp"
#include "kvc/snapshot/recurrent_layers.hpp"
#include "kvc/snapshot/sections.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {
namespace detail {

/// Turns sequences into the contents of a snapshot.
template <class Cache>
class GroupCollector {
 public:
  using Policy = typename Cache::PolicyType;

  /// Throws std::bad_alloc, as all members do.
  explicit GroupCollector(const Cache& cache) : cache_(cache) {
    using T = typename Cache::Element;
    description_ = snapshot::describe(cache);
    description_.block_tokens = static_cast<std::uint32_t>(max_pos);  // a history is one block
    set_description(c_.histories, description_);
    c_.histories.first_token.push_back(0);
    c_.groups =
        describe_groups(cache.layers(), [&](Index dim) { return stored_row_bytes<T>(c_.histories.element, dim); });
    c_.layers = describe_layers(cache.layers());
    c_.recurrent = RecurrentLayers(cache.layers());
    slots_.resize(c_.groups.size());
  }

  /// Throws std::invalid_argument if the sequence is not open, or has other tokens than one that shares its rows.
  void add(const SavedSequence& saved, const SaveOptions& options) {
    const Policy& policy = cache_.policy();
    const History history = detail::history_of(policy, saved, options);
    add_history(history);
    for (std::size_t g = 0; g < c_.groups.size(); ++g) {
      const auto group = static_cast<Index>(g);
      Pos end = history.length;
      if (c_.groups[g].cross_rows > 0) {
        const bool is_reserved = !policy.extension(saved.seq, group).empty();
        end = is_reserved && !options.reserved ? 0 : policy.positions(saved.seq, group);
      }
      const std::size_t at = c_.tables.size();
      c_.tables.push_back(0);
      kvc::detail::for_each_stored_run(policy, saved.seq, group, {0, end}, [&](const SlotRun& run) {
        ++c_.tables[at];
        c_.tables.push_back(add_block(g, run));
        if (c_.groups[g].cross_rows == 0) {
          require_same_tokens(c_.tables.back(), run.first + run.count);
        }
      });
    }
    for (const Pos states : detail::state_lengths(policy, saved.seq)) {
      if (states <= history.length) {
        add_state(states, detail::state_blocks(policy, saved.seq, states));
      }
    }
  }
  /// Adds a cached prefix as a sequence with a flag.
  void add(const CachedPrefix& prefix) {
    const auto length = static_cast<Pos>(prefix.tokens.size());
    add_history({length, Salt::from_bytes(prefix.salt).value(), {prefix.tokens.begin(), prefix.tokens.end()}});
    c_.histories.sequences.back().flags = format::SequenceRecord::cached;
    std::span<const CachedPrefix::Block> blocks = prefix.blocks;
    for (std::size_t g = 0; g < c_.groups.size(); ++g) {
      const std::size_t at = c_.tables.size();
      c_.tables.push_back(0);
      for (; !blocks.empty() && static_cast<std::size_t>(blocks[0].group) == g; blocks = blocks.subspan(1)) {
        ++c_.tables[at];
        c_.tables.push_back(add_block(g, {blocks[0].block, 0, blocks[0].rows, blocks[0].first}));
      }
    }
    if (!prefix.states.empty()) {
      add_state(length, {prefix.states.begin(), prefix.states.end()});
    }
  }
  /// After the last sequence: the contents are complete, and the places of the blocks have as many rows as they.
  void finish() {
    count_rows(c_);
    count_states(c_);
    std::vector<std::size_t> next(slots_.size());
    for (const format::GroupBlockRecord& b : c_.blocks) {
      const auto g = static_cast<std::size_t>(b.group);
      slots_[g][next[g]++].count = b.rows;
    }
  }

  [[nodiscard]] const format::DescriptionRecord& description() const noexcept { return description_; }
  [[nodiscard]] const GroupContents& contents() const noexcept { return c_; }
  /// The places of the blocks of a group in the pool, in the order of the file.
  [[nodiscard]] std::span<const layout::SlotSpan> slots(Index group) const noexcept {
    return slots_[static_cast<std::size_t>(group)];
  }
  /// The blocks of each stored state, those of all kinds one after the other.
  [[nodiscard]] std::span<const std::vector<BlockId>> states() const noexcept { return states_; }

 private:
  void add_history(const History& history) {
    Contents& h = c_.histories;
    const auto [entry, is_new] =
        salts_.try_emplace(std::string(history.salt.bytes()), static_cast<std::int32_t>(h.salts.size()));
    if (is_new) {
      h.salts.push_back(history.salt);
    }
    const auto known = static_cast<Pos>(history.tokens.size());
    tokens_at_.push_back(h.tokens.size());
    std::int32_t last = -1 - entry->second;
    if (history.length > 0) {
      h.blocks.push_back({last, history.length, known, 0});
      last = static_cast<std::int32_t>(h.blocks.size()) - 1;
      h.tokens.insert(h.tokens.end(), history.tokens.begin(), history.tokens.end());
    }
    h.sequences.push_back({last, history.length, known, 0});
  }
  std::int32_t add_block(std::size_t group, const SlotRun& run) {
    const auto [entry, is_new] =
        numbers_.try_emplace({group, run.block, run.offset, run.first}, static_cast<std::int32_t>(c_.blocks.size()));
    if (is_new) {
      require(c_.blocks.size() < static_cast<std::size_t>(max_pos), "blocks to save", c_.blocks.size(),
              "less than 2^31 - 1");
      c_.blocks.push_back({static_cast<std::int32_t>(group), run.first, run.count, 0});
      slots_[group].push_back({run.block, run.offset, run.count});
    }
    Pos& rows = c_.blocks[static_cast<std::size_t>(entry->second)].rows;
    rows = std::max(rows, run.count);
    return entry->second;
  }

  /// Throws std::invalid_argument if the last sequence has other tokens in the first `end` positions than those that
  /// are known of a block of it. Of a block, the sequence counts that knows most.
  void require_same_tokens(std::int32_t block, Pos end) {
    knows_.resize(c_.blocks.size(), none);
    const std::size_t last = c_.histories.sequences.size() - 1;
    std::size_t& knows = knows_[static_cast<std::size_t>(block)];
    if (knows == none) {
      knows = last;
      return;
    }
    const auto tokens_of = [&](std::size_t sequence) {
      const auto known = static_cast<std::size_t>(c_.histories.sequences[sequence].known_tokens);
      return std::span<const Token>(c_.histories.tokens).subspan(tokens_at_[sequence], known);
    };
    const std::span<const Token> mine = tokens_of(last), theirs = tokens_of(knows);
    if (compared_.first != last || compared_.second != knows) {  // mostly many blocks of one sequence
      compared_ = {last, knows};
      common_ = static_cast<std::size_t>(std::ranges::mismatch(mine, theirs).in1 - mine.begin());
    }
    require(common_ >= std::min({mine.size(), theirs.size(), static_cast<std::size_t>(end)}), "tokens",
            "different from those of a sequence that shares the rows", "the same");
    knows = mine.size() > theirs.size() ? last : knows;
  }

  /// Of the last sequence. `blocks`: of all kinds.
  void add_state(Pos length, std::vector<BlockId> blocks) {
    const auto [entry, is_new] = state_numbers_.try_emplace(blocks, static_cast<std::int32_t>(states_.size()));
    if (is_new) {
      states_.push_back(std::move(blocks));
    }
    c_.states.push_back({static_cast<std::int32_t>(c_.histories.sequences.size()) - 1, length, entry->second, 0});
  }

  const Cache& cache_;
  format::DescriptionRecord description_{};
  GroupContents c_;
  std::vector<std::vector<layout::SlotSpan>> slots_;  // [groups] the places of the blocks in the pool
  std::map<std::tuple<std::size_t, BlockId, Pos, Pos>, std::int32_t> numbers_;
  std::map<std::string, std::int32_t> salts_;
  static constexpr std::size_t none = ~std::size_t{0};
  std::vector<std::size_t> tokens_at_;  // [sequences] index in the tokens of the first one
  std::vector<std::size_t> knows_;      // [blocks] the sequence that knows most of the tokens up to it
  std::pair<std::size_t, std::size_t> compared_{none, none};
  std::size_t common_ = 0;                    // tokens that these two begin with alike
  std::vector<std::vector<BlockId>> states_;  // the place of each stored state
  std::map<std::vector<BlockId>, std::int32_t> state_numbers_;
};

/// Writes a snapshot of version 2: a cache with layer groups. The contract is that of Writer.
template <class Cache>
class GroupWriter {
 public:
  GroupWriter(const Cache& cache, std::span<const SavedSequence> sequences, io::ByteSink& sink,
              const SaveOptions& options)
      : cache_(cache), collector_(cache), order_(layers_of_file(cache.layers())), out_(sink, format::group_version) {
    for (const SavedSequence& saved : sequences) {
      collector_.add(saved, options);
    }
    if constexpr (ListsCachedPrefixes<typename Cache::PolicyType>) {
      if (options.cached_prefixes) {
        with_shared_lock(cache.policy(), [&](const auto& policy) {
          policy.for_each_cached_prefix([&](const CachedPrefix& prefix) { collector_.add(prefix); });
        });
      }
    }
    collector_.finish();
    written_.resize(order_.size(), false);
    write_contents(out_, collector_.description(), collector_.contents());
  }

  [[nodiscard]] const Contents& contents() const noexcept { return collector_.contents().histories; }

  void layer(Index layer) {
    const LayerGroups& layers = cache_.layers();
    if (!layers.is_recurrent(layer) && !layers.place(layer).is_owner) {
      return;
    }
    const auto at = static_cast<std::size_t>(std::ranges::find(order_, layer) - order_.begin());
    require(!written_[at], "layer", layer, "one that was not written yet");
    layers.is_recurrent(layer) ? write_states(static_cast<Index>(at)) : write_rows(static_cast<Index>(at));
    written_[at] = true;
  }

  void finish() {
    for (std::size_t i = 0; i < written_.size(); ++i) {
      require(written_[i], "layer", order_[i], "written before finish");
    }
    out_.end();
  }

 private:
  void write_rows(Index stored_layer) {
    const GroupContents& c = collector_.contents();
    const LayerPlace place = c.place(stored_layer);
    out_.begin(section::layer, c.layer_bytes(stored_layer), static_cast<std::uint64_t>(stored_layer));
    const auto* const pool = cache_.data();
    for (const layout::SlotSpan& span : collector_.slots(place.group)) {
      layout::for_each_row_span(cache_.group_layout(place.group), place.layer,
                                layout::row_order<typename Cache::LayoutType>(), std::span(&span, 1),
                                [&](Index at, Index count) {
                                  out_.add(std::as_bytes(std::span(pool + at, static_cast<std::size_t>(count))));
                                });
    }
    out_.finish();
  }
  void write_states(Index stored_layer) {
    const GroupContents& c = collector_.contents();
    const Index recurrent = stored_layer - c.stored_layers();
    out_.begin(section::state_layer, c.layer_bytes(stored_layer), static_cast<std::uint64_t>(recurrent));
    for (const std::vector<BlockId>& blocks : collector_.states()) {
      out_.add(detail::state_bytes(cache_, c.recurrent.model_layer(recurrent), blocks));
    }
    out_.finish();
  }

  const Cache& cache_;
  GroupCollector<Cache> collector_;
  std::vector<Index> order_;  // layers of the model in the order of the file
  SectionWriter out_;
  std::vector<bool> written_;  // in the same order
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
