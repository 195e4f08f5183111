// The inner loops of kernels.hpp for targets with sixteen registers of eight floats (AVX2).
//
// A block of sums in whole vectors of sixteen lanes, two registers each, has room for two query rows. These loops take
// one half of the lanes after the other, so that four query rows (six where there are many) share what is loaded and
// converted: six loads for eight multiply-adds instead of eight. Each lane is a chain of its own, and the order within
// each chain and of the chains is that of kernels.hpp, so the bits are the same.
//
// Keys are not packed across positions for many query rows: sums that are added up lane by lane do not fit in sixteen
// registers, and storing them takes longer than adding up the lanes of a register.
//
// Rows of keys are those of kernels.hpp. They may have a form for halves of vectors:
//
//   expression                     meaning
//   rows.row(j)                    key j, to be loaded from
//   Rows::part_step                vectors that row.load takes together
//   row.template load<half>(c, x)  x[v] = lanes [8 half, 8 half + 8) of vector c + v, v < part_step;
//                                  c is a multiple of part_step
//   row.template last<half>(c)     the same of one vector, behind those that are taken together
//
// Rows::has_many_readers says that many query rows read them, if it is true; it may be absent.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/core/types.hpp"
#include "kvc/simd/vec.hpp"

#if KVC_PART_KERNELS

