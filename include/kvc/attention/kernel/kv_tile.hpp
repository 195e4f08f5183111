// KvTile<T>: the tile type of an element type on this target. It follows from what the processor can multiply.
//
// A tile type brings 64 positions of one head from the rows of a cache into the form that the kernels read:
//
//   expression                               meaning
//   exact_sums                               whether sums over the values of a tile are exact, so that any order will do
//   key_pass                                 preferred number of keys per call of scores_of_many
//   query_floats(key_dim)                    floats of a query row that prepare_query(q, key_dim, to) writes
//   weight_floats(value_dim)                 floats of a row of weights that encode_weights writes; 0: p itself is read
//   state_floats(value_dim), output_index(d) floats of an output in a state, and the index of number d in it; four
//                                            numbers from a multiple of 4 are neighbours
//   in_order                                 whether output_index(d) is d
//   scratch_floats(key_dim, value_dim)       working memory that the constructor takes
//   set(rows, next, count)                   `count` query rows read `rows` from now on, and `next` after that; both
//                                            must stay in place until `next` is passed as rows
//   prefetcher()                             prefetches `next` while `rows` is read
//   load_keys()                              prepares the keys, once for all query rows
//   scores<R>(first, last, q, q_stride, s)   scores of R rows for keys [first, last), and maybe for some neighbours
//   scores_of_many<R>(...)                   the same bits, for many rows; R is at most `most_rows`
//   load_values()                            prepares the values, once for all query rows
//   encode_weights(p, visible, w)            encodes the weights as the values need them
//   value_step()                             preferred positions per call of add_values, unless sums are exact
//   add_values<R>(w, first, last, ...)       to = to * rescale + weighted values, R rows
//
// s is [R, 64], p is [64], both for the positions of the tile in order.
#pragma once

#include "kvc/attention/kernel/bf16_tile.hpp"
#include "kvc/attention/kernel/byte_tile.hpp"
#include "kvc/attention/kernel/float_tile.hpp"
#include "kvc/attention/kernel/nibble_tile.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

template <class T>
struct KvTileOf {
  using Type = FloatTile<T>;
};
#if KVC_SIMD_BF16_DOT
template <>
struct KvTileOf<Eigen::bfloat16> {
  using Type = Bf16Tile<Eigen::bfloat16>;
};
template <>
struct KvTileOf<Fp8E4M3> {
  using Type = Bf16Tile<Fp8E4M3>;
};
#endif
#if KVC_SIMD_BYTE_DOT
template <>
struct KvTileOf<Int8> {
  using Type = ByteTile;
};
template <>
struct KvTileOf<Int4> {
  using Type = NibbleTile;
};
#endif

template <class T>
using KvTile = typename KvTileOf<T>::Type;

}  // namespace detail
}  // namespace v0
}  // namespace kvc
