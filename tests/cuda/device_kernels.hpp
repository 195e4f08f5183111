// decode and prefill of the formats that the device tests use. Each of device_kernels_*.cu compiles some of them, and
// the tests none, since the kernels take a compiler longer than all tests.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kvc/cuda/decode.cuh"
#include "kvc/cuda/element.cuh"
#include "kvc/cuda/prefill.cuh"
#include "kvc/element/quantized.hpp"

/// `extern template` or `template`, and decode for queries of Scalar over a cache of Format::format.
#define KVC_TEST_DECODE(instance, Scalar, format)                                                                    \
  instance void kvc::cuda::decode<Scalar, kvc::cuda::Format::format>(                                                \
      const kvc::cuda::LayerView<kvc::cuda::Format::format>&, const kvc::cuda::Batch&, const kvc::cuda::DecodeWork&, \
      const Scalar*, Scalar*, const kvc::cuda::AttentionOptions&, cudaStream_t, float*);
/// The same of prefill, and of the question for its path.
#define KVC_TEST_PREFILL(instance, Scalar, format)                                                                \
  instance void kvc::cuda::prefill<Scalar, kvc::cuda::Format::format>(                                            \
      const kvc::cuda::LayerView<kvc::cuda::Format::format>&, const kvc::cuda::Batch&, kvc::Index, const Scalar*, \
      Scalar*, const kvc::cuda::AttentionOptions&, cudaStream_t, float*, std::optional<kvc::cuda::PrefillBounds>, \
      kvc::cuda::PrefillKernel);                                                                                  \
  instance kvc::cuda::PrefillPath kvc::cuda::prefill_path<Scalar, kvc::cuda::Format::format>(                     \
      const kvc::cuda::LayerView<kvc::cuda::Format::format>&, kvc::cuda::PrefillKernel);

#define KVC_TEST_KERNELS_BF16(instance)          \
  KVC_TEST_DECODE(instance, __nv_bfloat16, bf16) \
  KVC_TEST_PREFILL(instance, __nv_bfloat16, bf16)
#define KVC_TEST_KERNELS_F16(instance)   \
  KVC_TEST_DECODE(instance, __half, f16) \
  KVC_TEST_PREFILL(instance, __half, f16)
#define KVC_TEST_KERNELS_OF_BYTES(instance)          \
  KVC_TEST_DECODE(instance, __nv_bfloat16, fp8_e4m3) \
  KVC_TEST_DECODE(instance, __half, fp8_e4m3)        \
  KVC_TEST_DECODE(instance, __nv_bfloat16, int8)     \
  KVC_TEST_DECODE(instance, __half, int8)            \
  KVC_TEST_PREFILL(instance, __nv_bfloat16, int8)    \
  KVC_TEST_PREFILL(instance, __half, fp8_e4m3)       \
  KVC_TEST_PREFILL(instance, float, f32)

KVC_TEST_KERNELS_BF16(extern template)
KVC_TEST_KERNELS_F16(extern template)
KVC_TEST_KERNELS_OF_BYTES(extern template)
