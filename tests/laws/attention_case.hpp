// Random attention problems, and views and executors that behave as badly as they may.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <ostream>
#include <span>
#include <thread>
#include <vector>

#include "attend.hpp"
#include "catch.hpp"
#include "element_types.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/parallel/executor.hpp"
#include "random_source.hpp"

namespace kvc_test {

using kvc::Index;
using kvc::MatrixRef;
using kvc::Pos;
using kvc::PosRange;

/// A row-major matrix that owns its elements. (A vector of bool has no array of bool.)
template <class S>
class Matrix {
 public:
  Matrix(Index rows, Index cols) : rows_(rows), cols_(cols), data_(new S[static_cast<std::size_t>(rows * cols)]()) {}
  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  S* row(Index i) { return data_.get() + i * cols_; }
  const S* row(Index i) const { return data_.get() + i * cols_; }
  S& operator()(Index i, Index j) { return row(i)[j]; }
  const S& operator()(Index i, Index j) const { return row(i)[j]; }
  MatrixRef<S> ref() { return {data_.get(), rows_, cols_}; }
  MatrixRef<const S> ref() const { return {data_.get(), rows_, cols_}; }
  MatrixRef<const S> cref() const { return ref(); }

 private:
  Index rows_, cols_;
  std::unique_ptr<S[]> data_;
};

inline bool same_bits(float a, float b) { return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b); }

/// Rows of two matrices, bit for bit; NaN is NaN whatever its payload.
inline bool same_row(const float* a, const float* b, Index n) {
  for (Index i = 0; i < n; ++i) {
    if (!same_bits(a[i], b[i]) && !(std::isnan(a[i]) && std::isnan(b[i]))) {
      return false;
    }
  }
  return true;
}

/// The dimensions that vary from problem to problem.
struct CaseShape {
  Index kv_heads = 1, group = 1, key_dim = 1, value_dim = 1;
  Pos length = 1;
  PosRange queries{0, 1};
  bool causal = true;
  Pos window = 0, chunk = 0, kept = 0;
  float softcap = 0;
  bool sinks = false;
  enum class Mask { none, boolean, additive } mask = Mask::none;
  Index mask_heads = 1, mask_rows = 1, mask_cols = 1;

  Index query_heads() const { return kv_heads * group; }
};

inline std::ostream& operator<<(std::ostream& out, const CaseShape& s) {
  return out << s.kv_heads << " kv heads x " << s.group << ", dims " << s.key_dim << "/" << s.value_dim << ", length "
             << s.length << ", queries [" << s.queries.first << ", " << s.queries.last << "), causal " << s.causal
             << ", window " << s.window << ", chunk " << s.chunk << ", kept " << s.kept << ", softcap " << s.softcap
             << ", sinks " << s.sinks << ", mask " << static_cast<int>(s.mask) << " [" << s.mask_heads << ", "
             << s.mask_rows << ", " << s.mask_cols << "]";
}

inline CaseShape random_shape(Random& random, Pos longest) {
  constexpr Index dims[] = {1, 8, 16, 20, 33, 64, 80, 96, 100, 128, 192, 256, 300, 320};
  const auto dim = [&] { return dims[random.between(0, 13)]; };
  CaseShape s;
  s.kv_heads = random.between(1, 3);
  s.group = random.one_in(3) ? 1 : random.between(1, 9);
  s.key_dim = dim();
  s.value_dim = random.one_in(2) ? s.key_dim : dim();
  s.length = random.one_in(8) ? random.between(0, 2) : random.between(1, longest);
  const Pos rows = random.one_in(3) ? random.between(1, 3) : random.between(1, 90);
  const Pos first = random.one_in(3) ? random.between(-40, longest) : std::max(0, s.length - rows);
  s.queries = {first, first + rows};
  s.causal = !random.one_in(3);
  s.window = random.one_in(3) ? random.between(1, 200) : 0;
  if (random.one_in(4)) {
    constexpr Pos chunks[] = {1, 2, 7, 63, 64, 65, 100, 128, 200, 512, 513, 1000};
    s.chunk = chunks[random.between(0, 11)];
  }
  s.kept = random.one_in(2) ? 0 : random.one_in(2) ? random.between(1, 16) : random.between(1, longest);
  s.sinks = random.one_in(3);
  s.softcap = random.one_in(3) ? random.uniform(0.5F, 30.0F) : 0.0F;
  if (random.one_in(2)) {
    s.mask = random.one_in(2) ? CaseShape::Mask::boolean : CaseShape::Mask::additive;
    s.mask_heads = random.one_in(2) ? 1 : s.query_heads();
    s.mask_rows = random.one_in(3) ? 1 : rows;
    s.mask_cols = random.one_in(3) ? random.between(Index{0}, Index{s.length}) : s.length;
  }
  return s;
}

