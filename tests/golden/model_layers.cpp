// Layers of real architectures in grouped caches: windows, chunks, sinks, soft caps, latent rows, selections by the
// rows of an indexer, layers that read another layer's cache, and recurrent states give the model's results, however
// the rows came.
#include "model_layers.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "attend.hpp"
#include "catch.hpp"
#include "differences.hpp"
#include "kvc/attention/expanded.hpp"
#include "kvc/attention/extern.hpp"
#include "kvc/attention/selection.hpp"
#include "kvc/cache.hpp"
#include "policies.hpp"

using namespace kvc_test;
using kvc::Index;
using kvc::Pos;
using kvc::PosRange;

namespace {

/// Architectures that no group of today holds. One that passes is to leave this list.
const std::set<std::string> known_failures = {};

/// Memory for a few sequences of a model, in any policy, for passes of at most `pass` tokens.
template <class C>
typename C::Policy::Config config_for(const LayersOfModel& model, Pos pass) {
  const auto groups = std::max(Pos{1}, static_cast<Pos>(model.groups().groups().size()));  // there may be states alone
  auto config = C::config(4 * groups * (model.length() + 32) * (model.is_recurrent() ? 8 : 1), 4, model.length());
  if constexpr (kvc::ConfiguresPasses<typename C::Policy>) {
    config.pass_tokens = pass;
  }
  if constexpr (kvc::ConfiguresStates<typename C::Policy>) {
    config.states = 12;
  }
  return config;
}

/// A matrix of `rows` rows for the results of a layer.
struct Results {
  Results(Index rows, const ModelLayer& layer)
      : values(static_cast<std::size_t>(rows * layer.query_heads * layer.kind.value_dim)),
        matrix(values.data(), rows, layer.query_heads * layer.kind.value_dim) {}
  std::vector<float> values;
  kvc::MatrixRef<float> matrix;
};

/// Where Catch prints a difference, it shows five digits behind the point.
[[nodiscard]] float in_millionths(float difference) { return difference * 1e6F; }

/// The positions that were selected for the rows of a pass, as a mask.
struct SelectionMask {
  SelectionMask(const ModelLayer& layer, PosRange range)
      : rows(range.size()),
        length(range.last),
        seen(std::make_unique<bool[]>(static_cast<std::size_t>(rows) * static_cast<std::size_t>(length))) {
    for (Pos p = range.first; p < range.last; ++p) {
      const std::int32_t* const selected = layer.selected.matrix().row(p);
      for (Index i = 0; i < layer.selected.extents[1] && selected[i] >= 0; ++i) {
        seen[static_cast<std::size_t>(p - range.first) * static_cast<std::size_t>(length) +
             static_cast<std::size_t>(selected[i])] = true;
      }
    }
  }
  [[nodiscard]] kvc::AttentionMask mask() const { return kvc::AttentionMask::boolean(seen.get(), 1, rows, length); }
  Pos rows, length;
  std::unique_ptr<bool[]> seen;  // [rows, length]
};

/// The same as tables, one for each row.
std::vector<kvc::Selection> selections_of(const ModelLayer& layer, PosRange range) {
  std::vector<kvc::Selection> selections;
  for (Pos p = range.first; p < range.last; ++p) {
    const std::int32_t* const row = layer.selected.matrix().row(p);
    std::vector<Pos> positions;
    std::copy_if(row, row + layer.selected.extents[1], std::back_inserter(positions), [](Pos j) { return j >= 0; });
    std::ranges::sort(positions);
    selections.push_back(kvc::Selection::of_positions(positions));
  }
  return selections;
}

/// The rows that the indexer of a layer wrote select what the model selected: the top_k highest index scores, of equal
/// ones the first.
template <class Cache>
void check_selection(const ModelLayer& layer, const Cache& cache, Index index_layer, kvc::SeqId seq, Pos position) {
  const Indexer& indexer = *layer.indexer;
  const Pos count = position + 1;
  std::vector<float> k(static_cast<std::size_t>(count * indexer.dim)), same(k.size());
  cache.gather(index_layer, seq, {0, count}, {k.data(), count, indexer.dim}, {same.data(), count, indexer.dim});
  std::vector<std::pair<double, Pos>> scores;
  for (Pos j = 0; j < count; ++j) {
    double score = 0;
    for (Index h = 0; h < indexer.heads; ++h) {
      double dot = 0;
      for (Index d = 0; d < indexer.dim; ++d) {
        dot += static_cast<double>(indexer.q.matrix().row(position)[h * indexer.dim + d]) *
               static_cast<double>(k[static_cast<std::size_t>(j * indexer.dim + d)]);
      }
      score += static_cast<double>(indexer.w.matrix().row(position)[h]) * std::max(0.0, indexer.scale * dot);
    }
    scores.emplace_back(-score, j);
  }
  std::ranges::sort(scores);
  scores.resize(std::min(scores.size(), static_cast<std::size_t>(layer.selected.extents[1])));
  std::vector<Pos> selected, expected;
  for (const auto& [score, j] : scores) {
    selected.push_back(j);
  }
  std::ranges::sort(selected);
  const std::int32_t* const row = layer.selected.matrix().row(position);
  std::copy_if(row, row + layer.selected.extents[1], std::back_inserter(expected), [](Pos j) { return j >= 0; });
  CHECK(selected == expected);
}

/// The tokens of an append through a recurrent layer, from the state before them to the states that are wanted.
template <class Cache, class Append>
void pass_recurrent(const DeltaRule& rule, Cache& cache, Index number, const Append& append) {
  const PosRange range = append.range();
  const std::span<const Pos> wanted = cache.states_to_write(append);
  std::vector<float> results;
  rule.run(range, cache.state(number, append.seq()), results, [&](Pos length, std::span<const std::byte> state) {
    if (std::ranges::binary_search(wanted, length)) {
      std::ranges::copy(state, cache.state_to_write(number, append, length).begin());
    }
  });
  float worst = 0;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const auto first = static_cast<std::size_t>(range.first * rule.value_heads * rule.value_dim);
    worst = std::max(worst, std::abs(results[i] - rule.out.data[first + i]));
  }
  CHECK(in_millionths(worst) <= 2);
  for (std::size_t i = 0; i < rule.state_positions.size(); ++i) {  // as the model has them
    const auto length = static_cast<Pos>(rule.state_positions[i] + 1);
    if (!std::ranges::binary_search(wanted, length)) {
      continue;
    }
    const std::span<const std::byte> bytes = cache.state(number, append.seq(), length);
    std::vector<float> state(bytes.size() / sizeof(float));
    std::memcpy(state.data(), bytes.data(), bytes.size());
    float off = 0;
    for (Index j = 0; j < rule.matrix_floats(); ++j) {
      off = std::max(
          off,
          std::abs(state[static_cast<std::size_t>(j)] -
                   rule.state.data[i * static_cast<std::size_t>(rule.matrix_floats()) + static_cast<std::size_t>(j)]));
    }
    for (Index c = 0; c < rule.channels; ++c) {
      for (Index j = 1; j < rule.kernel; ++j) {
        const auto at = (static_cast<Index>(i) * rule.channels + c) * rule.kernel + j;
        off =
            std::max(off, std::abs(state[static_cast<std::size_t>(rule.matrix_floats() + (j - 1) * rule.channels + c)] -
                                   rule.conv_state.data[static_cast<std::size_t>(at)]));
      }
    }
    CHECK(in_millionths(off) <= 5);
  }
}

