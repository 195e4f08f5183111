// Laws of layer groups: attention over a cache that drops rows has the bits of attention over one that keeps them all,
// under the same options, however the rows came and whatever is still stored; and a query that would see a row that is
// gone is an error.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "policies.hpp"

using namespace kvc_test;

namespace {

using Tokens = std::vector<kvc::Token>;
using Ungrouped = kvc::KvCache<float, kvc::Paged>;

/// A layer of the model; its rows are those of `owner`, which is the layer itself unless it reads another one's.
struct Layer {
  kvc::LayerKind kind;
  Index query_heads = 1;
  Index owner = 0;
  float softcap = 0;
  std::vector<float> sinks;

  kvc::AttentionOptions options() const {
    return {.causal = kind.cross_rows == 0,
            .window = kind.window,
            .chunk = kind.chunk,
            .kept = kind.kept,
            .softcap = softcap,
            .sinks = sinks};
  }
};

kvc::LayerKind random_kind(Random& random, bool may_cross) {
  constexpr Pos windows[] = {1, 2, 3, 4, 5, 8, 16, 17, 40};
  kvc::LayerKind kind{.kv_heads = random.between(1, 2), .key_dim = random.between(1, 3) * 4};
  kind.value_dim = random.one_in(3) ? 4 : kind.key_dim;
  if (may_cross && random.one_in(4)) {
    kind.cross_rows = random.between(1, 20);
    return kind;
  }
  kind.window = random.one_in(2) ? windows[random.between(0, 8)] : 0;
  kind.chunk = random.one_in(4) ? windows[random.between(0, 8)] : 0;
  if (kind.window + kind.chunk > 0 && random.one_in(3)) {
    kind.kept = random.between(1, 9);
  }
  kind.latent = random.one_in(4);
  return kind;
}

/// The first layer is one of the sequence's own tokens.
std::vector<Layer> random_layers(Random& random) {
  const bool may_cross = random.one_in(5);
  std::vector<Layer> layers;
  for (int i = random.between(1, 4); i > 0; --i) {
    Layer layer;
    layer.owner = static_cast<Index>(layers.size());
    layer.kind = layers.empty() ? random_kind(random, false) : random_kind(random, may_cross);
    if (!layers.empty() && random.one_in(4)) {
      layer.owner = layers[static_cast<std::size_t>(random.between(0, static_cast<int>(layers.size()) - 1))].owner;
      layer.kind = layers[static_cast<std::size_t>(layer.owner)].kind;
    }
    layer.query_heads = layer.kind.kv_heads * random.between(1, 3);
    layer.softcap = random.one_in(4) ? random.uniform(1, 5) : 0;
    if (random.one_in(3)) {
      layer.sinks.resize(static_cast<std::size_t>(layer.query_heads));
      std::ranges::generate(layer.sinks, [&] { return random.uniform(-2, 2); });
    }
    layers.push_back(layer);
  }
  return layers;
}

kvc::LayerGroups groups_of(const std::vector<Layer>& layers, Pos rewind) {
  kvc::LayerGroups groups;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layers[i].owner == static_cast<Index>(i) ? groups.add(layers[i].kind) : groups.add_reader_of(layers[i].owner);
  }
  groups.with_rewind(rewind);
  return groups;
}

/// Mixes bits: numbers that depend on all tokens up to a position, as the rows of a model do.
std::uint64_t mixed(std::uint64_t x, std::uint64_t y) {
  x = (x ^ y) * 0x9e37'79b9'7f4a'7c15U;
  return (x ^ (x >> 29U)) * 0xbf58'476d'1ce4'e5b9U + 1;
}

enum class Row : std::uint64_t { query, key, value };

