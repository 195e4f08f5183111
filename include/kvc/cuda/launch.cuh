// launch: starts a kernel and checks that it was started; launch_dependent: one that may begin while the kernel before
// it still runs (programmatic dependent launch).
#pragma once

#include <cstddef>
#include <type_traits>

#include "kvc/cuda/check.cuh"
#include "kvc/cuda/remembered.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// kernel<<<grid, threads, shared_bytes, stream>>>(arguments...). Throws Error, naming the kernel, if it cannot be
/// launched; errors while it runs surface in a later call. Tests without a GPU have a runtime of their own
/// (tests/cuda/runtime).
template <class... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared_bytes,
            cudaStream_t stream, const std::type_identity_t<Parameters>&... arguments) {
#if defined(__CUDACC__)
  kernel<<<grid, static_cast<unsigned>(threads), shared_bytes, stream>>>(arguments...);
#else
  kvc_runtime::launch(name, grid, static_cast<unsigned>(threads), shared_bytes, stream, [=] { kernel(arguments...); });
#endif
  check_launch(name);
}

/// Whether the current device runs a kernel by code for compute capability 9.0 or later, which can wait for launches
/// before it. `known` is that kernel's own. Throws Error.
template <class Kernel>
[[nodiscard]] bool waits_for_launches(PerDevice& known, Kernel kernel) {
  return known.get(current_device(), [kernel] {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
    return attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90 ? 1 : 0;
  }) != 0;
}

/// As launch, but the kernel may begin when all thread blocks of the launch before it in the stream have called
/// device::release_dependents or ended. It must call device::wait_for_launches_before in all of its threads, before it
/// reads what that launch writes. An ordinary launch where the device, or its code, knows no such thing.
template <class... Parameters>
void launch_dependent(PerDevice& known, const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
                      std::size_t shared_bytes, cudaStream_t stream,
                      const std::type_identity_t<Parameters>&... arguments) {
  if (!waits_for_launches(known, kernel)) {
    return launch(name, kernel, grid, threads, shared_bytes, stream, arguments...);
  }
#if defined(__CUDACC__)
  cudaLaunchAttribute overlaps{};
  overlaps.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlaps.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlaps;
  config.numAttrs = 1;
  (void)cudaLaunchKernelEx(&config, kernel, arguments...);  // check_launch reports its error
#else
  kvc_runtime::launch(
      name, grid, static_cast<unsigned>(threads), shared_bytes, stream, [=] { kernel(arguments...); }, true);
#endif
  check_launch(name);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
