// The eviction policies of the library that a trace is replayed through. This list is the one place to add one.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kvc/policy/eviction/cost_aware.hpp"
#include "kvc/policy/eviction/fifo.hpp"
#include "kvc/policy/eviction/lfu.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/eviction/priority.hpp"
#include "kvc/policy/eviction/reuse_hazard.hpp"
#include "kvc/policy/eviction/s3_fifo.hpp"
#include "kvc/policy/eviction/tiny_lfu.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace replay {

using Evictions = std::tuple<kvc::ReuseHazard, kvc::Lru, kvc::Fifo, kvc::Lfu, kvc::S3Fifo, kvc::TinyLfu, kvc::CostAware,
                             kvc::Priority>;

/// What PrefixShared<> evicts with.
template <class Policy>
struct EvictionOf;
template <class Eviction, class Hash, class Events>
struct EvictionOf<kvc::PrefixShared<Eviction, Hash, Events>> {
  using Type = Eviction;
};
using DefaultEviction = EvictionOf<kvc::PrefixShared<>>::Type;

/// The flat reference is called fifo already, and its counts differ: a library that may evict leaves only is another
/// policy.
template <class Eviction>
inline constexpr std::string_view eviction_name = Eviction::name == "fifo" ? std::string_view("fifo-chain")
                                                                           : std::string_view(Eviction::name);

inline constexpr auto eviction_names = []<std::size_t... i>(std::index_sequence<i...>) {
  return std::array{eviction_name<std::tuple_element_t<i, Evictions>>...};
}
(std::make_index_sequence<std::tuple_size_v<Evictions>>{});

static_assert(
    []<class... E>(std::tuple<E...>*) {
      return (std::is_same_v<E, DefaultEviction> || ...) && (std::is_same_v<E, kvc::Lru> || ...);
    }(static_cast<Evictions*>(nullptr)),
    "the library's default and the reference of the gap are always replayed");

}  // namespace replay