/// Rows of one kind at positions [first, first + rows.rows()) of a sequence.
void fill(Matrix<float>& rows, const Tokens& tokens, Pos first, Row row, Index layer) {
  std::uint64_t prefix = mixed(static_cast<std::uint64_t>(row), static_cast<std::uint64_t>(layer));
  for (Pos p = 0; p < first + static_cast<Pos>(rows.rows()); ++p) {
    prefix = mixed(prefix, static_cast<std::uint64_t>(tokens[static_cast<std::size_t>(p)]));
    for (Index i = 0; p >= first && i < rows.cols(); ++i) {
      rows(p - first, i) = static_cast<float>(mixed(prefix, static_cast<std::uint64_t>(i)) >> 40U) * 0x1p-22F - 2;
    }
  }
}

/// Keys and values of a layer at positions [first, first + k.rows()).
void fill(Matrix<float>& k, Matrix<float>& v, const Tokens& tokens, Pos first, const kvc::LayerKind& kind,
          Index layer) {
  fill(k, tokens, first, Row::key, layer);
  if (!kind.latent) {
    fill(v, tokens, first, Row::value, layer);
    return;
  }
  for (Index i = 0; i < k.rows(); ++i) {
    for (Index h = 0; h < kind.kv_heads; ++h) {  // the value is the beginning of the key
      std::copy_n(k.row(i) + h * kind.key_dim, kind.value_dim, v.row(i) + h * kind.value_dim);
    }
  }
}

struct Sequence {
  kvc::SeqId seq;
  Tokens tokens;       // of committed positions
  Tokens other_input;  // of cross attention
  Pos found = 0;       // tokens that were in place when it was opened
  Pos longest = 0;     // the most tokens that it ever had
};

template <class C>
class World {
 public:
  using Cache = kvc::KvCache<float, typename C::Policy>;

  explicit World(Random& random)
      : random_(random),
        layers_(random_layers(random)),
        rewind_(random.one_in(2) ? random.between(1, 6) : 0),
        cache_(groups_of(layers_, rewind_), C::config(random.between(Pos{80}, Pos{600}), 6, 90)) {}

  /// A random operation; every result of attention is checked.
  void step() {
    if (sequences_.empty() || (sequences_.size() < 4 && random_.one_in(6))) {
      open();
      return;
    }
    const auto chosen = static_cast<std::size_t>(random_.between(0, static_cast<int>(sequences_.size()) - 1));
    Sequence& s = sequences_[chosen];
    if (random_.one_in(12) || s.tokens.size() > 80) {
      cache_.close(s.seq);
      sequences_.erase(sequences_.begin() + static_cast<std::ptrdiff_t>(chosen));
    } else if (random_.one_in(8)) {
      go_back(s);
    } else if (random_.one_in(6)) {
      decode_all();
    } else {
      Tokens tokens(static_cast<std::size_t>(random_.one_in(2) ? random_.between(1, 3) : random_.between(1, 30)));
      std::ranges::generate(tokens, [&] { return random_.between(0, 1); });
      extend(s, tokens);
    }
  }
  /// The stored and the missing rows agree with attention and gather.
  void check_stored() {
    for (const Sequence& s : sequences_) {
      for (Index layer = 0; layer < std::ssize(layers_); ++layer) {
        check_stored(s, layer);
      }
    }
    cache_.verify();
  }

 private:
  const Layer& layer_at(Index layer) const { return layers_[static_cast<std::size_t>(layer)]; }