/// The sinks of a problem: some that leave nothing of the keys, some that do nothing, some between.
inline std::vector<float> random_sinks(const CaseShape& shape, Random& random) {
  std::vector<float> sinks(shape.sinks ? static_cast<std::size_t>(shape.query_heads()) : 0);
  for (float& logit : sinks) {
    logit = !random.one_in(3)  ? random.uniform(-4, 4)
            : random.one_in(3) ? -std::numeric_limits<float>::infinity()
            : random.one_in(2) ? random.uniform(-1e5F, 1e5F)
                               : random.uniform(-100, 100);
  }
  return sinks;
}

/// A problem with its numbers. T is the element type of keys and values.
template <class T>
struct Case {
  using Storage = kvc::StorageOf<T>;
  CaseShape shape;
  Matrix<float> k_numbers, v_numbers;  // before they are stored
  Matrix<Storage> k, v;                // [length, kv_heads * row_size(dim)]
  Matrix<float> q;
  Matrix<bool> bools;
  Matrix<float> floats;
  std::vector<float> sinks;  // [query_heads] or empty

  Case(const CaseShape& s, Random& random)
      : shape(s),
        k_numbers(s.length, s.kv_heads * s.key_dim),
        v_numbers(s.length, s.kv_heads * s.value_dim),
        k(s.length, s.kv_heads * kvc::Element<T>::row_size(s.key_dim)),
        v(s.length, s.kv_heads * kvc::Element<T>::row_size(s.value_dim)),
        q(s.queries.size(), s.query_heads() * s.key_dim),
        bools(s.mask_heads * s.mask_rows, s.mask_cols),
        floats(s.mask_heads * s.mask_rows, s.mask_cols),
        sinks(random_sinks(s, random)) {
    const auto fill = [&](auto& m, auto number) {
      for (Index i = 0; i < m.rows(); ++i) {
        for (Index j = 0; j < m.cols(); ++j) {
          m(i, j) = number();
        }
      }
    };
    fill(k_numbers, [&] { return random.uniform(-2, 2); });
    fill(v_numbers, [&] { return random.uniform(-2, 2); });
    fill(q, [&] { return random.uniform(-2, 2); });
    fill(bools, [&] { return !random.one_in(3); });
    fill(floats, [&] { return random.one_in(3) ? -std::numeric_limits<float>::infinity() : random.uniform(-3, 3); });
    for (Index i = 0; i < s.length; ++i) {
      for (Index h = 0; h < s.kv_heads; ++h) {
        kvc::Element<T>::encode(k_numbers.row(i) + h * s.key_dim, s.key_dim, key(i, h));
        kvc::Element<T>::encode(v_numbers.row(i) + h * s.value_dim, s.value_dim, value(i, h));
      }
    }
  }

  /// The stored row of one position and kv head.
  Storage* key(Index position, Index head) { return k.row(position) + head * kvc::Element<T>::row_size(shape.key_dim); }
  Storage* value(Index position, Index head) {
    return v.row(position) + head * kvc::Element<T>::row_size(shape.value_dim);
  }

  kvc::DenseView<T> view() const { return view(shape.length); }
  kvc::DenseView<T> view(Pos length) const {
    return {k.cref().middle_rows(0, length), v.cref().middle_rows(0, length), shape.kv_heads, shape.key_dim,
            shape.value_dim};
  }
  /// One kv head alone.
  kvc::DenseView<T> head_view(Index head) const {
    const Index key_row = kvc::Element<T>::row_size(shape.key_dim),
                value_row = kvc::Element<T>::row_size(shape.value_dim);
    return {MatrixRef<const Storage>(k.row(0) + head * key_row, k.rows(), key_row, k.cols()),
            MatrixRef<const Storage>(v.row(0) + head * value_row, v.rows(), value_row, v.cols()), 1, shape.key_dim,
            shape.value_dim};
  }

