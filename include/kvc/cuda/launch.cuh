// launch: starts a kernel and checks that it was started.
#pragma once

#include <cstddef>
#include <type_traits>

#include "kvc/cuda/check.cuh"

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

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
