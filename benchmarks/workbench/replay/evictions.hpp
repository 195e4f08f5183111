// The eviction policies that a trace is replayed through. A new policy is added to these lists and nowhere else.
// Variants of the default policy lack one of its parts each, and so show the gain of that part.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>
#include <tuple>
#include <type_traits>

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

/// An eviction policy that a trace is replayed through, and how it is configured.
template <class E>
struct Configured {
  using Eviction = E;
  std::string_view name;
  typename E::Config config{};
};

/// The flat reference is called fifo already, and its counts differ: a library that may evict leaves only is another
/// policy.
template <class E>
inline constexpr std::string_view eviction_name =
    E::name == "fifo" ? std::string_view("fifo-chain") : std::string_view(E::name);

template <class... E>
constexpr auto each_by_default(std::tuple<E...>*) {
  return std::tuple(Configured<E>{eviction_name<E>}...);
}
using Evictions = std::tuple<kvc::ReuseHazard, kvc::Lru, kvc::Fifo, kvc::Lfu, kvc::S3Fifo, kvc::TinyLfu, kvc::CostAware,
                             kvc::Priority>;

/// The default without some of its parts, or with other parameters.
using Variant = Configured<kvc::ReuseHazard>;
inline constexpr auto variants = std::tuple(
    Variant{"hazard-unguarded", {.guarded = false}},  //
    Variant{"hazard-without-memory", {.remembers_evicted = false}}, Variant{"hazard-without-sizes", {.sizes = false}},
    Variant{"hazard-without-roles", {.roles = false}}, Variant{"hazard-without-tails", {.tails = false}},
    Variant{"hazard-full-trust", {.trust = 1, .largest_factor = 100}}, Variant{"hazard-half-trust", {.trust = 0.35}},
    Variant{"hazard-prior-20", {.prior_prompts = 20}}, Variant{"hazard-doubt-0", {.doubt = 0}},
    Variant{"hazard-doubt-2", {.doubt = 2}}, Variant{"hazard-smoothing-1", {.smoothing = 1}},
    Variant{"hazard-smoothing-6", {.smoothing = 6}}, Variant{"hazard-allowance-1/64", {.allowance = 1.0 / 64}},
    Variant{"hazard-allowance-1/16", {.allowance = 1.0 / 16}});

inline constexpr auto replayed = std::tuple_cat(each_by_default(static_cast<Evictions*>(nullptr)), variants);

/// The eviction policy of a PrefixShared.
template <class Policy>
struct EvictionOf;
template <class Eviction, class Hash, class Events>
struct EvictionOf<kvc::PrefixShared<Eviction, Hash, Events>> {
  using Type = Eviction;
};
using DefaultEviction = EvictionOf<kvc::PrefixShared<>>::Type;

inline constexpr auto eviction_names =
    std::apply([](const auto&... each) { return std::array{each.name...}; }, replayed);
/// The first of them are policies of the library, the others variants of its default.
inline constexpr std::size_t policies = std::tuple_size_v<Evictions>;

static_assert(
    []<class... E>(std::tuple<E...>*) {
      return (std::is_same_v<E, DefaultEviction> || ...) && (std::is_same_v<E, kvc::Lru> || ...);
    }(static_cast<Evictions*>(nullptr)),
    "the library's default and the reference of the gap are always replayed");

}  // namespace replay
