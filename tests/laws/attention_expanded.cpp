// Laws of latent rows in expanded form: prefill_expanded has the bits of prefill over keys and values that were
// expanded beforehand, and agrees with the absorbed form.
#include "kvc/attention/expanded.hpp"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/attention/extern.hpp"
#include "kvc/attention/reference.hpp"
#include "kvc/cache.hpp"
#include "policies.hpp"

using namespace kvc_test;
using kvc::LatentExtents;
using kvc::UpProjections;

namespace {

/// Latent rows stored as T, the up-projections of a layer, and what they make of the rows: keys and values of each
/// head.
template <class T>
struct Latent {
  Index heads;
  LatentExtents extents;
  Matrix<float> rows;  // before they are stored
  Matrix<kvc::StorageOf<T>> stored;
  Matrix<float> w_uk, w_uv, k, v;

  Latent(Index heads_, const LatentExtents& e, Index length, Random& random)
      : heads(heads_),
        extents(e),
        rows(length, e.row_dim),
        stored(length, kvc::Element<T>::row_size(e.row_dim)),
        w_uk(heads * e.projected_key_dim(), e.latent_dim),
        w_uv(heads * e.value_dim, e.latent_dim),
        k(length, heads * e.key_dim),
        v(length, heads * e.value_dim) {
    const float size = 2 / std::sqrt(static_cast<float>(e.latent_dim));
    for (auto [m, most] : {std::pair(&rows, 2.0F), std::pair(&w_uk, size), std::pair(&w_uv, size)}) {
      std::generate_n(m->row(0), m->rows() * m->cols(), [&random, most = most] { return random.uniform(-most, most); });
    }
    for (Index i = 0; i < length; ++i) {
      kvc::Element<T>::encode(rows.row(i), e.row_dim, stored.row(i));
      std::vector<float> row(static_cast<std::size_t>(e.row_dim));
      kvc::Element<T>::decode(stored.row(i), e.row_dim, row.data());
      for (Index h = 0; h < heads; ++h) {  // row by row, so that nothing depends on the others
        projections().expand(h, {row.data(), 1, e.row_dim}, {k.row(i) + h * e.key_dim, 1, e.key_dim},
                             {v.row(i) + h * e.value_dim, 1, e.value_dim});
      }
    }
  }

  UpProjections projections() const { return {w_uk.ref(), w_uv.ref(), heads, extents.row_dim - extents.latent_dim}; }
  Pos length() const { return static_cast<Pos>(rows.rows()); }
  /// The rows as they are stored.
  kvc::DenseView<T> view(Pos length) const {
    const auto all = stored.ref().middle_rows(0, length);
    return {all, all, 1, extents.row_dim, extents.row_dim};
  }
  /// The keys and values of all heads.
  kvc::DenseView<float> expanded(Pos length) const {
    return {k.ref().middle_rows(0, length), v.ref().middle_rows(0, length), heads, extents.key_dim, extents.value_dim};
  }
};

/// The shape of an attention problem, and extents of latent rows that make such keys and values.
LatentExtents extents_for(CaseShape& shape, Random& random) {
  shape.kv_heads *= shape.group;
  shape.group = 1;
  shape.key_dim = std::max<Index>(shape.key_dim, 2);
  const Index rest = random.between(Index{0}, shape.key_dim - 1);
  const Index latent = random.one_in(2) ? random.between(Index{1}, Index{40}) : 64;
  return {latent + rest, latent, shape.key_dim, shape.value_dim};
}

}  // namespace