/// Appends the next `count` tokens, with states where the model's are known.
template <class Cache>
auto extend(const LayersOfModel& model, Cache& cache, kvc::SeqId seq, Pos count) {
  const Pos first = cache.length(seq);
  const auto tokens = std::span(model.tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  std::vector<Pos> asked;
  for (const ModelLayer& layer : model.layers) {
    for (const Pos position : layer.recurrent&& asked.empty() ? layer.recurrent->state_positions : std::vector<Pos>()) {
      if (first <= position && position < first + count) {
        asked.push_back(position + 1);
      }
    }
  }
  return cache.extend(seq, tokens, asked);
}

/// The next `count` tokens as a model computes them: layer by layer, each one writes what it owns and reads. Compares
/// every result.
template <class Cache>
void pass(const LayersOfModel& model, Cache& cache, kvc::SeqId seq, Pos count) {
  auto append = extend(model, cache, seq, count);
  const PosRange range = append.range();
  for (Index number = 0; number < std::ssize(model.layers); ++number) {
    const ModelLayer& layer = model.layers[static_cast<std::size_t>(number)];
    CAPTURE(number, range.first, range.last);
    if (layer.recurrent) {
      pass_recurrent(*layer.recurrent, cache, number, append);
      continue;
    }
    if (!layer.reads && layer.kind.latent) {
      cache.write(number, append, layer.k.rows_of(range));
    } else if (!layer.reads) {
      cache.write(number, append, layer.k.rows_of(range), layer.v.rows_of(range));
    }
    if (layer.indexer) {
      cache.write(model.index_layer(number), append, layer.indexer->k.rows_of(range));
      check_selection(layer, cache, model.index_layer(number), seq, range.last - 1);
    }
    kvc::AttentionOptions options = layer.options();
    std::optional<SelectionMask> selection;
    if (!layer.selected.extents.empty()) {
      selection.emplace(layer, range);
      options.mask = selection->mask();
    }
    Results out(count, layer);
    Attend<float>::prefill(cache.view(number, seq), range, layer.q.rows_of(range), out.matrix, options);
    CHECK(in_millionths(largest_difference(out.matrix, layer.out.rows_of(range))) <= in_millionths(layer.tolerance()));
    if (layer.expanded) {
      const Index columns = layer.query_heads * layer.expanded->extents.value_dim;
      std::vector<float> of_heads(static_cast<std::size_t>(count * columns));
      kvc::prefill_expanded(cache.view(number, seq), layer.expanded->projections(), range,
                            layer.expanded->q.rows_of(range), {of_heads.data(), count, columns}, options);
      CHECK(in_millionths(largest_difference({of_heads.data(), count, columns}, layer.expanded->out.rows_of(range))) <=
            in_millionths(layer.tolerance()));
    }
    if (!layer.selected.extents.empty()) {
      const std::vector<kvc::Selection> selections = selections_of(layer, range);
      const auto selected = kvc::selected_views(cache.view(number, seq), std::span(selections));
      const std::vector<AnyView<float>> views(selected.begin(), selected.end());
      Results decoded(count, layer);
      Attend<float>::decode(std::span<const AnyView<float>>(views), layer.q.rows_of(range), decoded.matrix,
                            layer.options());
      CHECK(in_millionths(largest_difference(decoded.matrix, layer.out.rows_of(range))) <=
            in_millionths(layer.tolerance()));
    }
    if (count == 1) {
      Results decoded(count, layer);
      Attend<float>::decode(cache.view(number, seq), layer.q.rows_of(range), decoded.matrix, options);
      CHECK(decoded.values == out.values);
    }
  }
  cache.commit(std::move(append));
}

/// All tokens behind those that are in place, in passes of the given sizes, over and over.
template <class Cache>
void passes(const LayersOfModel& model, Cache& cache, kvc::SeqId seq, const std::vector<Pos>& sizes) {
  for (std::size_t i = 0; cache.length(seq) < model.length(); i = (i + 1) % sizes.size()) {
    pass(model, cache, seq, std::min(sizes[i], model.length() - cache.length(seq)));
  }
}

/// Layers that drop rows have dropped them: the results do not come from rows that should be gone.
template <class Cache>
void check_dropped(const LayersOfModel& model, const Cache& cache, kvc::SeqId seq) {
  for (Index number = 0; number < cache.layers().layers(); ++number) {
    if (cache.layers().is_recurrent(number)) {
      continue;
    }
    const kvc::LayerPlace place = cache.layers().place(number);
    const kvc::LayerGroup& group = cache.layers().groups()[static_cast<std::size_t>(place.group)];
    const Pos seen = group.retained.first_seen(model.length());
    CAPTURE(number, seen);
    const auto gather = [&](Pos position) {
      std::vector<float> k(static_cast<std::size_t>(group.shape.kv_heads * group.shape.key_dim));
      std::vector<float> v(static_cast<std::size_t>(group.shape.kv_heads * group.shape.value_dim));
      cache.gather(number, seq, {position, position + 1}, {k.data(), 1, static_cast<Index>(k.size())},
                   {v.data(), 1, static_cast<Index>(v.size())});
    };
    if (seen < model.length()) {  // a window of 1 keeps nothing for the next token
      CHECK_NOTHROW(gather(seen));
      CHECK_NOTHROW(gather(model.length() - 1));
    }
    if (seen > 0) {
      CHECK_THROWS_AS(gather(seen - 1), std::invalid_argument);
    }
  }
}

}  // namespace

