// The kernels of attention from another file of the program. They are nearly all of what attention costs a compiler, and
// a program of many files needs them once for each element type.
//
// A file that includes this beside attention makes no code of them. One file of the program has, for each type in use,
//
//   template class kvc::detail::QueryTile<kvc::detail::KvTile<float>>;
//
// or the linker misses QueryTile::attend. Both are for the same processor, from which the kernels of a type follow.
#pragma once

#include "kvc/attention/kernel/kv_tile.hpp"
#include "kvc/attention/kernel/query_tile.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

extern template class QueryTile<KvTile<float>>;
extern template class QueryTile<KvTile<Eigen::half>>;
extern template class QueryTile<KvTile<Eigen::bfloat16>>;
extern template class QueryTile<KvTile<Int8>>;
extern template class QueryTile<KvTile<Fp8E4M3>>;
extern template class QueryTile<KvTile<Int4>>;

}  // namespace detail
}  // namespace v0
}  // namespace kvc
