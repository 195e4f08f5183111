// A CUDA runtime for tests of the host side without a GPU and without nvcc: memory is host memory, a stream is a list
// of operations, and a kernel runs by the emulation. Include emulate_hopper.hpp before any header that includes this.
//
// Operations of a stream run as late as they may: when somebody waits for the stream or for an event on it. So a host
// buffer that is changed too early is read too late, as on a GPU. While a stream is captured they go to a graph, which
// runs them again and again. Each call is counted, and the next call of a function can be made to fail.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorCudartUnloading = 4,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorIllegalAddress = 700
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess, cudaDriverEntryPointSymbolNotFound };
struct cudaFuncAttributes {
  int numRegs, ptxVersion, binaryVersion;
};
inline constexpr unsigned cudaHostAllocPortable = 1, cudaEventDisableTiming = 2, cudaEnableDefault = 0;
#define CUDART_VERSION 13000

namespace kvc_runtime {

struct Stream {
  std::vector<std::function<void()>> waiting;  // operations that have not run
  std::vector<std::function<void()>>* graph = nullptr;
  std::size_t ran = 0;  // operations that have
};
struct Event {
  Stream* stream = nullptr;
  std::size_t after = 0;  // operations of the stream
};

/// A kernel that was launched.
struct Launch {
  std::string name;
  dim3 grid;
  unsigned threads;
  std::size_t shared_bytes;
  bool dependent;  // may begin before the launch before it has ended
};

/// What the driver answers, what was asked for, and what shall fail.
struct Runtime {
  int processors = 3;
  int resident = 2;              // thread blocks of any kernel on a multiprocessor
  int registers = 168;           // of any kernel
  int code_version = 90;         // of any kernel: the compute capability that it was compiled for
  int shared_bytes = 227 << 10;  // that a thread block may have
  bool makes_tensor_maps = true;

  std::map<std::string, int> calls;
  std::vector<Launch> launches;
  std::map<std::string, cudaError_t> fails;  // once, by the name of the function or of the kernel
  cudaError_t sticky = cudaSuccess;          // what every call returns from now on
  cudaError_t last = cudaSuccess;
  std::set<void*> memory;  // that is allocated
  Stream of_default;

  /// Counts a call; its error.
  [[nodiscard]] cudaError_t called(const std::string& name) {
    ++calls[name];
    if (sticky != cudaSuccess) {
      return last = sticky;
    }
    if (const auto at = fails.find(name); at != fails.end()) {
      last = at->second;
      fails.erase(at);
      return last;
    }
    return cudaSuccess;
  }
  /// All calls but those of these names.
  [[nodiscard]] int calls_but(const std::set<std::string>& names) const {
    int sum = 0;
    for (const auto& [name, count] : calls) {
      sum += names.count(name) == 0 ? count : 0;
    }
    return sum;
  }
};
inline Runtime& runtime() {
  static Runtime one;
  return one;
}
inline Stream& stream_of(Stream* stream) { return stream == nullptr ? runtime().of_default : *stream; }
inline void enqueue(Stream* stream, std::function<void()> operation) {
  Stream& to = stream_of(stream);
  (to.graph == nullptr ? to.waiting : *to.graph).push_back(std::move(operation));
}
inline void run_until(Stream& stream, std::size_t count) {
  while (stream.ran < count && !stream.waiting.empty()) {
    const auto operation = std::move(stream.waiting.front());
    stream.waiting.erase(stream.waiting.begin());
    operation();
    ++stream.ran;
  }
}
inline void wait(Stream* stream) { run_until(stream_of(stream), static_cast<std::size_t>(-1)); }
inline cudaError_t allocate(const char* name, void** p, std::size_t bytes) {
  const cudaError_t status = runtime().called(name);
  if (status == cudaSuccess) {
    *p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(*p, 0xff, bytes);
    runtime().memory.insert(*p);
  }
  return status;
}
inline cudaError_t release(const char* name, void* p) {
  const cudaError_t status = runtime().called(name);
  runtime().memory.erase(p);
  std::free(p);
  return status;
}
/// kernel<<<grid, threads, bytes, stream>>>(arguments...): body() is the call of one thread.
inline void launch(const char* name, dim3 grid, unsigned threads, std::size_t bytes, Stream* stream,
                   std::function<void()> body, bool dependent = false) {
  if (runtime().called(name) != cudaSuccess) {
    return;  // cudaGetLastError has it
  }
  runtime().launches.push_back({name, grid, threads, bytes, dependent});
  enqueue(stream, [=, body = std::move(body)] { kvc_emulation::launch(grid, threads, body); });
}

}  // namespace kvc_runtime

