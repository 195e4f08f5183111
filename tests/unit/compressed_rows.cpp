// Compressed rows: one row for several tokens, in the slots of its tokens.
#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "catch.hpp"
#include "kvc/attention/compressed.hpp"
#include "kvc/attention/decode.hpp"
#include "kvc/attention/selection.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "random_source.hpp"

namespace compressed_rows {
namespace {
using kvc::Index, kvc::LayerGroups, kvc::Pos, kvc::SeqId, kvc::Token;
using kvc_test::contains;

constexpr Index row_dim = 24;
constexpr Index query_heads = 3;

/// Rows of a window, rows that stand for 4 and for 6 tokens, and the state in which a compressor has the beginning of a
/// row.
LayerGroups compressing_model() {
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 8, .window = 5, .latent = true}, 2);
  layers.add({.kv_heads = 1, .key_dim = row_dim, .latent = true, .tokens_per_row = 4}, 3);
  layers.add({.kv_heads = 1, .key_dim = row_dim, .latent = true, .tokens_per_row = 6});
  layers.with_rewind(4);
  return layers;
}

float number(Token token, Index layer, Index i) {
  return static_cast<float>((token * 31 + layer * 7 + i * 13) % 97) / 48.5F - 1.0F;
}
/// The compressed row that ends with tokens[end - 1]: means, as a compressor without weights takes them.
std::vector<float> compressed(const std::vector<Token>& tokens, Pos end, Pos per_row, Index layer) {
  std::vector<float> row(static_cast<std::size_t>(row_dim));
  for (std::size_t i = 0; i < row.size(); ++i) {
    for (Pos p = end - per_row; p < end; ++p) {
      row[i] += number(tokens[static_cast<std::size_t>(p)], layer, static_cast<Index>(i)) / static_cast<float>(per_row);
    }
  }
  return row;
}

/// Extends a sequence to `length` in one pass, and writes what each layer wants.
template <class Cache>
void run(Cache& cache, SeqId seq, const std::vector<Token>& tokens, Pos length) {
  const Pos from = cache.length(seq);
  auto step = cache.extend(
      seq, std::span(tokens).subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(length - from)));
  for (Index layer = 0; layer < cache.layers().layers(); ++layer) {
    const Pos rows = cache.rows_to_write(layer, step);
    const kvc::LayerGroup& group = cache.layers().groups()[static_cast<std::size_t>(cache.layers().place(layer).group)];
    const Pos per_row = group.tokens_per_row;
    const Index dim = group.shape.key_dim * per_row;
    std::vector<float> data;
    for (Pos j = 0; j < rows; ++j) {
      const Pos end = (from / per_row + j + 1) * per_row;
      if (per_row > 1) {
        const auto row = compressed(tokens, end, per_row, layer);
        data.insert(data.end(), row.begin(), row.end());
      } else {
        for (Index i = 0; i < dim; ++i) {
          data.push_back(number(tokens[static_cast<std::size_t>(from + j)], layer, i));
        }
      }
    }
    cache.write(layer, step, {data.data(), rows, dim});
  }
  cache.commit(std::move(step));
}

/// The attention of each of these positions over the compressed rows of a layer that it sees.
template <class Cache>
std::vector<float> attend(const Cache& cache, Index layer, SeqId seq, kvc::PosRange range) {
  const auto views = cache.compressed_views(layer, seq, range);
  std::vector<float> q, out(static_cast<std::size_t>(range.size() * query_heads * row_dim));
  for (Pos p = range.first; p < range.last; ++p) {
    for (Index i = 0; i < query_heads * row_dim; ++i) {
      q.push_back(number(static_cast<Token>(p), 50, i));
    }
  }
  kvc::decode(views, {q.data(), range.size(), query_heads * row_dim},
              {out.data(), range.size(), query_heads * row_dim});
  return out;
}
/// The same of rows in an array of their own.
std::vector<float> attend(const std::vector<Token>& tokens, Pos per_row, Index layer, kvc::PosRange range) {
  std::vector<float> all;
  for (Pos p = range.first; p < range.last; ++p) {
    std::vector<float> rows, q, out(static_cast<std::size_t>(query_heads * row_dim));
    for (Pos j = 1; j <= (p + 1) / per_row; ++j) {
      const auto row = compressed(tokens, j * per_row, per_row, layer);
      rows.insert(rows.end(), row.begin(), row.end());
    }
    for (Index i = 0; i < query_heads * row_dim; ++i) {
      q.push_back(number(static_cast<Token>(p), 50, i));
    }
    const kvc::MatrixRef<const float> matrix(rows.data(), (p + 1) / per_row, row_dim);
    kvc::decode(kvc::DenseView<float>(matrix, matrix, 1), {q.data(), 1, query_heads * row_dim},
                {out.data(), 1, query_heads * row_dim});
    all.insert(all.end(), out.begin(), out.end());
  }
  return all;
}

