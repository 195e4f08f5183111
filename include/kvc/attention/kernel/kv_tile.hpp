// KvTile<T>: 64 positions of one head, converted from the rows of a cache into the form that the kernels read. The
// element type and the instructions of the target choose the tile type. Each tile type defines its accumulation order.
//
//   expression                               meaning
//   exact_sums                               sums over the values of a tile are exact, so that their order is free
//   key_pass                                 keys per call of scores_of_many that keep the caches warm
//   most_rows                                largest R of scores_of_many
//   scale_parts(scale)                       ScaleParts: the factor of q before prepare_query, and that of the scores,
//                                            which the tile applies; the constructor takes the scale
//   query_floats(key_dim)                    size of a query row in the form of prepare_query(q, key_dim, to)
//   weight_floats(value_dim)                 size of the weights of a row in the form of encode_weights; 0: p itself
//   state_floats(value_dim)                  size of an output in a state
//   output_index(d)                          index of element d in it; four from a multiple of 4 are consecutive
//   in_order                                 output_index(d) == d
//   scratch_floats(key_dim, value_dim)       working memory that the constructor takes
//   set(rows, next, count)                   makes `rows` current, for `count` query rows; prefetches `next` (may be
//                                            null) while `rows` is read. Both stay valid until `next` is current
//   prefetcher()                             the Prefetcher of `next`
//   load_keys()                              work on the keys that all query rows share; before scores
//   scores<R>(first, last, q, q_stride, s)   scores of R rows for keys [first, last), and possibly for neighbours
//   scores_of_many<R>(...)                   the same bits, faster for more than few_rows rows
//   load_values()                            work on the values that all query rows share; before encode_weights
//   encode_weights(p, largest, visible, w)   weights p in the form that add_values reads; `largest` is the largest of
//                                            them, `visible` has a bit per position
//   value_step()                             without exact sums: preferred positions per add_values call
//   most_value_rows                          largest R of add_values for more than few_rows rows that see all of a
//                                            tile, and of add_long_values
//   add_values<R>(w, first, last, ...)       to = to * rescale + weighted values of [first, last), R rows
//   has_long_rows                            whether it has the members below, for rows that are longer than caches and
//                                            registers like, such as latent ones: few keys at a time with all query
//                                            rows, few columns of the values at a time with all query rows
//   is_long()                                after set: whether to use these, with the same bits
//   load_long_keys(first)                    work on keys [first, first + long_pass), instead of load_keys
//   scores_of_long<R>(...)                   scores<R> of keys among these
//   value_columns()                          columns of a value, in steps of long_columns:
//   add_long_values<R>(w, from, to, rescale) add_values<R> of the whole tile for columns from `from` on
//
// s is [R, 64], p is [64], both indexed by position in the tile.
#pragma once

#include "kvc/attention/kernel/bf16_tile.hpp"
#include "kvc/attention/kernel/byte_tile.hpp"
#include "kvc/attention/kernel/float_tile.hpp"
#include "kvc/attention/kernel/nibble_tile.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The tile type of an element type on this target.
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