using cudaStream_t = kvc_runtime::Stream*;
using cudaEvent_t = kvc_runtime::Event*;

inline cudaError_t cudaGetLastError() {
  auto& runtime = kvc_runtime::runtime();
  ++runtime.calls["cudaGetLastError"];
  const cudaError_t last = runtime.last;
  runtime.last = runtime.sticky;
  return last;
}
inline const char* cudaGetErrorName(cudaError_t code) {
  return code == cudaErrorMemoryAllocation       ? "cudaErrorMemoryAllocation"
         : code == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
         : code == cudaErrorIllegalAddress       ? "cudaErrorIllegalAddress"
                                                 : "cudaErrorInvalidValue";
}
inline const char* cudaGetErrorString(cudaError_t) { return "as the test asked for"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return kvc_runtime::runtime().called("cudaGetDevice");
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  const auto& runtime = kvc_runtime::runtime();
  *value = which == cudaDevAttrMultiProcessorCount ? runtime.processors : runtime.shared_bytes;
  return kvc_runtime::runtime().called("cudaDeviceGetAttribute");
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, std::size_t) {
  *blocks = kvc_runtime::runtime().resident;
  return kvc_runtime::runtime().called("cudaOccupancyMaxActiveBlocksPerMultiprocessor");
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  const auto& runtime = kvc_runtime::runtime();
  *attributes = {runtime.registers, runtime.code_version, runtime.code_version};
  return kvc_runtime::runtime().called("cudaFuncGetAttributes");
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return kvc_runtime::runtime().called("cudaFuncSetAttribute");
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** p, unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* found);  // cuda.h

inline cudaError_t cudaMalloc(void** p, std::size_t bytes) { return kvc_runtime::allocate("cudaMalloc", p, bytes); }
inline cudaError_t cudaMallocAsync(void** p, std::size_t bytes, cudaStream_t) {
  return kvc_runtime::allocate("cudaMallocAsync", p, bytes);
}
inline cudaError_t cudaHostAlloc(void** p, std::size_t bytes, unsigned) {
  return kvc_runtime::allocate("cudaHostAlloc", p, bytes);
}
inline cudaError_t cudaFree(void* p) { return kvc_runtime::release("cudaFree", p); }
inline cudaError_t cudaFreeHost(void* p) { return kvc_runtime::release("cudaFreeHost", p); }
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  kvc_runtime::wait(stream);
  return kvc_runtime::release("cudaFreeAsync", p);
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  const cudaError_t status = kvc_runtime::runtime().called("cudaMemcpyAsync");
  if (status == cudaSuccess) {
    kvc_runtime::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  }
  return status;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status =
      kvc_runtime::stream_of(stream).graph == nullptr ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  return kvc_runtime::runtime().called("cudaStreamIsCapturing");
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new kvc_runtime::Event;
  return kvc_runtime::runtime().called("cudaEventCreateWithFlags");
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return kvc_runtime::runtime().called("cudaEventDestroy");
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  auto& of = kvc_runtime::stream_of(stream);
  *event = {&of, of.ran + of.waiting.size()};
  return kvc_runtime::runtime().called("cudaEventRecord");
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->stream != nullptr) {
    kvc_runtime::run_until(*event->stream, event->after);
  }
  return kvc_runtime::runtime().called("cudaEventSynchronize");
}