/// Compares attention of the positions from `from` on.
template <class Cache>
void check(const Cache& cache, SeqId seq, const std::vector<Token>& tokens, Pos from = 0) {
  const Pos length = cache.length(seq);
  for (const auto& [layer, per_row] : {std::pair<Index, Pos>{2, 4}, {4, 4}, {5, 6}}) {
    CAPTURE(layer, length);
    const kvc::PosRange range{from, length};  // the first positions see none
    REQUIRE(attend(cache, layer, seq, range) == attend(tokens, per_row, layer, range));
  }
}

std::vector<Token> made_up(int count, Token first) {
  std::vector<Token> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back((first + i * 17) % 101);
  }
  return tokens;
}

template <class P>
typename P::Config config_of() {
  if constexpr (std::same_as<P, kvc::Contiguous>) {
    return {.sequences = 4, .max_tokens = 200};
  } else {
    return {.blocks = 300, .block_tokens = 3};
  }
}
}  // namespace

TEMPLATE_TEST_CASE("Compressed rows are read as rows of their own, to the bit, however they were written", "[groups]",
                   kvc::Contiguous, kvc::Paged, kvc::PrefixShared<>) {
  kvc::KvCache<float, TestType> cache(compressing_model(), config_of<TestType>());
  kvc_test::Random random(kvc_test::seed_or(kvc_test::any_seed));
  const std::vector<Token> tokens = made_up(150, 3);
  const SeqId seq = cache.open(std::span(tokens).first(100));
  while (cache.length(seq) < 100) {
    run(cache, seq, tokens, std::min(100, cache.length(seq) + random.between(1, random.one_in(2) ? 2 : 30)));
    check(cache, seq, tokens, std::max(0, cache.length(seq) - 8));
  }
  check(cache, seq, tokens);
  SECTION("a fork writes the rest of a row again, and the other one does not see it") {
    const Pos at = random.between(97, 99);
    const SeqId fork = cache.fork(seq, at);
    std::vector<Token> other = tokens;
    for (std::size_t i = static_cast<std::size_t>(at); i < other.size(); ++i) {
      other[i] = (other[i] + 5) % 101;
    }
    run(cache, fork, other, 131);
    run(cache, seq, tokens, 133);
    check(cache, fork, other);
    check(cache, seq, tokens);
  }
  SECTION("a sequence that is cut back") {
    cache.truncate(seq, 99);
    run(cache, seq, tokens, 120);
    check(cache, seq, tokens);
  }
  SECTION("a prompt that begins alike finds whole rows") {
    std::vector<Token> other = tokens;
    other[99] = (other[99] + 5) % 101;
    const auto opened = cache.open(std::span(other).first(130));
    if (opened.cached > 0) {
      CHECK(opened.cached >= 96);
      check(cache, opened.seq, other);
    }
    run(cache, opened.seq, other, 130);
    check(cache, opened.seq, other);
    check(cache, seq, tokens);
  }
  SECTION("a selection of compressed rows") {
    const auto rows = cache.compressed_view(2, seq, 100);
    CHECK(rows.length() == 25);
    const std::vector<Pos> some{3, 4, 17, 24};
    const auto selection = kvc::Selection::of_positions(some);
    std::vector<float> all;
    for (const Pos j : some) {
      const auto row = compressed(tokens, (j + 1) * 4, 4, 2);
      all.insert(all.end(), row.begin(), row.end());
    }
    const std::vector<float> q(static_cast<std::size_t>(row_dim), 0.25F);
    std::vector<float> out(q.size()), same(q.size());
    kvc::decode(kvc::SelectedView(rows, selection), {q.data(), 1, row_dim}, {out.data(), 1, row_dim});
    const kvc::MatrixRef<const float> matrix(all.data(), 4, row_dim);
    kvc::decode(kvc::DenseView<float>(matrix, matrix, 1), {q.data(), 1, row_dim}, {same.data(), 1, row_dim});
    CHECK(out == same);
  }
  cache.verify();
}

