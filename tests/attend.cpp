// The definitions behind attend.hpp, for every element type, or for those alone whose kernels are built.
#include "attend.hpp"
#include "element_types.hpp"
#include "kvc/attention/decode.hpp"
#include "kvc/attention/extern.hpp"
#include "kvc/attention/prefill.hpp"

namespace kvc_test {

template <class T>
void Attend<T>::prefill(const AnyView<T>& kv, kvc::PosRange queries, kvc::MatrixRef<const float> q,
                        const kvc::AttentionOutput& out, const kvc::AttentionOptions& options,
                        const AnyExecutor& executor) {
  kvc::prefill(kv, queries, q, out, options, executor);
}

template <class T>
void Attend<T>::prefill(Views views, std::span<const kvc::PosRange> queries, kvc::MatrixRef<const float> q,
                        const kvc::AttentionOutput& out, const kvc::AttentionOptions& options,
                        const AnyExecutor& executor) {
  kvc::prefill(views, queries, q, out, options, executor);
}

template <class T>
void Attend<T>::prefill(Views views, std::span<const std::int32_t> q_indptr, kvc::MatrixRef<const float> q,
                        const kvc::AttentionOutput& out, const kvc::AttentionOptions& options,
                        const AnyExecutor& executor) {
  kvc::prefill(views, q_indptr, q, out, options, executor);
}

template <class T>
void Attend<T>::decode(Views views, kvc::MatrixRef<const float> q, const kvc::AttentionOutput& out,
                       const kvc::AttentionOptions& options, const AnyExecutor& executor) {
  kvc::decode(views, q, out, options, executor);
}

template struct Attend<float>;
#if !defined(KVC_FLOAT_ALONE)
template struct Attend<kvc::Int8>;
#if !defined(KVC_FLOAT_AND_INT8_ALONE)
template struct Attend<Eigen::half>;
template struct Attend<Eigen::bfloat16>;
template struct Attend<kvc::Fp8E4M3>;
template struct Attend<kvc::Int4>;
template struct Attend<Int8AndBf16>;
#endif
#endif

}  // namespace kvc_test
