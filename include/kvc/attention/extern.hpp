// Takes the kernels of attention from another file of the program. They are nearly all that attention costs to compile,
// and a program needs them once per element type.
//
// A file that includes this does not instantiate them. One file of the program instantiates those of each type in use,
//
//   template class kvc::detail::QueryTile<kvc::detail::KvTile<float>>;
//
// (C++ allows no alias there, so these two names are part of the API.) Otherwise the linker reports QueryTile::attend
// as undefined. Compile both files for the same target, which decides the kernels of a type.
//
// With CMake, a program that links kvc::attention does neither: the library has the kernels, and attention includes
// this file by itself.
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
