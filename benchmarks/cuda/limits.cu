// The limits of the card as NVIDIA's own code reaches them: copies within device memory, and bf16 matrix products.
#include <cublas_v2.h>

#include <cstdlib>

#include "bench.hpp"
#include "kvc/cuda/upload.cuh"

namespace {
void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    std::fprintf(stderr, "%s failed: %d\n", call, static_cast<int>(status));
    std::exit(1);
  }
}
}  // namespace

int main() {
  using namespace kvc_bench;
  cudaStream_t stream = nullptr;
  KVC_CUDA(cudaStreamCreate(&stream));
  cudaDeviceProp device{};
  KVC_CUDA(cudaGetDeviceProperties(&device, 0));
  int driver = 0, runtime = 0;
  KVC_CUDA(cudaDriverGetVersion(&driver));
  KVC_CUDA(cudaRuntimeGetVersion(&runtime));
  std::printf("card\t%s, %d multiprocessors, %zu MiB, L2 %d MiB, driver for CUDA %d.%d, runtime %d.%d\n", device.name,
              device.multiProcessorCount, device.totalGlobalMem >> 20, device.l2CacheSize >> 20, driver / 1000,
              driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  {
    const std::size_t bytes = std::size_t{2} << 30;
    const kvc::cuda::DeviceBuffer from(2 * bytes), to(bytes);
    fill<Format::bf16>(from.data(), static_cast<Index>(2 * bytes), 256, stream);
    report("limit: copy", "bytes", 2.0 * static_cast<double>(bytes), times(stream, 20, [&](int i) {
             KVC_CUDA(cudaMemcpyAsync(to.data(), from.data() + (i % 2 == 0 ? 0 : bytes), bytes,
                                      cudaMemcpyDeviceToDevice, stream));
           }));
  }
  {
    constexpr int n = 8192;
    const std::size_t bytes = std::size_t{n} * n * 2;
    const kvc::cuda::DeviceBuffer a(2 * bytes), b(2 * bytes), c(bytes);
    fill<Format::bf16>(a.data(), static_cast<Index>(2 * bytes), 256, stream);
    fill<Format::bf16>(b.data(), static_cast<Index>(2 * bytes), 256, stream);
    cublasHandle_t handle = nullptr;
    check(cublasCreate(&handle), "cublasCreate");
    check(cublasSetStream(handle, stream), "cublasSetStream");
    const float one = 1, zero = 0;
    report("limit: gemm bf16", "flops", 2.0 * n * n * n, times(stream, 20, [&](int i) {
             const std::size_t at = i % 2 == 0 ? 0 : bytes;
             check(cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, a.data() + at, CUDA_R_16BF, n,
                                b.data() + at, CUDA_R_16BF, n, &zero, c.data(), CUDA_R_16BF, n, CUBLAS_COMPUTE_32F,
                                CUBLAS_GEMM_DEFAULT),
                   "cublasGemmEx");
           }));
    check(cublasDestroy(handle), "cublasDestroy");
  }
  return 0;
}