TEST_CASE("model_layers: all architectures are supported but for the known failures", "[golden][groups]") {
  for (const LayersOfModel& model : all_model_layers()) {
    INFO(model.name << " (" << model.architecture << "): " << model.unsupported);
    const bool is_known = known_failures.count(model.architecture) == 1;
    CHECK(model.unsupported.empty() != is_known);  // a known failure that passes is to be taken from the list
    if (is_known && !model.unsupported.empty()) {
      std::cout << "known failure: " << model.name << ": " << model.unsupported << '\n';
    }
  }
}

#define KVC_GROUP_POLICIES                                                                                          \
  Reserve, GrowFirst, (BlockCase<kvc::Paged, 3>), (BlockCase<kvc::Paged, 16>), (BlockCase<kvc::PrefixShared<>, 3>), \
      (BlockCase<kvc::PrefixShared<>, 16>)

TEMPLATE_TEST_CASE("model_layers: every layer gives the model's results over a grouped cache", "[golden][groups]",
                   KVC_GROUP_POLICIES) {
  for (const LayersOfModel& model : all_model_layers()) {
    const std::vector<std::vector<Pos>> ways = {
        {model.length()}, {1}, {1, 7, 2, 13, 3, 1, 5}, {model.prefill, 1, 1, 1, 1, 1, 1, 1}};
    for (std::size_t way = 0; way < ways.size() && !model.layers.empty(); ++way) {
      CAPTURE(model.name, way);
      kvc::KvCache<float, typename TestType::Policy> cache(
          model.groups(), config_for<TestType>(model, *std::ranges::max_element(ways[way])));
      const kvc::SeqId seq = cache.open();
      passes(model, cache, seq, ways[way]);
      cache.verify();
      check_dropped(model, cache, seq);
      cache.close(seq);
      cache.verify();
      CHECK(cache.stats().blocks_referenced == 0);
    }
  }
}