  /// Options for the rows [first, first + rows) and the query heads [head, head + heads).
  kvc::AttentionOptions options(Index first, Index rows, Index head, Index heads) const {
    kvc::AttentionOptions o{.causal = shape.causal,
                            .window = shape.window,
                            .chunk = shape.chunk,
                            .kept = shape.kept,
                            .softcap = shape.softcap};
    if (!sinks.empty()) {
      o.sinks = std::span(sinks).subspan(static_cast<std::size_t>(head), static_cast<std::size_t>(heads));
    }
    const Index head_stride = shape.mask_heads == 1 ? 0 : shape.mask_rows * shape.mask_cols;
    const Index row_stride = shape.mask_rows == 1 ? 0 : shape.mask_cols;
    const Index start = head * head_stride + first * row_stride;
    if (shape.mask == CaseShape::Mask::boolean) {
      o.mask = kvc::AttentionMask::boolean(bools.row(0) + start, heads, rows, shape.mask_cols);
    } else if (shape.mask == CaseShape::Mask::additive) {
      o.mask = kvc::AttentionMask::additive(floats.row(0) + start, heads, rows, shape.mask_cols);
    }
    o.mask = o.mask.with_strides(head_stride, row_stride, 1);
    return o;
  }
  kvc::AttentionOptions options() const { return options(0, q.rows(), 0, shape.query_heads()); }

  Matrix<float> out() const { return Matrix<float>(q.rows(), shape.query_heads() * shape.value_dim); }

  /// Whether a row at position p may attend to position j by all but the entries of the mask: the rules once more.
  bool in_sight(Index p, Index j) const {
    if ((shape.causal && j > p) || (shape.mask != CaseShape::Mask::none && j >= shape.mask_cols)) {
      return false;
    }
    const bool in_window = shape.window == 0 || p - j < shape.window;
    const bool in_chunk = shape.chunk == 0 || p < shape.chunk || j >= p - p % shape.chunk;
    return j < shape.kept || (in_window && in_chunk);
  }
  /// Whether row i of head h may attend to position j.
  bool visible(Index h, Index i, Index j) const {
    if (!in_sight(shape.queries.first + i, j)) {
      return false;
    }
    if (shape.mask == CaseShape::Mask::none) {
      return true;
    }
    const Index row = (shape.mask_heads == 1 ? 0 : h) * shape.mask_rows + (shape.mask_rows == 1 ? 0 : i);
    return shape.mask == CaseShape::Mask::boolean ? bools(row, j)
                                                  : floats(row, j) != -std::numeric_limits<float>::infinity();
  }
};

/// The expected result of every other way of computing it.
template <class T>
Matrix<float> whole(const Case<T>& c) {
  Matrix<float> out = c.out();
  Attend<T>::prefill(c.view(), c.shape.queries, c.q.cref(), out.ref(), c.options());
  return out;
}

inline bool same(const Matrix<float>& a, const Matrix<float>& b) {
  return a.rows() == b.rows() && same_row(a.row(0), b.row(0), a.rows() * a.cols());
}

/// Shapes whose rows are the newest positions, as in a cache that is being filled.
inline CaseShape appending(CaseShape s) {
  s.length = std::max(s.length, s.queries.size());
  s.queries = {s.length - s.queries.size(), s.length};
  if (s.mask != CaseShape::Mask::none) {
    s.mask_cols = s.length;
  }
  return s;
}

/// f(a case, a description) over random shapes, short ones and a few of several splits.
template <class T, class F>
void over_cases(std::uint64_t fixed_seed, F f) {
  const std::uint64_t seed = seed_or(fixed_seed);
  Random random(seed);
  for (int i = 0; i < cases_or(40); ++i) {
    CaseShape shape = random_shape(random, 300);
    if (i % 10 == 0) {  // splits
      shape.length = random.between(Pos{1500}, Pos{3300});
      shape.kv_heads = 1;
      shape.mask_heads = 1;
      shape.window = shape.window * 6;
      shape = appending(shape);
    }
    const Case<T> c(shape, random);
    CAPTURE(seed, i, shape);
    f(c, random);
  }
}

/// A base of views of another one's rows that differ in their runs.
template <class View>
struct OfView {
  using Element = typename View::Element;
  View all;

  Index kv_heads() const { return all.kv_heads(); }
  Index key_dim() const { return all.key_dim(); }
  Index value_dim() const { return all.value_dim(); }
  Pos length() const { return all.length(); }
};

