// KvTile<T>: 64 positions of one head, brought from the rows of a cache into the form that the kernels read. Which one
// serves an element type is decided by what the target can multiply.
//
//   expression                               meaning
//   exact_sums                               whether the sums of a tile's values are exact: in any order
//   key_pass                                 keys that `scores` is best asked for at once, if there are many rows
//   query_floats(key_dim)                    room for a query row as prepare_query(q, key_dim, to) gives it
//   weight_floats(value_dim)                 room for the weights of a row, as encode_weights gives them; 0: used as they are
//   state_floats(value_dim), output_index(d) room for an output in a state, and where in it number d is;
//                                            four from a multiple of 4 are together
//   in_order                                 whether output_index(d) is d
//   scratch_floats(key_dim, value_dim)       working memory that the constructor takes
//   set(rows, next, count)                   what `count` query rows read from now on, and what comes next; both stay
//                                            where they are until next is given as rows
//   prefetcher()                             what asks for what comes next, while this is read
//   load_keys()                              whatever is done once for all rows, before
//   scores<R>(first, last, q, q_stride, s)   scores of R rows for keys [first, last), and maybe for some neighbours
//   scores_of_many<R>(...)                   the same, bit for bit, where there are many rows; R is at most `most_rows`
//   load_values()                            whatever is done once for all rows, before
//   encode_weights(p, visible, w)            weights in the form that the values need
//   value_step()                             unless sums are exact: positions that add_values had better be asked for
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