TEMPLATE_TEST_CASE("model_layers: a prefix that is found gives the model's results for the rest", "[golden][groups]",
                   (BlockCase<kvc::PrefixShared<>, 3>), (BlockCase<kvc::PrefixShared<>, 16>)) {
  for (const LayersOfModel& model : all_model_layers()) {
    for (Pos asked = 1; asked <= model.length() && !model.layers.empty(); ++asked) {
      kvc::KvCache<float, typename TestType::Policy> cache(model.groups(), config_for<TestType>(model, model.length()));
      const std::span<const kvc::Token> tokens(model.tokens);
      const kvc::Opened first = cache.open(tokens.first(static_cast<std::size_t>(model.prefill)));
      CHECK(first.cached == 0);
      passes(model, cache, first.seq, {model.prefill, 4, 1, 1});
      Pos last_state = 0;  // at the last whole node of which there are states
      for (const Pos length : cache.policy().state_lengths(first.seq)) {
        last_state = length % 3 == 0 ? length : last_state;
      }
      cache.close(first.seq);

      // The whole of it, its prompt, or any other part: however much is found, the rest is right.
      const kvc::Opened second = cache.open(tokens.first(static_cast<std::size_t>(asked)));
      CAPTURE(model.name, asked, second.cached);
      const bool has_node = model.length() >= cache.policy().block_tokens() && asked > 1;
      if (has_node && (asked == model.length() || asked == model.prefill + 1)) {  // a prompt, or an answer, ended there
        CHECK(second.cached > 0);
        if (!model.is_recurrent()) {
          CHECK(second.cached > asked - 1 - cache.policy().block_tokens());
        }
      }
      if (model.is_recurrent() && asked > last_state && cache.policy().block_tokens() == 3) {
        CHECK(second.cached >= last_state);
      }
      passes(model, cache, second.seq, {5, 1, 2});
      cache.verify();
      check_dropped(model, cache, second.seq);
    }
  }
}