  void open() {
    Sequence s;
    if (random_.one_in(2) && !prompts_.empty()) {  // an old prompt, or a part of one
      s.tokens = prompts_[static_cast<std::size_t>(random_.between(0, static_cast<int>(prompts_.size()) - 1))];
      s.tokens.resize(static_cast<std::size_t>(random_.between(0, static_cast<int>(s.tokens.size()))));
    }
    for (int i = random_.between(0, 12); i > 0; --i) {
      s.tokens.push_back(random_.between(0, 1));
    }
    const int input = random_.between(0, 2);  // which a salt names, or nobody
    s.other_input.assign(20, input);
    const bool is_named = !random_.one_in(4);
    const auto opened = cache_.try_open(
        s.tokens, {.salt = is_named ? kvc::Salt(kvc::SaltKind::multimodal, std::to_string(input)) : kvc::Salt()});
    if (!opened) {
      return;
    }
    s.seq = opened->seq;
    const Tokens prompt = s.tokens;
    s.tokens.resize(static_cast<std::size_t>(opened->cached));
    s.found = s.longest = opened->cached;
    sequences_.push_back(s);
    hits += opened->cached > 0 ? 1 : 0;
    for (auto done = s.tokens.size(); done < prompt.size();) {
      const auto count = std::min(prompt.size() - done, static_cast<std::size_t>(random_.between(1, 20)));
      if (!extend(sequences_.back(), std::span(prompt).subspan(done, count))) {
        break;
      }
      done += count;
    }
  }

  bool extend(Sequence& s, std::span<const kvc::Token> tokens) {
    auto append = cache_.try_extend(s.seq, tokens);
    if (!append) {
      return false;
    }
    Tokens all = s.tokens;
    all.insert(all.end(), tokens.begin(), tokens.end());
    const PosRange range = append->range();
    const bool writes_first = random_.one_in(2);
    for (Index layer = 0; writes_first && layer < std::ssize(layers_); ++layer) {
      write(layer, s, all, *append);
    }
    for (Index layer = 0; layer < std::ssize(layers_); ++layer) {
      if (!writes_first) {
        write(layer, s, all, *append);
      }
      const Matrix<float> expected = ungrouped(layer, s, all, range, layer_at(layer).options());
      CHECK(same(attend(layer, s, all, range, layer_at(layer).options()), expected));
    }
    if (random_.one_in(8)) {
      return true;  // rolled back
    }
    cache_.commit(std::move(*append));
    s.tokens = all;
    s.longest = std::max(s.longest, range.last);
    prompts_.push_back(all);
    return true;
  }
  /// Cuts a sequence back, or forks it, as far back as all groups allow. Further they refuse, but for the beginning.
  void go_back(Sequence& s) {
    const auto length = static_cast<Pos>(s.tokens.size());
    Pos from = 0;
    for (Index group = 0; group < std::ssize(cache_.layers().groups()); ++group) {
      const Pos group_from = cache_.policy().retained_from(s.seq, group);
      CHECK(group_from <= std::max({s.longest - rewind_, s.found, 0}));
      from = std::max(from, group_from);
      if (group_from > 1 && cache_.layers().groups()[static_cast<std::size_t>(group)].retained.kept == 0) {
        CHECK_THROWS_AS(cache_.truncate(s.seq, group_from - 1), std::invalid_argument);
        CHECK_THROWS_AS(cache_.try_fork(s.seq, group_from - 1), std::invalid_argument);
      }
    }
    const Pos to = random_.between(std::min(from, length), length);
    const auto tokens = s.tokens.begin() + to;
    if (sequences_.size() < 4 && random_.one_in(2)) {
      if (const auto seq = cache_.try_fork(s.seq, to)) {
        Sequence forked = s;
        forked.seq = *seq;
        forked.tokens.assign(s.tokens.begin(), tokens);
        sequences_.push_back(forked);
      }
    } else {
      cache_.truncate(s.seq, to);
      s.tokens.erase(tokens, s.tokens.end());
    }
  }
  /// One token for every sequence, in one call of decode for each layer.
  void decode_all() {
    std::vector<typename Cache::Append> appends;
    std::vector<Sequence*> running;
    for (Sequence& s : sequences_) {
      const Tokens token = {random_.between(0, 1)};
      if (auto append = cache_.try_extend(s.seq, token)) {
        appends.push_back(std::move(*append));
        s.tokens.push_back(token[0]);
        s.longest = std::max(s.longest, static_cast<Pos>(s.tokens.size()));
        running.push_back(&s);
      }
    }
    for (Index number = 0; number < std::ssize(layers_) && !running.empty(); ++number) {
      const Layer& layer = layer_at(number);
      const Index cols = layer.query_heads * layer.kind.key_dim;
      Matrix<float> q(std::ssize(running), cols), out(std::ssize(running), layer.query_heads * value_dim(layer));
      std::vector<AnyView<float>> views;
      for (std::size_t i = 0; i < running.size(); ++i) {
        const Sequence& s = *running[i];
        write(number, s, s.tokens, appends[i]);
        views.emplace_back(cache_.view(number, s.seq));
        Matrix<float> row(1, cols);
        fill(row, s.tokens, static_cast<Pos>(s.tokens.size()) - 1, Row::query, number);
        std::copy_n(row.row(0), cols, q.row(static_cast<Index>(i)));
      }
      Attend<float>::decode(std::span<const AnyView<float>>(views), q.cref(), out.ref(), layer.options());
      for (std::size_t i = 0; i < running.size(); ++i) {
        const auto last = static_cast<Pos>(running[i]->tokens.size());
        const Matrix<float> expected =
            ungrouped(number, *running[i], running[i]->tokens, {last - 1, last}, layer.options());
        CHECK(same_row(out.row(static_cast<Index>(i)), expected.row(0), out.cols()));
      }
    }
    for (auto& append : appends) {
      cache_.commit(std::move(append));
    }
  }