TEMPLATE_TEST_CASE("Expanded prefill has the bits of prefill over expanded keys and values", "[attention][latent]",
                   KVC_ALL_ELEMENTS) {
  over_cases<float>(1501, [](const Case<float>& original, Random& random) {
    CaseShape shape = original.shape;
    const LatentExtents extents = extents_for(shape, random);
    const Case<float> c(shape, random);
    const Latent<TestType> latent(shape.kv_heads, extents, shape.length, random);
    CAPTURE(shape, extents.row_dim, extents.latent_dim);
    Matrix<float> expected = c.out(), expected_lse(c.q.rows(), shape.query_heads());
    Attend<float>::prefill(latent.expanded(shape.length), shape.queries, c.q.cref(),
                           {expected.ref(), expected_lse.ref()}, c.options());

    Matrix<float> out = c.out(), lse(c.q.rows(), shape.query_heads());
    const CutView<TestType> cut(latent.view(shape.length), random, 50);
    kvc::prefill_expanded(cut, latent.projections(), shape.queries, c.q.cref(), {out.ref(), lse.ref()}, c.options());
    CHECK(same(out, expected));
    CHECK(same(lse, expected_lse));

    Matrix<float> threads = c.out();
    kvc::prefill_expanded(cut, latent.projections(), shape.queries, c.q.cref(), threads.ref(), c.options(),
                          ThreadPerCall{3});
    CHECK(same(threads, expected));

    Matrix<float> o = c.out(), m(c.q.rows(), shape.query_heads()), l(c.q.rows(), shape.query_heads());
    const kvc::AttentionStates states{o.ref(), m.ref(), l.ref()};
    kvc::prefill_expanded(cut, latent.projections(), shape.queries, c.q.cref(), states, c.options());
    Matrix<float> of_states = c.out();
    states.write_output(of_states.ref(), {}, c.sinks);
    CHECK(same(of_states, expected));
  });
}

TEST_CASE("Expanded prefill does not depend on how the queries are chunked", "[attention][latent]") {
  over_cases<float>(1502, [](const Case<float>& original, Random& random) {
    CaseShape shape = original.shape;
    const LatentExtents extents = extents_for(shape, random);
    const Case<float> c(shape, random);
    const Latent<float> latent(shape.kv_heads, extents, shape.length, random);
    Matrix<float> expected = c.out();
    kvc::prefill_expanded(latent.view(shape.length), latent.projections(), shape.queries, c.q.cref(), expected.ref(),
                          c.options());
    Matrix<float> out = c.out();
    for (Index first = 0; first < c.q.rows();) {
      const Index count = std::min(random.between(Index{1}, Index{40}), c.q.rows() - first);
      const Pos position = shape.queries.first + static_cast<Pos>(first);
      const PosRange chunk{position, position + static_cast<Pos>(count)};
      const Pos filled = shape.causal ? std::clamp(chunk.last, 0, shape.length) : shape.length;
      kvc::prefill_expanded(latent.view(filled), latent.projections(), chunk, c.q.cref().middle_rows(first, count),
                            out.ref().middle_rows(first, count), c.options(first, count, 0, shape.query_heads()));
      first += count;
    }
    CHECK(same(out, expected));
  });
}

namespace {

/// The output of the absorbed form: queries through W_uk into the latent, attention, and its results through W_uv.
Matrix<float> absorbed(const Latent<float>& latent, PosRange queries, const Matrix<float>& q,
                       const kvc::AttentionOptions& options) {
  const LatentExtents& e = latent.extents;
  const Index rest = e.row_dim - e.latent_dim, key_rows = e.projected_key_dim();
  Matrix<float> q_absorbed(q.rows(), latent.heads * e.row_dim), of_latent(q.rows(), latent.heads * e.latent_dim),
      out(q.rows(), latent.heads * e.value_dim);
  for (Index i = 0; i < q.rows(); ++i) {
    for (Index h = 0; h < latent.heads; ++h) {
      const float* const from = q.row(i) + h * e.key_dim;
      float* const to = q_absorbed.row(i) + h * e.row_dim;
      for (Index d = 0; d < e.latent_dim; ++d) {
        double sum = 0;
        for (Index n = 0; n < key_rows; ++n) {
          sum += static_cast<double>(from[n]) * static_cast<double>(latent.w_uk(h * key_rows + n, d));
        }
        to[d] = static_cast<float>(sum);
      }
      std::copy_n(from + key_rows, rest, to + e.latent_dim);
    }
  }
  const kvc::DenseView<float> view(
      latent.rows.ref(), MatrixRef<const float>(latent.rows.row(0), latent.rows.rows(), e.latent_dim, e.row_dim), 1,
      e.row_dim, e.latent_dim);
  Attend<float>::prefill(view, queries, q_absorbed.cref(), of_latent.ref(), options);
  for (Index i = 0; i < q.rows(); ++i) {
    for (Index h = 0; h < latent.heads; ++h) {
      for (Index d = 0; d < e.value_dim; ++d) {
        double sum = 0;
        for (Index n = 0; n < e.latent_dim; ++n) {
          sum += static_cast<double>(of_latent(i, h * e.latent_dim + n)) *
                 static_cast<double>(latent.w_uv(h * e.value_dim + d, n));
        }
        out(i, h * e.value_dim + d) = static_cast<float>(sum);
      }
    }
  }
  return out;
}

}  // namespace