namespace kvc {
inline namespace v0 {
namespace detail {

/// Eight floats at any address.
KVC_ALWAYS_INLINE simd::Part load_part(const float* p) noexcept { return *reinterpret_cast<const simd::LoosePart*>(p); }
KVC_ALWAYS_INLINE void store_part(float* p, const simd::Part& x) noexcept {
  *reinterpret_cast<simd::LoosePart*>(p) = x;
}

/// Keeps x in a register where a compiler would otherwise load it again for each query row: a load takes the place of a
/// multiply-add in the end.
KVC_ALWAYS_INLINE void load_once(simd::Part& x) noexcept { asm("" : "+x"(x)); }

/// A row of Rows that have no form for halves: what a half does not need of a vector is not computed.
template <class Rows>
struct PartsOfRow {
  const Rows& rows;
  Index j;

  template <int half>
  KVC_ALWAYS_INLINE void load(Index c, simd::Part (&x)[1]) const noexcept {
    x[0] = rows.load(j, c).part[half];
  }
  /// The end of the row may cut off the vector: zeros follow.
  template <int half>
  [[nodiscard]] KVC_ALWAYS_INLINE simd::Part last(Index c) const noexcept {
    simd::F32x16 x[1];
    rows.load(j, c, x);
    return x[0].part[half];
  }
};
template <class Rows>
concept HasParts = requires(const Rows& rows, Index j) { rows.row(j); };

template <class Rows>
inline constexpr int part_step = 1;
template <HasParts Rows>
inline constexpr int part_step<Rows> = Rows::part_step;

/// Whether many query rows read them.
template <class Rows>
inline constexpr bool has_many_readers = false;
template <class Rows>
  requires(Rows::has_many_readers)
inline constexpr bool has_many_readers<Rows> = true;

template <class Rows>
[[nodiscard]] KVC_ALWAYS_INLINE auto part_row(const Rows& rows, Index j) noexcept {
  if constexpr (HasParts<Rows>) {
    return rows.row(j);
  } else {
    return PartsOfRow<Rows>{rows, j};
  }
}

/// Vectors that end within the row, in whole steps.
template <class Rows>
[[nodiscard]] Index whole_vectors(const Rows& rows, Index vectors) noexcept {
  if constexpr (requires { rows.dim; }) {
    return rows.dim / simd::lanes;
  } else {
    return vectors / part_step<Rows> * part_step<Rows>;
  }
}

/// One half of the lanes of add_keys.
///
///   q      [R, q_stride] query rows
///   row    K keys
///   whole  vectors before `last` that are taken in whole steps
///   once   whether load_once keeps factors in registers
template <int half, int R, std::size_t K, class Rows, bool once, class Row, class Prefetches>
KVC_ALWAYS_INLINE void add_key_parts(const float* q, Index q_stride, const std::array<Row, K>& row, Index first,
                                     Index last, Index whole, simd::Part (&sum)[R][K],
                                     Prefetches& prefetcher) noexcept {
  constexpr int step = part_step<Rows>, keys = int{K};
  const auto add = [&](Index c, simd::Part(&x)[K]) __attribute__((always_inline)) {
    if constexpr (once) {
      simd::detail::unroll<keys>([&](auto k) __attribute__((always_inline)) { load_once(x[k]); });
    }
    simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
      simd::Part w = load_part(q + i * q_stride + c * simd::lanes + half * simd::part_lanes);
      if constexpr (once) {
        load_once(w);
      }
      simd::detail::unroll<keys>([&](auto k)
                                     __attribute__((always_inline)) { sum[i][k] = simd::madd(w, x[k], sum[i][k]); });
    });
  };
  Index c = first;
  for (; c < whole; c += step) {
    if constexpr (half == 0) {  // the other half is in the same lines
      constexpr Index bytes = Index{K} * step * Rows::bytes, line = 64;
      if constexpr (bytes >= line) {
        prefetcher.prefetch(bytes / line);
      } else if (c % (line / bytes * step) == 0) {
        prefetcher.prefetch(1);
      }
    }
    simd::Part x[step][K];
    simd::detail::unroll<keys>([&](auto k) __attribute__((always_inline)) {
      simd::Part of_row[step];
      row[k].template load<half>(c, of_row);
      simd::detail::unroll<step>([&](auto v) __attribute__((always_inline)) { x[v][k] = of_row[v]; });
    });
    simd::detail::unroll<step>([&](auto v) __attribute__((always_inline)) { add(c + v, x[v]); });
  }
  for (; c < last; ++c) {
    if constexpr (half == 0) {
      prefetcher.prefetch(1);
    }
    simd::Part x[K];
    simd::detail::unroll<keys>([&](auto k) __attribute__((always_inline)) { x[k] = row[k].template last<half>(c); });
    add(c, x);
  }
}

/// One half of the lanes of add_chains. `sum` is 0 before.
///
/// Where many query rows read the keys, the loop over whole chains has no other path, so that beside four query rows
/// most sums stay in registers: on Zen 3 a store takes the time of two multiply-adds. Few query rows wait for memory;
/// their function also has the loops for short keys, which more code for long ones makes slower.
template <int half, int R, std::size_t K, class Rows, bool is_long, class Row, class Prefetches>
KVC_ALWAYS_INLINE void add_part_chains(const float* q, Index q_stride, const std::array<Row, K>& row, Index vectors,
                                       Index whole, simd::Part (&sum)[R][K], Prefetches& prefetcher) noexcept {
  if constexpr (is_long && has_many_readers<Rows>) {
    const auto add_chain = [&](Index first, Index last, Index end_of_whole) __attribute__((always_inline)) {
      simd::Part chain[R][K] = {};
      add_key_parts<half, R, K, Rows, true>(q, q_stride, row, first, last, end_of_whole, chain, prefetcher);
      simd::detail::unroll<R* int{K}>([&](auto n) __attribute__((always_inline)) {
        constexpr std::size_t i = n / K, k = n % K;
        sum[i][k] = sum[i][k] + chain[i][k];
      });
    };
    Index c = 0;
    for (; c + chain_of_long <= whole; c += chain_of_long) {
      add_chain(c, c + chain_of_long, c + chain_of_long);
    }
    for (; c < vectors; c += chain_of_long) {
      const Index end = std::min(c + chain_of_long, vectors);
      add_chain(c, end, std::min(whole, end));
    }
  } else {
    add_chains<is_long>(vectors, sum, [&](Index c, Index end, auto& x) __attribute__((always_inline)) {
      add_key_parts<half, R, K, Rows, (R > 4)>(q, q_stride, row, c, end, is_long ? std::min(whole, end) : whole, x,
                                               prefetcher);
    });
  }
}

/// Scores of R query rows for blocks of four keys that cover [first, last), as add_keys and store_scores give them.
template <int R, bool is_long, class Rows, class Prefetches>
KVC_ALWAYS_INLINE void score_parts(const Rows& rows, Index first, Index last, Index vectors, const float* q,
                                   Index q_stride, float* s, Prefetches& prefetcher) noexcept {
  using simd::Part;
  static_assert(R == 2 || R == 4 || R == 6);
  constexpr int K = R == 2 ? 4 : 2, pairs = R / 2;
  // Of two vectors of eight: the lower halves, the upper halves.
  const auto lower = [](const Part& a, const Part& b) __attribute__((always_inline)) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
  };
  const auto upper = [](const Part& a, const Part& b) __attribute__((always_inline)) {
    return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  };
  // The sum of both, by one shuffle and one blend.
  const auto lower_and_upper = [](const Part& a, const Part& b) __attribute__((always_inline)) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 12, 13, 14, 15) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 8, 9, 10, 11);
  };
  const Index whole = whole_vectors(rows, vectors);
  for (Index j = first / 4 * 4; j < last; j += 4) {
    // parts[i][n]: of key j + n, the sums over every fourth lane, for row 2 i in the lower half and 2 i + 1 in the
    // upper.
    Part parts[pairs][4];
    for (int n = 0; n < 4; n += K) {
      const auto row = [&]<int... k>(std::integer_sequence<int, k...>) __attribute__((always_inline)) {
        return std::array{part_row(rows, j + n + k)...};
      }(std::make_integer_sequence<int, K>{});
      Part sum[R][K] = {};
      add_part_chains<0, R, K, Rows, is_long>(q, q_stride, row, vectors, whole, sum, prefetcher);
      Part part[pairs][K];
      simd::detail::unroll<pairs * K>([&](auto m) __attribute__((always_inline)) {
        constexpr int i = m / K, k = m % K;
        part[i][k] = lower_and_upper(sum[2 * i][k], sum[2 * i + 1][k]);
        sum[2 * i][k] = sum[2 * i + 1][k] = Part{};
      });
      add_part_chains<1, R, K, Rows, is_long>(q, q_stride, row, vectors, whole, sum, prefetcher);
      simd::detail::unroll<pairs * K>([&](auto m) __attribute__((always_inline)) {
        constexpr int i = m / K, k = m % K;
        parts[i][n + k] =
            (part[i][k] + lower(sum[2 * i][k], sum[2 * i + 1][k])) + upper(sum[2 * i][k], sum[2 * i + 1][k]);
      });
    }
    simd::detail::unroll<pairs>([&](auto i) __attribute__((always_inline)) {
      const auto low = [](const Part& a, const Part& b) __attribute__((always_inline)) {
        return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
      };
      const auto high = [](const Part& a, const Part& b) __attribute__((always_inline)) {
        return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
      };
      const auto first_two = [](const Part& a, const Part& b) __attribute__((always_inline)) {
        return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
      };
      const auto last_two = [](const Part& a, const Part& b) __attribute__((always_inline)) {
        return __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
      };
      const Part low_ab = low(parts[i][0], parts[i][1]), low_cd = low(parts[i][2], parts[i][3]);
      const Part high_ab = high(parts[i][0], parts[i][1]), high_cd = high(parts[i][2], parts[i][3]);
      const Part of_rows = ((first_two(low_ab, low_cd) + last_two(low_ab, low_cd)) + first_two(high_ab, high_cd)) +
                           last_two(high_ab, high_cd);
      simd::store_four(s + 2 * i * tile_keys + j, __builtin_shufflevector(of_rows, of_rows, 0, 1, 2, 3));
      simd::store_four(s + (2 * i + 1) * tile_keys + j, __builtin_shufflevector(of_rows, of_rows, 4, 5, 6, 7));
    });
  }
}

