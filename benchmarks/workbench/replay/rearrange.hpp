// Rearranged traces, to tell whether a result comes from the trace or from the policy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "trace.hpp"

namespace replay {

/// Keeps the requests of part `number` of `of` equal parts, from 1.
void keep_part(kvc_bench::Trace& trace, std::size_t number, std::size_t of);

/// Sessions swap their starts at random and keep the times between their own requests. Requests that share their
/// second block (the first, if there is only one) are a session: the first block is often a system prompt.
void shuffle(kvc_bench::Trace& trace, std::uint64_t seed);

}  // namespace replay