TEST_CASE("A block holds whole compressed rows", "[groups]") {
  for (const Pos block_tokens : {1, 3, 16, 64}) {
    const kvc::PrefixShared<> policy({.blocks = 50, .block_tokens = block_tokens}, compressing_model().rules());
    CHECK(policy.block_tokens(1) % 4 == 0);
    CHECK(policy.block_tokens(2) % 6 == 0);
  }
}

TEST_CASE("Compressed rows with keys and values of several heads", "[groups]") {
  LayerGroups layers;
  layers.add({.kv_heads = 2, .key_dim = 16, .value_dim = 8, .tokens_per_row = 2});
  kvc::KvCache<float, kvc::Paged> cache(layers, {.blocks = 10, .block_tokens = 4});
  const SeqId seq = cache.open();
  std::vector<float> k(3 * 32), v(3 * 16), out(2 * 8);
  for (std::size_t i = 0; i < k.size(); ++i) {
    k[i] = static_cast<float>(i % 7) - 3;
    v[i % v.size()] = static_cast<float>(i % 5);
  }
  auto step = cache.extend(seq, 7);  // the seventh token begins a row that is not there yet
  REQUIRE(cache.rows_to_write(0, step) == 3);
  cache.write(0, step, {k.data(), 3, 32}, {v.data(), 3, 16});
  cache.commit(std::move(step));
  CHECK(cache.bytes_per_token() == 2 * (8 + 4) * 4);
  const std::vector<float> q(32, 0.5F);
  kvc::decode(cache.compressed_view(0, seq, 7), {q.data(), 1, 32}, {out.data(), 1, 16});
  std::vector<float> same(16);
  kvc::decode(kvc::DenseView<float>({k.data(), 3, 32}, {v.data(), 3, 16}, 2), {q.data(), 1, 32}, {same.data(), 1, 16});
  CHECK(out == same);
}

TEST_CASE("What compressed rows cannot be is refused", "[groups]") {
  LayerGroups layers;
  CHECK_THROWS_WITH(layers.add({.key_dim = 10, .tokens_per_row = 4}), contains("key_dim is 10"));
  CHECK_THROWS_WITH(layers.add({.key_dim = 8, .value_dim = 6, .tokens_per_row = 4}), contains("value_dim is 6"));
  CHECK_THROWS_WITH(layers.add({.key_dim = 8, .tokens_per_row = 0}), contains("tokens_per_row is 0"));
  CHECK_THROWS_WITH(layers.add({.key_dim = 8, .window = 3, .tokens_per_row = 4}), contains("tokens_per_row is 4"));
  CHECK(layers.layers() == 0);
  layers.add({.kv_heads = 2, .key_dim = 8, .tokens_per_row = 4});
  using kvc::KvCache, kvc::Paged;
  CHECK_THROWS_WITH((KvCache<kvc::Int8, Paged>(layers, {.blocks = 4})), contains("scales"));
  CHECK_THROWS_WITH((KvCache<float, Paged, kvc::TokenMajor>(layers, {.blocks = 4})), contains("slots"));
  KvCache<float, Paged> cache(layers, {.blocks = 4});
  const SeqId seq = cache.open();
  CHECK_THROWS_WITH(cache.view(0, seq), contains("compressed_view"));
  CHECK_THROWS_WITH(cache.compressed_view(0, seq, 1), contains("tokens is 1"));
  CHECK_THROWS_WITH(cache.compressed_views(0, seq, {0, kvc::max_pos}), contains("tokens is 2147483647"));
  KvCache<float, Paged> plain(kvc::Shape{1, 1, 8}, {.blocks = 4});
  CHECK_THROWS_WITH(plain.compressed_view(0, plain.open(), 0), contains("compressed rows"));
}

}  // namespace compressed_rows
