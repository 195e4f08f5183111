// Error checks for calls of the CUDA runtime: each failure is an exception that names the call and the reason.
#pragma once

#if !__has_include(<cuda_runtime_api.h>)
#error "kvc/cuda needs the CUDA toolkit: compile with nvcc, or add the toolkit's include folder"
#endif
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>
#include <new>
#include <stdexcept>

#include "kvc/core/error.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// A call of the CUDA runtime, or a kernel launch, failed. what() names the call, the code and its description.
class Error : public std::runtime_error {
 public:
  /// The error of a call of the CUDA runtime.
  Error(const char* call, cudaError_t code)
      : std::runtime_error(
            kvc::detail::concat({"kvc: ", call, " failed: ", cudaGetErrorName(code), ", ", cudaGetErrorString(code)})),
        code_(code) {}
  /// The code that the call returned.
  [[nodiscard]] cudaError_t code() const noexcept { return code_; }

 private:
  cudaError_t code_;
};

/// The device, or pinned host memory, cannot provide so many bytes.
class OutOfMemory : public std::bad_alloc {
 public:
  /// The failure to allocate so many bytes.
  OutOfMemory(const char* call, std::size_t bytes) noexcept {
    std::snprintf(message_, sizeof message_, "kvc: %s failed: no %zu bytes of memory", call, bytes);
  }
  [[nodiscard]] const char* what() const noexcept override { return message_; }

 private:
  char message_[128];
};

namespace detail {
inline void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) [[unlikely]] {
    (void)cudaGetLastError();  // clears it, so that the next check reports the next error
    throw_error(Error(call, status));
  }
}
inline void check_allocation(cudaError_t status, const char* call, std::size_t bytes) {
  if (status == cudaErrorMemoryAllocation) [[unlikely]] {
    (void)cudaGetLastError();
    throw_error(OutOfMemory(call, bytes));
  }
  check(status, call);
}
/// Checks the launch just before, kernel<<<...>>>(...). Errors while the kernel runs surface in a later call.
inline void check_launch(const char* kernel) {
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) [[unlikely]] {
    throw_error(Error(kvc::detail::concat({"the launch of ", kernel}).c_str(), status));
  }
}
/// The number of the current device.
[[nodiscard]] inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}
/// Whether the stream is being captured into a graph.
[[nodiscard]] inline bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}
/// For destructors: prints an error instead of throwing. A driver that is already shut down is not an error.
inline void report(cudaError_t status, const char* call) noexcept {
  if (status != cudaSuccess && status != cudaErrorCudartUnloading) {
    std::fprintf(stderr, "kvc: %s failed: %s\n", call, cudaGetErrorString(status));
  }
}
/// Throws std::invalid_argument if the stream is being captured into a graph.
inline void require_no_capture(cudaStream_t stream, const char* operation) {
  require(!is_captured(stream), kvc::detail::concat({"the stream of ", operation}), "being captured",
          "outside of a capture: call it before the graph is captured or launched");
}
}  // namespace detail

}  // namespace cuda
}  // namespace v0
}  // namespace kvc

/// Evaluates a call of the CUDA runtime; throws kvc::cuda::Error unless it returns cudaSuccess.
#define KVC_CUDA(call) ::kvc::cuda::detail::check((call), #call)