  static Index value_dim(const Layer& layer) { return layer.kind.value_dim; }

  /// The rows of a layer for an append: of its own tokens, or of the other input.
  void write(Index number, const Sequence& s, const Tokens& tokens, const typename Cache::Append& append) {
    const Layer& layer = layer_at(number);
    if (layer.owner != number) {
      CHECK(cache_.rows_to_write(number, append) == 0);
      return;
    }
    const bool is_cross = layer.kind.cross_rows > 0;
    const Pos first = is_cross ? 0 : append.range().first;
    const Pos rows = cache_.rows_to_write(number, append);
    CHECK((rows == append.size() || (is_cross && (rows == 0 || rows == layer.kind.cross_rows))));
    Matrix<float> k(rows, layer.kind.kv_heads * layer.kind.key_dim), v(rows, layer.kind.kv_heads * value_dim(layer));
    fill(k, v, is_cross ? s.other_input : tokens, first, layer.kind, number);
    if (layer.kind.latent) {
      cache_.write(number, append, k.cref());
    } else {
      cache_.write(number, append, k.cref(), v.cref());
    }
  }

  Matrix<float> queries(Index number, const Tokens& tokens, PosRange range) const {
    Matrix<float> q(range.size(), layer_at(number).query_heads * layer_at(number).kind.key_dim);
    fill(q, tokens, range.first, Row::query, number);
    return q;
  }
  Matrix<float> attend(Index number, const Sequence& s, const Tokens& tokens, PosRange range,
                       const kvc::AttentionOptions& options) const {
    const Layer& layer = layer_at(number);
    Matrix<float> out(range.size(), layer.query_heads * value_dim(layer));
    Attend<float>::prefill(cache_.view(number, s.seq), range, queries(number, tokens, range).cref(), out.ref(),
                           options);
    return out;
  }
  /// The same over a cache of one shape, which keeps all rows.
  Matrix<float> ungrouped(Index number, const Sequence& s, const Tokens& tokens, PosRange range,
                          const kvc::AttentionOptions& options) const {
    const Layer& layer = layer_at(number);
    const Tokens& input = layer.kind.cross_rows > 0 ? s.other_input : tokens;
    const Pos rows = layer.kind.cross_rows > 0 ? layer.kind.cross_rows : static_cast<Pos>(tokens.size());
    Ungrouped cache({.layers = 1,
                     .kv_heads = layer.kind.kv_heads,
                     .key_dim = layer.kind.key_dim,
                     .value_dim = layer.kind.value_dim},
                    {.blocks = 40, .block_tokens = 5});
    const kvc::SeqId seq = cache.open();
    auto append = cache.extend(seq, rows);
    Matrix<float> k(rows, layer.kind.kv_heads * layer.kind.key_dim), v(rows, layer.kind.kv_heads * value_dim(layer));
    fill(k, v, input, 0, layer.kind, layer.owner);
    cache.write(0, append, k.cref(), v.cref());
    Matrix<float> out(range.size(), layer.query_heads * value_dim(layer));
    Attend<float>::prefill(cache.view(0, seq), range, queries(number, tokens, range).cref(), out.ref(), options);
    return out;
  }

