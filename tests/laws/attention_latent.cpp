// Laws of latent rows, whose value is the beginning of the key and is stored once, for every element type.
#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/attention/reference.hpp"

using namespace kvc_test;

namespace {

/// The row of a value that is the beginning of a key: the same numbers, stored as a row of their own.
template <class T>
void store_beginning(const kvc::StorageOf<T>* key, Index key_dim, Index value_dim, kvc::StorageOf<T>* value) {
  using E = kvc::Element<T>;
  if constexpr (std::is_same_v<T, kvc::Int8>) {
    std::fill_n(value, E::row_size(value_dim), std::uint8_t{0});
    std::copy_n(key, value_dim, value);
    std::copy_n(key + E::scale_offset(key_dim), 4, value + E::scale_offset(value_dim));
  } else if constexpr (std::is_same_v<T, kvc::Int4>) {
    std::copy_n(key, 16 * E::groups(value_dim), value);
    std::copy_n(key + E::scale_offset(key_dim), 4 * E::groups(value_dim), value + E::scale_offset(value_dim));
  } else {
    std::copy_n(key, E::row_size(value_dim), value);
  }
}

/// A problem over latent rows. Its values are the beginnings of its keys, as rows of their own.
template <class T>
Case<T> latent_case(const CaseShape& any, Random& random) {
  CaseShape shape = any;
  shape.group *= shape.kv_heads;
  shape.kv_heads = 1;
  shape.mask_heads = 1;
  shape.key_dim = random.one_in(3) ? 576 : shape.key_dim;
  const Index least =
      std::is_same_v<T, Int8AndBf16> ? std::min<Index>(64, shape.key_dim) : 1;  // its rows begin alike from there on
  shape.value_dim = random.one_in(3) ? shape.key_dim : random.between(least, shape.key_dim);
  Case<T> c(shape, random);
  for (Index i = 0; i < shape.length; ++i) {
    store_beginning<T>(c.key(i, 0), shape.key_dim, shape.value_dim, c.value(i, 0));
  }
  return c;
}

/// The latent rows of a problem, in runs of `longest` positions: keys and values in one place.
template <class T>
class LatentView {
 public:
  using Element = T;
  LatentView(const Case<T>& c, Pos length, Pos longest) : case_(&c), length_(length), longest_(longest) {}

  Index kv_heads() const { return 1; }
  Index key_dim() const { return case_->shape.key_dim; }
  Index value_dim() const { return case_->shape.value_dim; }
  Pos length() const { return length_; }
  template <class F>
  void for_each_run(Index, PosRange range, F&& f) const {
    const Index stride = case_->k.cols();
    for (Pos first = range.first; first < range.last; first += longest_) {
      const kvc::StorageOf<T>* const row = case_->k.row(first);
      f(kvc::KvRun<T>{row, row, std::min(longest_, range.last - first), stride, stride, first});
    }
  }

 private:
  const Case<T>* case_;
  Pos length_, longest_;
};
static_assert(kvc::KvView<LatentView<float>>);

}  // namespace

TEMPLATE_TEST_CASE("Values that are the beginnings of their keys have the bits of values apart", "[attention][latent]",
                   KVC_ALL_ELEMENTS, Int8AndBf16) {
  over_cases<TestType>(107, [](const Case<TestType>& any, Random& random) {
    const Case<TestType> c = latent_case<TestType>(any.shape, random);
    const Matrix<float> expected = whole(c);
    for (const Pos longest : {3, 10000}) {
      Matrix<float> out = c.out();
      Attend<TestType>::prefill(LatentView<TestType>(c, c.shape.length, longest), c.shape.queries, c.q.cref(),
                                out.ref(), c.options());
      CHECK(same(out, expected));
    }
    if constexpr (kvc::RowPrefixElement<TestType>) {  // a copy of them, row by row
      const CutView<TestType> cut(c.view(), random, 3);
      Matrix<float> out = c.out();
      Attend<TestType>::prefill(cut, c.shape.queries, c.q.cref(), out.ref(), c.options());
      CHECK(same(out, expected));
    }
  });
}

TEMPLATE_TEST_CASE("Decode over latent rows gives the bits of prefill", "[attention][latent]", KVC_ALL_ELEMENTS,
                   Int8AndBf16) {
  over_cases<TestType>(108, [](const Case<TestType>& any, Random& random) {
    CaseShape shape = appending(any.shape);
    shape.causal = true;
    const Case<TestType> c = latent_case<TestType>(shape, random);
    const Matrix<float> expected = whole(c);
    std::vector<AnyView<TestType>> views;
    for (Index i = 0; i < c.q.rows(); ++i) {
      views.push_back(LatentView<TestType>(c, shape.queries.first + static_cast<Pos>(i) + 1, random.between(1, 99)));
    }
    Matrix<float> out = c.out();
    Attend<TestType>::decode(std::span<const AnyView<TestType>>(views), c.q.cref(), out.ref(), c.options());
    CHECK(same(out, expected));
  });
}

TEMPLATE_TEST_CASE("Attention over latent rows is that of the reference", "[attention][latent]", KVC_ALL_ELEMENTS,
                   Int8AndBf16) {
  Random random(seed_or(109));
  for (int i = 0; i < cases_or(6); ++i) {
    CaseShape shape = random_shape(random, 200);
    shape.softcap = 0;
    const Case<TestType> c = latent_case<TestType>(shape, random);
    CAPTURE(c.shape);
    const kvc::AttentionOptions options = c.options();
    Matrix<float> out = c.out(), exact = c.out(), apart = c.out();
    const LatentView<TestType> view(c, c.shape.length, 20);
    Attend<TestType>::prefill(view, c.shape.queries, c.q.cref(), out.ref(), options);
    kvc::reference(view, c.shape.queries, c.q.cref(), exact.ref(), options);
    kvc::reference(c.view(), c.shape.queries, c.q.cref(), apart.ref(), options);
    CHECK(same(exact, apart));
    double error = 0;
    for (Index n = 0; n < out.rows() * out.cols(); ++n) {
      error = std::max(error, std::abs(static_cast<double>(out.row(0)[n]) - static_cast<double>(exact.row(0)[n])));
    }
    CHECK(error <= 2 * attention_error<TestType>);  // values are up to 2
  }
}
