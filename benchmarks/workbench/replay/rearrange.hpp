// Other traces out of one, to see whether a result is one of the trace or of the policy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "trace.hpp"

namespace replay {

/// Leaves the requests of one of `of` equal parts, numbered from 1.
void keep_part(kvc_bench::Trace& trace, std::size_t number, std::size_t of);

/// Conversations swap their starts at random and keep the times between their own requests. A conversation is what has
/// its second block in common (the first, if there is only one): the first is often a system prompt.
void shuffle(kvc_bench::Trace& trace, std::uint64_t seed);

}  // namespace replay
