// The states of recurrent layers of a cache in device memory: bytes for kernels of the model's own.
//
//   for (const kvc::Pos length : cache.states_to_write(append)) {
//     my_kernel<<<...>>>(cuda::state(cache, layer, append.seq()).data(), ...,
//                        cuda::state_to_write(cache, layer, append, length).data());
//   }
//
// They are ordinary device memory, so cudaMemcpyAsync moves them, too. This header needs no CUDA.
#pragma once

#include <cstddef>
#include <span>

#include "kvc/cache.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/view.cuh"
#include "kvc/element/element.hpp"
#include "kvc/policy/capabilities.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Device memory with the state of a recurrent layer after `length` tokens of a sequence, at a multiple of 64 bytes;
/// empty for length 0. Valid as long as the sequence has that state. Throws std::invalid_argument as KvCache::state.
template <ElementType T, HoldsStates P, Layout L, QueuesCopies S>
[[nodiscard]] std::span<const std::byte> state(const KvCache<T, P, L, S>& cache, Index layer, SeqId seq, Pos length) {
  return cache.state(layer, seq, length);
}
/// The same after the committed tokens: what the next pass begins from.
template <ElementType T, HoldsStates P, Layout L, QueuesCopies S>
[[nodiscard]] std::span<const std::byte> state(const KvCache<T, P, L, S>& cache, Index layer, SeqId seq) {
  return cache.state(layer, seq);
}
/// Device memory for the state of a recurrent layer after `length` tokens, one of cache.states_to_write(append), to be
/// written by the stream of the cache's space before the commit. Launches the queued copies of the cache first: they
/// may be of blocks that are now those of states. Throws std::invalid_argument as KvCache::state_to_write; Error.
template <ElementType T, HoldsStates P, Layout L, QueuesCopies S>
[[nodiscard]] std::span<std::byte> state_to_write(KvCache<T, P, L, S>& cache, Index layer,
                                                  const typename KvCache<T, P, L, S>::Append& append, Pos length) {
  const std::span<std::byte> state = cache.state_to_write(layer, append, length);
  cache.space().flush();
  return state;
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