TEST_CASE("Absorbed and expanded form agree with each other and with the reference", "[attention][latent]") {
  Random random(seed_or(1503));
  for (const LatentExtents& extents : {LatentExtents{576, 512, 192, 128}, LatentExtents{40, 32, 24, 16}}) {
    const Pos length = extents.row_dim > 100 ? 700 : 1400;
    const Latent<float> latent(3, extents, length, random);
    const PosRange queries{length - 70, length};
    const Index columns = latent.heads * extents.value_dim;
    Matrix<float> q(queries.size(), latent.heads * extents.key_dim), expanded(q.rows(), columns),
        exact(q.rows(), columns);
    std::generate_n(q.row(0), q.rows() * q.cols(), [&] { return random.uniform(-2, 2); });
    const kvc::AttentionOptions options{.scale = 1 / std::sqrt(static_cast<float>(extents.key_dim)), .window = 600};
    kvc::prefill_expanded(latent.view(length), latent.projections(), queries, q.cref(), expanded.ref(), options);
    kvc::reference(latent.expanded(length), queries, q.cref(), exact.ref(), options);
    const Matrix<float> other = absorbed(latent, queries, q, options);
    float largest = 0, error = 0, other_error = 0;
    for (Index i = 0; i < length * columns; ++i) {
      largest = std::max(largest, std::abs(latent.v.row(0)[i]));
    }
    for (Index i = 0; i < q.rows() * columns; ++i) {
      error = std::max(error, std::abs(expanded.row(0)[i] - exact.row(0)[i]));
      other_error = std::max(other_error, std::abs(other.row(0)[i] - exact.row(0)[i]));
    }
    CAPTURE(extents.row_dim);
    CHECK(error <= 2e-6F * largest);
    CHECK(other_error <= 5e-6F * largest);
  }
}

TEMPLATE_TEST_CASE("Both forms have the same bits over any policy and in passes of any size", "[attention][latent]",
                   Reserve, GrowFirst, (BlockCase<kvc::Paged, 3>), (BlockCase<kvc::Paged, 16>),
                   (BlockCase<kvc::PrefixShared<>, 5>)) {
  Random random(seed_or(1504));
  const LatentExtents extents{40, 32, 24, 16};
  const Pos length = 600;
  const Latent<Eigen::bfloat16> latent(4, extents, length, random);
  Matrix<float> q(length, latent.heads * extents.key_dim), q_absorbed(length, latent.heads * extents.row_dim);
  for (Matrix<float>* m : {&q, &q_absorbed}) {
    std::generate_n(m->row(0), m->rows() * m->cols(), [&] { return random.uniform(-2, 2); });
  }
  Matrix<float> expected(length, latent.heads * extents.value_dim), expected_absorbed(length, latent.heads * 32);
  const kvc::DenseView<Eigen::bfloat16> dense(
      latent.stored.ref(),
      MatrixRef<const Eigen::bfloat16>(latent.stored.row(0), length, extents.latent_dim, extents.row_dim), 1,
      extents.row_dim, extents.latent_dim);
  kvc::prefill_expanded(dense, latent.projections(), {0, length}, q.cref(), expected.ref());
  Attend<Eigen::bfloat16>::prefill(dense, {0, length}, q_absorbed.cref(), expected_absorbed.ref());

  kvc::LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = extents.row_dim, .value_dim = extents.latent_dim, .latent = true});
  kvc::KvCache<Eigen::bfloat16, typename TestType::Policy> cache(layers, TestType::config(2 * length, 2, length));
  const kvc::SeqId seq = cache.open();
  Matrix<float> out(length, expected.cols()), out_absorbed(length, expected_absorbed.cols());
  std::vector<kvc::Token> tokens(static_cast<std::size_t>(length));
  std::generate(tokens.begin(), tokens.end(), [&] { return random.between(0, 1000); });
  while (cache.length(seq) < length) {
    const Pos first = cache.length(seq), count = std::min(random.between(1, 200), length - first);
    auto step =
        cache.extend(seq, std::span(tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)));
    cache.write(0, step, latent.rows.ref().middle_rows(first, count));
    kvc::prefill_expanded(cache.view(0, seq), latent.projections(), step.range(), q.cref().middle_rows(first, count),
                          out.ref().middle_rows(first, count));
    Attend<Eigen::bfloat16>::prefill(cache.view(0, seq), step.range(), q_absorbed.cref().middle_rows(first, count),
                                     out_absorbed.ref().middle_rows(first, count));
    cache.commit(std::move(step));
  }
  CHECK(same(out, expected));
  CHECK(same(out_absorbed, expected_absorbed));
}