/// The rows of a dense view, moved to random places at odd addresses, each head cut into runs in another way, with NaN
/// between. Copies show the same rows.
template <class T>
class CutView {
 public:
  using Element = T;
  using Storage = kvc::StorageOf<T>;

  CutView(const kvc::DenseView<T>& dense, Random& random, Pos longest_run)
      : key_dim_(dense.key_dim()), value_dim_(dense.value_dim()), length_(dense.length()) {
    const Index key_row = kvc::Element<T>::row_size(key_dim_), value_row = kvc::Element<T>::row_size(value_dim_);
    auto heads = std::make_shared<std::vector<Head>>(static_cast<std::size_t>(dense.kv_heads()));
    for (Index h = 0; h < dense.kv_heads(); ++h) {
      Head& head = (*heads)[static_cast<std::size_t>(h)];
      Index end = 0;
      for (Pos at = 0; at < length_; at += head.chunks.back().rows) {
        Chunk chunk;
        chunk.first = at;
        chunk.rows = std::min(random.between(Pos{1}, longest_run), length_ - at);
        chunk.k_stride = key_row + random.between(Index{0}, Index{5});
        chunk.v_stride = value_row + random.between(Index{0}, Index{5});
        chunk.k = end + random.between(Index{0}, Index{17});
        chunk.v = chunk.k + chunk.rows * chunk.k_stride + random.between(Index{0}, Index{17});
        end = chunk.v + (chunk.rows - 1) * chunk.v_stride + value_row;
        head.chunks.push_back(chunk);
      }
      // Nothing follows the last number of the last row: reading past it is seen by the address sanitizer.
      head.pool = Matrix<Storage>(1, end);
      fill_with_ones<T>(head.pool.row(0), end);
      for (const Chunk& chunk : head.chunks) {
        dense.for_each_run(h, {chunk.first, chunk.first + chunk.rows}, [&](const kvc::KvRun<T>& run) {
          for (Index r = 0; r < run.rows; ++r) {
            std::copy_n(run.k + r * run.k_stride, key_row, head.pool.row(0) + chunk.k + r * chunk.k_stride);
            std::copy_n(run.v + r * run.v_stride, value_row, head.pool.row(0) + chunk.v + r * chunk.v_stride);
          }
        });
      }
    }
    heads_ = std::move(heads);
  }

  Index kv_heads() const { return static_cast<Index>(heads_->size()); }
  Index key_dim() const { return key_dim_; }
  Index value_dim() const { return value_dim_; }
  Pos length() const { return length_; }

  template <class F>
  void for_each_run(Index h, PosRange range, F&& f) const {
    const Head& head = (*heads_)[static_cast<std::size_t>(h)];
    for (const Chunk& chunk : head.chunks) {
      const Pos first = std::max(range.first, chunk.first), last = std::min(range.last, chunk.first + chunk.rows);
      if (first < last) {
        f(kvc::KvRun<T>{head.pool.row(0) + chunk.k + (first - chunk.first) * chunk.k_stride,
                        head.pool.row(0) + chunk.v + (first - chunk.first) * chunk.v_stride, last - first,
                        chunk.k_stride, chunk.v_stride, first});
      }
    }
  }

 private:
  struct Chunk {
    Pos first, rows;
    Index k, v, k_stride, v_stride;
  };
  struct Head {
    Matrix<Storage> pool{0, 0};
    std::vector<Chunk> chunks;
  };
  std::shared_ptr<const std::vector<Head>> heads_;
  Index key_dim_, value_dim_;
  Pos length_;
};
static_assert(kvc::KvView<CutView<float>>);

/// Items on `threads` threads, whichever is free next, from the last to the first. Stricter than the contract: an item
/// that throws ends the program, because kvc finds errors of arguments before items start.
struct ThreadPerCall {
  int threads = 2;
  template <class F>
  void parallel_for(Index n, F&& f) const {
    std::atomic<Index> next{n};
    std::vector<std::thread> team;
    for (int t = 0; t < threads; ++t) {
      team.emplace_back([&] {
        for (Index i = --next; i >= 0; i = --next) {
          f(i);
        }
      });
    }
    for (std::thread& thread : team) {
      thread.join();
    }
  }
};
static_assert(kvc::Executor<ThreadPerCall>);

}  // namespace kvc_test
