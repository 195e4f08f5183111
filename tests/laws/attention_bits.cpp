// Law: from the same keys and values, the output of a query row is the same bits, however the call around it looks.
#include <algorithm>
#include <span>
#include <vector>

#include "attention_case.hpp"
#include "catch.hpp"

using namespace kvc_test;

TEMPLATE_TEST_CASE("Attention does not depend on how the view is cut into runs", "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(101, [](const Case<TestType>& c, Random& random) {
    const Matrix<float> expected = whole(c);
    for (const Pos longest : {1, 7, 100}) {
      Matrix<float> out = c.out();
      const CutView<TestType> cut(c.view(), random, longest);
      Attend<TestType>::prefill(cut, c.shape.queries, c.q.cref(), out.ref(), c.options());
      CHECK(same(out, expected));
    }
  });
}

TEMPLATE_TEST_CASE("Attention does not depend on how the queries are chunked", "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(102, [](const Case<TestType>& c, Random& random) {
    const Matrix<float> expected = whole(c);
    Matrix<float> out = c.out();
    const Index rows = c.q.rows();
    for (Index first = 0; first < rows;) {
      const Index count = std::min(random.between(Index{1}, Index{40}), rows - first);
      const Pos position = c.shape.queries.first + static_cast<Pos>(first);
      const PosRange chunk{position, position + static_cast<Pos>(count)};
      // A cache that is being filled holds no more than the chunk; causality hides the rest anyway.
      const Pos filled = c.shape.causal ? std::clamp(chunk.last, 0, c.shape.length) : c.shape.length;
      Attend<TestType>::prefill(c.view(filled), chunk, c.q.cref().middle_rows(first, count),
                                out.ref().middle_rows(first, count), c.options(first, count, 0, c.shape.query_heads()));
      first += count;
    }
    CHECK(same(out, expected));
  });
}

TEMPLATE_TEST_CASE("Decode gives the bits of prefill, alone and in a batch", "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(103, [](const Case<TestType>& original, Random& random) {
    CaseShape shape = appending(original.shape);
    shape.causal = true;
    const Case<TestType> c(shape, random);
    const Matrix<float> expected = whole(c);
    const Index rows = c.q.rows();

    std::vector<AnyView<TestType>> views;  // what the sequence was when each row was its newest
    for (Index i = 0; i < rows; ++i) {
      views.push_back(c.view(shape.queries.first + static_cast<Pos>(i) + 1));
    }
    Matrix<float> alone = c.out();
    for (Index i = 0; i < rows; ++i) {
      Attend<TestType>::decode(views[static_cast<std::size_t>(i)], c.q.cref().middle_rows(i, 1),
                               alone.ref().middle_rows(i, 1), c.options(i, 1, 0, shape.query_heads()));
    }
    CHECK(same(alone, expected));

    Matrix<float> batch = c.out();
    Attend<TestType>::decode(std::span<const AnyView<TestType>>(views), c.q.cref(), batch.ref(), c.options());
    CHECK(same(batch, expected));

    // A batch of rows in another order, some more than once.
    Matrix<float> shuffled_q(rows, c.q.cols()), shuffled = c.out();
    std::vector<Index> from;
    std::vector<AnyView<TestType>> shuffled_views;
    for (Index i = 0; i < rows; ++i) {
      from.push_back(random.between(Index{0}, rows - 1));
      std::copy_n(c.q.row(from.back()), c.q.cols(), shuffled_q.row(i));
      shuffled_views.push_back(views[static_cast<std::size_t>(from.back())]);
    }
    if (shape.mask == CaseShape::Mask::none) {
      Attend<TestType>::decode(std::span<const AnyView<TestType>>(shuffled_views), shuffled_q.cref(), shuffled.ref(),
                               c.options());
      for (Index i = 0; i < rows; ++i) {
        CHECK(same_row(shuffled.row(i), expected.row(from[static_cast<std::size_t>(i)]), expected.cols()));
      }
    }
  });
}

TEMPLATE_TEST_CASE("A query head does not depend on the other heads of its group", "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(105, [](const Case<TestType>& c, Random&) {
    const CaseShape& s = c.shape;
    const Matrix<float> expected = whole(c);
    for (Index h = 0; h < s.query_heads(); ++h) {
      const MatrixRef<const float> q(c.q.row(0) + h * s.key_dim, c.q.rows(), s.key_dim, c.q.cols());
      Matrix<float> out(c.q.rows(), s.value_dim);
      Attend<TestType>::prefill(c.head_view(h / s.group), s.queries, q, out.ref(), c.options(0, c.q.rows(), h, 1));
      for (Index i = 0; i < out.rows(); ++i) {
        CHECK(same_row(out.row(i), expected.row(i) + h * s.value_dim, s.value_dim));
      }
    }
  });
}