  void check_stored(const Sequence& s, Index number) {
    const Layer& layer = layer_at(number);
    const auto view = cache_.view(number, s.seq);
    std::set<Pos> stored;
    view.for_each_run(0, {0, view.length()}, [&](const auto& run) {
      for (Index i = 0; i < run.rows; ++i) {
        stored.insert(static_cast<Pos>(run.first + i));
      }
    });
    const auto length = static_cast<Pos>(s.tokens.size());
    if (layer.kind.cross_rows > 0) {
      CHECK((std::ssize(stored) == layer.kind.cross_rows || (length == 0 && stored.empty())));
      return;
    }
    CAPTURE(number, layer.kind.window, layer.kind.chunk, layer.kind.kept, length, rewind_);

    // Some rows at the end, under the options of the layer or others.
    if (length > 0) {
      const Pos last = random_.one_in(2) ? length : random_.between(1, length);
      const PosRange range{std::max(0, last - random_.between(1, 3)), last};
      kvc::AttentionOptions options = layer.options();
      if (random_.one_in(2)) {
        options.window = random_.one_in(3) ? 0 : random_.between(1, 20);
        options.chunk = random_.one_in(2) ? 0 : random_.between(1, 20);
        options.kept = random_.one_in(2) ? 0 : random_.between(1, 10);
      }
      std::optional<Pos> missing;
      for (Pos p = range.first; p < range.last; ++p) {
        for (Pos j = 0; j <= p; ++j) {
          const bool in_window = options.window == 0 || p - j < options.window;
          const bool in_chunk = options.chunk == 0 || j >= p / options.chunk * options.chunk;
          if ((j < options.kept || (in_window && in_chunk)) && stored.count(j) == 0) {
            missing = std::min(missing.value_or(j), j);
          }
        }
      }
      CAPTURE(range, options.window, options.chunk, options.kept);
      if (missing) {
        CHECK_THROWS_AS(attend(number, s, s.tokens, range, options), std::invalid_argument);
        CHECK_THROWS_WITH(attend(number, s, s.tokens, range, options),
                          contains("position " + std::to_string(*missing) + " of sequence 0 is not retained"));
        ++errors;
      } else {
        CHECK(same(attend(number, s, s.tokens, range, options), ungrouped(number, s, s.tokens, range, options)));
      }
    }

    // The rows themselves.
    const Pos first = random_.between(0, length);
    const PosRange range{first, random_.between(first, std::min(length, first + 8))};
    Matrix<float> k(range.size(), layer.kind.kv_heads * layer.kind.key_dim), expected_k(k.rows(), k.cols());
    Matrix<float> v(range.size(), layer.kind.kv_heads * value_dim(layer)), expected_v(v.rows(), v.cols());
    const auto gather = [&] { cache_.gather(number, s.seq, range, k.ref(), v.ref()); };
    bool has_all = true;
    for (Pos p = range.first; p < range.last; ++p) {
      has_all = has_all && stored.count(p) == 1;
    }
    if (!has_all) {
      CHECK_THROWS_AS(gather(), std::invalid_argument);
      return;
    }
    gather();
    fill(expected_k, expected_v, s.tokens, range.first, layer.kind, layer.owner);
    CHECK(same(k, expected_k));
    CHECK(same(v, expected_v));
  }