/// The values of a tile for many query rows: vector c of value j at first + (64 c + j) * 16. A block of sums reads them
/// one after the other, and lines of a column do not displace one another from the first-level cache.
struct PackedValues {
  const float* first;
  static constexpr int step = 1, bytes = simd::lanes * sizeof(float);
  KVC_ALWAYS_INLINE simd::F32x16 load(Index j, Index c) const noexcept {
    simd::F32x16 x = simd::load(first + (c * tile_keys + j) * simd::lanes);
    load_once(x.part[0]);
    load_once(x.part[1]);
    return x;
  }
};

/// Brings values [first, last) into this form.
///
///   first, last  multiples of 16
///   v            v.load(j, c, x): x[0] = elements [16 c, 16 c + 16) of value j
///   vectors      of a value
template <class Values>
KVC_ALWAYS_INLINE void pack_values(const Values& v, Index first, Index last, Index vectors, float* to) noexcept {
  constexpr Index together = 8;  // so many rows are read in their order, and whole lines of each column written
  for (Index at = first; at < last; at += together) {
    for (Index c = 0; c < vectors; ++c) {
      for (Index j = at; j < at + together; ++j) {
        simd::F32x16 x[1];
        v.load(j, c, x);
        simd::store(to + (c * tile_keys + j) * simd::lanes, x[0]);
      }
    }
  }
}

/// A prefetcher that does nothing, for memory that is in a cache.
struct NothingToPrefetch {
  KVC_ALWAYS_INLINE void prefetch(Index) const noexcept {}
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc

#endif  // KVC_PART_KERNELS
