// The policy of real runs that share prefixes.
#pragma once

#include "kvc/policy/prefix_shared.hpp"

#if defined(KVC_HAVE_SODIUM)
#include "kvc/policy/events.hpp"
#endif

namespace serving {

/// With slower tiers, which listen to its events; without them nobody listens.
#if defined(KVC_HAVE_SODIUM)
using RealPrefixShared = kvc::PrefixShared<kvc::ReuseHazard, kvc::ChainHash, kvc::EventCallback>;
#else
using RealPrefixShared = kvc::PrefixShared<>;
#endif

}  // namespace serving