 public:
  int hits = 0;
  int errors = 0;

 private:
  Random& random_;
  std::vector<Layer> layers_;
  Pos rewind_;
  Cache cache_;
  std::vector<Sequence> sequences_;
  std::vector<Tokens> prompts_;
};

/// Contiguous with rings of few slots: a window and a short pass.
template <class C>
struct Rings : C {
  static kvc::Contiguous::Config config(Pos tokens, Index sequences, Pos max_tokens) {
    auto config = C::config(tokens, sequences, max_tokens);
    config.pass_tokens = 9;
    return config;
  }
};

}  // namespace

#define KVC_GROUP_POLICIES                                                                                       \
  kvc_test::Reserve, kvc_test::GrowFirst, Rings<kvc_test::Reserve>, Rings<kvc_test::GrowBest>, kvc_test::Paged1, \
      kvc_test::Paged4, kvc_test::Paged7, kvc_test::Prefix1, kvc_test::Prefix4, kvc_test::Prefix7,               \
      kvc_test::PrefixMru, kvc_test::Colliding4

TEMPLATE_TEST_CASE("Attention over layer groups has the bits of attention over all rows, or is an error",
                   "[attention][groups]", KVC_GROUP_POLICIES) {
  const std::uint64_t seed = seed_or(77);
  Random random(seed);
  int hits = 0;
  int errors = 0;
  for (int i = 0; i < cases_or(24); ++i) {
    CAPTURE(seed, i);
    World<TestType> world(random);
    for (int step = 0; step < 60; ++step) {
      world.step();
      world.check_stored();
    }
    hits += world.hits;
    errors += world.errors;
  }
  CHECK((hits > 0) == TestType::shares);
  CHECK(errors > 0);
}

TEST_CASE("A layer with a window is asked with its window, and gathered where it has rows", "[attention][groups]") {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 4, .window = 6});
  layers.add({.kv_heads = 1, .key_dim = 4});
  kvc::KvCache<float, kvc::Paged> cache(layers, {.blocks = 16, .block_tokens = 4});
  const kvc::SeqId seq = cache.open();
  Matrix<float> rows(21, 4), out(1, 4);
  Random random(1);
  std::generate_n(rows.row(0), 84, [&] { return random.uniform(-1, 1); });
  const auto extend = [&](Pos count) {
    auto append = cache.extend(seq, count);
    const auto own = rows.cref().middle_rows(append.range().first, count);
    cache.write(0, append, own, own);
    cache.write(1, append, own, own);
    return append;
  };
  cache.commit(extend(20));
  const auto append = extend(1);  // sees what it would see in any pass: positions 15 to 20
  const auto q = rows.cref().middle_rows(20, 1);
  const auto decode = [&](Index layer, Pos window) {
    Attend<float>::decode(cache.view(layer, seq), q, out.ref(), {.window = window});
  };
  decode(0, 6);
  decode(0, 5);
  CHECK_THROWS_WITH(decode(0, 7), contains("position 14 of sequence 0 is not retained"));
  CHECK_THROWS_WITH(decode(0, 0), contains("position 0 of sequence 0 is not retained"));
  CHECK_THROWS_AS(decode(0, 0), std::invalid_argument);
  decode(1, 0);

  const auto gather = [&](Index layer, PosRange range) {
    Matrix<float> k(range.size(), 4), v(range.size(), 4);
    cache.gather(layer, seq, range, k.ref(), v.ref());
    return same_row(k.row(0), rows.row(range.first), 4 * k.rows()) && same(k, v);
  };
  CHECK(gather(0, {15, 21}));
  CHECK(gather(1, {0, 21}));
  CHECK_THROWS_AS(gather(0, {14, 21}), std::invalid_argument);
  CHECK_THROWS_WITH(gather(0, {0, 15}), contains("range") && contains("retained by the layer's group"));
}