TEST_CASE("A batch of expanded prefill gives each row the bits of a call for its sequence alone",
          "[attention][latent]") {
  Random random(seed_or(1505));
  const LatentExtents extents{20, 16, 12, 8};
  const Latent<float> latent(3, extents, 1100, random);
  const std::vector<PosRange> queries{{30, 40}, {0, 0}, {1099, 1100}, {0, 600}, {7, 9}};  // one sequence has no rows
  const std::vector<Pos> lengths{40, 5, 1100, 600, 9};
  std::vector<kvc::DenseView<float>> views;
  std::vector<std::int32_t> indptr{0};
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    views.push_back(latent.view(lengths[b]));
    indptr.push_back(indptr.back() + queries[b].size());
  }
  const Index rows = indptr.back();
  Matrix<float> q(rows, latent.heads * extents.key_dim);
  std::generate_n(q.row(0), q.rows() * q.cols(), [&] { return random.uniform(-2, 2); });
  std::vector<float> bias(static_cast<std::size_t>(rows * 1100));
  std::ranges::generate(bias, [&] { return random.uniform(); });
  const std::vector<float> sinks{0.5F, -1, 2};
  for (const Pos window : {0, 70}) {
    const kvc::AttentionOptions options{.window = window, .softcap = 20, .sinks = sinks};
    Matrix<float> expected(rows, latent.heads * extents.value_dim), expected_lse(rows, latent.heads);
    kvc::AttentionOptions masked = options;
    masked.mask = kvc::AttentionMask::additive(bias.data(), 1, rows, 1100);
    for (std::size_t b = 0; b < views.size(); ++b) {
      kvc::AttentionOptions alone = options;
      alone.mask = masked.mask.part(0, indptr[b], queries[b].size());
      kvc::prefill_expanded(views[b], latent.projections(), queries[b],
                            q.cref().middle_rows(indptr[b], queries[b].size()),
                            {expected.ref().middle_rows(indptr[b], queries[b].size()),
                             expected_lse.ref().middle_rows(indptr[b], queries[b].size())},
                            alone);
    }
    Matrix<float> out(rows, expected.cols()), lse(rows, latent.heads), last(rows, expected.cols());
    kvc::prefill_expanded(views, latent.projections(), queries, q.cref(), {out.ref(), lse.ref()}, masked,
                          ThreadPerCall{2});
    CHECK(same(out, expected));
    CHECK(same(lse, expected_lse));
    kvc::prefill_expanded(views, latent.projections(), indptr, q.cref(), last.ref(), masked);
    CHECK(same(last, expected));
  }

  // Nothing is written if one sequence does not fit.
  std::vector<float> untouched(static_cast<std::size_t>(rows * latent.heads * extents.value_dim), 7);
  const MatrixRef<float> to(untouched.data(), rows, latent.heads * extents.value_dim);
  views.back() = latent.expanded(9);
  CHECK_THROWS_WITH(kvc::prefill_expanded(views, latent.projections(), queries, q.cref(), to),
                    contains("kv_heads is 3, must be 1"));
  views.pop_back();
  CHECK_THROWS_WITH(kvc::prefill_expanded(views, latent.projections(), queries, q.cref(), to),
                    contains("queries.size() is 5, must be the number of views, 4"));
  CHECK(std::ranges::count(untouched, 7) == std::ssize(untouched));
}

