// Streams and arrays in device memory, for tests.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "kvc/cuda/check.cuh"
#include "kvc/cuda/upload.cuh"

namespace kvc_test {

/// A stream that ends with its scope.
class Stream {
 public:
  Stream() { KVC_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { (void)cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }  // NOLINT: stands for it
  void wait() const { KVC_CUDA(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Copies to device memory and waits for completion. cudaMemcpy from pageable memory may return earlier, and streams
/// other than the default one would not wait for it.
inline void to_device(void* to, const void* from, std::size_t bytes) {
  KVC_CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
  KVC_CUDA(cudaDeviceSynchronize());
}

/// An array in device memory, filled with NaN at first.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count), memory_(count * sizeof(T)) {
    KVC_CUDA(cudaMemset(memory_.data(), 0xff, count * sizeof(T)));
    KVC_CUDA(cudaDeviceSynchronize());
  }
  explicit DeviceArray(const std::vector<T>& from) : DeviceArray(from.size()) {
    to_device(memory_.data(), from.data(), from.size() * sizeof(T));
  }
  [[nodiscard]] T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  [[nodiscard]] std::size_t size() const { return count_; }
  /// The content after everything that was launched.
  [[nodiscard]] std::vector<T> host() const {
    std::vector<T> all(count_);
    KVC_CUDA(cudaDeviceSynchronize());
    KVC_CUDA(cudaMemcpy(all.data(), memory_.data(), count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return all;
  }

 private:
  std::size_t count_;
  kvc::cuda::DeviceBuffer memory_;
};

}  // namespace kvc_test
