// Upload: host data to device memory at a fixed address, step after step, without waiting for the device.
//
// What the host writes goes through one of two pinned buffers in turn. A buffer is written again only when the copy
// that read it has ended: the host waits if it is more than one upload ahead of the device. On the device the copy is
// ordered by the stream, so kernels launched before it still read what was there before, and those launched after it
// read the new. Memory is allocated at construction and never later.
//
// Also PinnedBuffer, host memory that the device reads and writes at its own address.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

#include "kvc/core/error.hpp"
#include "kvc/cuda/check.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Page-locked host memory. Kernels may be given its address.
class PinnedBuffer {
 public:
  /// Throws OutOfMemory.
  explicit PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
    void* p = nullptr;
    detail::check_allocation(cudaHostAlloc(&p, bytes == 0 ? 1 : bytes, cudaHostAllocPortable), "cudaHostAlloc", bytes);
    data_ = static_cast<std::byte*>(p);
  }
  ~PinnedBuffer() { detail::report(cudaFreeHost(data_), "cudaFreeHost"); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  [[nodiscard]] std::byte* data() noexcept { return data_; }
  [[nodiscard]] const std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

 private:
  std::size_t bytes_;
  std::byte* data_ = nullptr;
};

/// Device memory at one address, not initialised.
class DeviceBuffer {
 public:
  /// Throws OutOfMemory.
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
    void* p = nullptr;
    detail::check_allocation(cudaMalloc(&p, bytes == 0 ? 1 : bytes), "cudaMalloc", bytes);
    data_ = static_cast<std::byte*>(p);
  }
  ~DeviceBuffer() { detail::report(cudaFree(data_), "cudaFree"); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

 private:
  std::size_t bytes_;
  std::byte* data_ = nullptr;
};

class Upload {
 public:
  /// Room for `bytes`, on the current device.
  explicit Upload(std::size_t bytes) : device_(bytes), staging_{Staging(bytes), Staging(bytes)} {}

  /// Where it arrives. The same for the life of the object.
  [[nodiscard]] std::byte* device() const noexcept { return device_.data(); }

  /// The buffer to fill, of the size given at construction: what it holds is of some earlier upload. Waits until the
  /// device has read that. Must not be called while `stream` is being captured.
  [[nodiscard]] std::byte* begin(cudaStream_t stream) {
    detail::require_no_capture(stream, "an upload");
    Staging& next = staging_[current_];
    KVC_CUDA(cudaEventSynchronize(next.read));
    return next.host.data();
  }
  /// Sends bytes [first, last) of the buffer that `begin` gave to the same place on the device.
  void send(std::size_t first, std::size_t last, cudaStream_t stream) {
    if (first < last) {
      KVC_CUDA(cudaMemcpyAsync(device_.data() + first, staging_[current_].host.data() + first, last - first,
                               cudaMemcpyHostToDevice, stream));
    }
  }
  /// Ends the upload: the next `begin` gives the other buffer.
  void end(cudaStream_t stream) {
    KVC_CUDA(cudaEventRecord(staging_[current_].read, stream));
    current_ = 1 - current_;
  }

 private:
  struct Staging {
    explicit Staging(std::size_t bytes) : host(bytes) {
      KVC_CUDA(cudaEventCreateWithFlags(&read, cudaEventDisableTiming));
    }
    ~Staging() {
      detail::report(cudaEventSynchronize(read), "cudaEventSynchronize");  // a copy may still read the buffer
      detail::report(cudaEventDestroy(read), "cudaEventDestroy");
    }
    Staging(const Staging&) = delete;
    Staging& operator=(const Staging&) = delete;
    PinnedBuffer host;
    cudaEvent_t read = nullptr;
  };

  DeviceBuffer device_;
  Staging staging_[2];
  int current_ = 0;
};

/// Arrays one behind the other in one range of memory, each at a multiple of 16 bytes.
class BufferLayout {
 public:
  /// Makes room for `count` objects of T; returns where.
  template <class T>
  [[nodiscard]] std::size_t add(Index count) noexcept {
    const std::size_t at = bytes_;
    bytes_ = (bytes_ + static_cast<std::size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return at;
  }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

namespace detail {
/// Copies an array to its section; returns where it ends.
template <class T>
std::size_t put(std::byte* buffer, std::size_t at, std::span<const T> from) noexcept {
  if (!from.empty()) {
    std::memcpy(buffer + at, from.data(), from.size_bytes());
  }
  return at + from.size_bytes();
}
}  // namespace detail

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
