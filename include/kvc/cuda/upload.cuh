// Upload: copies host data to device memory at a fixed address, step after step, without waiting for the device. Also
// PinnedBuffer and DeviceBuffer, which own memory.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/check.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Page-locked host memory, which kernels can access at the same address. Not copyable.
class PinnedBuffer {
 public:
  /// Memory is not initialised. Throws OutOfMemory, Error.
  explicit PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
    void* p = nullptr;
    detail::check_allocation(cudaHostAlloc(&p, bytes == 0 ? 1 : bytes, cudaHostAllocPortable), "cudaHostAlloc", bytes);
    data_ = static_cast<std::byte*>(p);
  }
  ~PinnedBuffer() { detail::report(cudaFreeHost(data_), "cudaFreeHost"); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  /// The first byte.
  [[nodiscard]] std::byte* data() noexcept { return data_; }
  /// The first byte.
  [[nodiscard]] const std::byte* data() const noexcept { return data_; }
  /// Bytes.
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

 private:
  std::size_t bytes_;
  std::byte* data_ = nullptr;
};

/// Device memory at a fixed address, not initialised. Not copyable.
class DeviceBuffer {
 public:
  /// Throws OutOfMemory, Error.
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
    void* p = nullptr;
    detail::check_allocation(cudaMalloc(&p, bytes == 0 ? 1 : bytes), "cudaMalloc", bytes);
    data_ = static_cast<std::byte*>(p);
  }
  ~DeviceBuffer() { detail::report(cudaFree(data_), "cudaFree"); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  /// The first byte, in device memory.
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  /// Bytes.
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

 private:
  std::size_t bytes_;
  std::byte* data_ = nullptr;
};

/// Uploads data of varying content to a fixed device address.
///
/// The host writes to two pinned buffers alternately. A buffer is reused only after the copy that read it has
/// completed, so the host waits only if two uploads are still in flight. On the device the stream orders the copy:
/// kernels launched before read the old data, later ones the new. All memory is allocated at construction.
class Upload {
 public:
  /// Allocates `bytes` on the current device, and twice as much pinned memory. Throws OutOfMemory, Error.
  explicit Upload(std::size_t bytes) : device_(bytes), staging_{Staging(bytes), Staging(bytes)} {}

  /// The device address of the data. Constant for the life of the object.
  [[nodiscard]] std::byte* device() const noexcept { return device_.data(); }

  /// The host buffer to fill, as large as given at construction; its content is undefined. Waits until the device has
  /// read its previous content. Throws std::invalid_argument while `stream` is being captured.
  [[nodiscard]] std::byte* begin(cudaStream_t stream) {
    detail::require_no_capture(stream, "an upload");
    Staging& next = staging_[current_];
    KVC_CUDA(cudaEventSynchronize(next.read));
    return next.host.data();
  }
  /// Copies bytes [first, last) of the buffer to the same offset on the device.
  void send(std::size_t first, std::size_t last, cudaStream_t stream) {
    if (first < last) {
      KVC_CUDA(cudaMemcpyAsync(device_.data() + first, staging_[current_].host.data() + first, last - first,
                               cudaMemcpyHostToDevice, stream));
    }
  }
  /// Ends the upload; the next begin() returns the other buffer.
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

/// Offsets of arrays that lie in one buffer, each aligned to 16 bytes.
class BufferLayout {
 public:
  /// Reserves space for `count` objects of T and returns its offset.
  template <class T>
  [[nodiscard]] std::size_t add(Index count) noexcept {
    const std::size_t at = bytes_;
    bytes_ = (bytes_ + static_cast<std::size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return at;
  }
  /// Bytes of the buffer that all arrays need.
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

namespace detail {
/// Copies an array to offset `at` of a buffer; returns the offset behind it.
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