TEST_CASE("Projections come from one matrix of both, as from two", "[attention][latent]") {
  Random random(1);
  const LatentExtents extents{7, 5, 6, 3};
  const Latent<float> latent(2, extents, 4, random);
  Matrix<float> both(2 * (4 + 3), 5);
  for (Index h = 0; h < 2; ++h) {
    std::copy_n(latent.w_uk.row(h * 4), 4 * 5, both.row(h * 7));
    std::copy_n(latent.w_uv.row(h * 3), 3 * 5, both.row(h * 7 + 4));
  }
  const UpProjections projections = UpProjections::of_kv_b(both.ref(), 2, 4, 2);
  CHECK(projections.extents() == extents);
  CHECK(projections.extents().projection_size() == 5 * (4 + 3));
  for (Index h = 0; h < 2; ++h) {
    Matrix<float> k(4, 6), v(4, 3);
    projections.expand(h, latent.rows.ref(), k.ref(), v.ref());
    for (Index i = 0; i < 4; ++i) {
      CHECK(same_row(k.row(i), latent.k.row(i) + h * 6, 6));
      CHECK(same_row(v.row(i), latent.v.row(i) + h * 3, 3));
    }
  }
}

TEST_CASE("Expanded prefill names the argument that does not fit", "[attention][latent]") {
  Random random(1);
  const Latent<float> latent(2, {7, 5, 6, 3}, 4, random);
  Matrix<float> q(2, 12), out(2, 6);
  const auto call = [&](const kvc::DenseView<float>& view, PosRange queries, MatrixRef<const float> queries_of,
                        MatrixRef<float> to) {
    kvc::prefill_expanded(view, latent.projections(), queries, queries_of, to);
  };
  CHECK_NOTHROW(call(latent.view(4), {2, 4}, q.cref(), out.ref()));
  CHECK_THROWS_WITH(call(latent.expanded(4), {2, 4}, q.cref(), out.ref()), contains("kv_heads is 2, must be 1"));
  CHECK_THROWS_WITH(call(latent.view(4), {1, 4}, q.cref(), out.ref()), contains("queries is"));
  CHECK_THROWS_WITH(call(latent.view(4), {2, 4}, {q.row(0), 2, 10, 12}, out.ref()), contains("q is [2, 10]"));
  CHECK_THROWS_WITH(call(latent.view(4), {2, 4}, q.cref(), {out.row(0), 2, 5, 6}), contains("out is [2, 5]"));
  CHECK_THROWS_WITH(UpProjections(latent.w_uk.ref(), latent.w_uv.ref().middle_rows(0, 3), 2, 2),
                    contains("rows of w_uv is 3, must be a positive multiple of heads"));
}

TEST_CASE("Expansion pays for many query rows", "[attention][latent]") {
  constexpr LatentExtents deepseek{576, 512, 192, 128};
  CHECK(kvc::expansion_pays(deepseek, 1000, 1000));
  CHECK(kvc::expansion_pays(deepseek, 2048, 32768));
  CHECK_FALSE(kvc::expansion_pays(deepseek, 1, 32768));
  for (const Index keys : {512, 4096, 65536}) {  // from some number of rows on it does
    bool pays = false;
    for (Index rows = 1; rows <= keys; rows += 7) {
      const bool now = kvc::expansion_pays(deepseek, rows, keys);
      CHECK((now || !pays));
      pays = now;
    }
    CHECK(pays);
  }
}
