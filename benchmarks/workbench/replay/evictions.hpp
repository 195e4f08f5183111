// The eviction policies of the library that a trace is replayed through: these lists are the one place to add one. And
// the default without some of its parts, which shows what each is worth.
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

struct WithoutMemory : kvc::ReuseHazard {
  static constexpr std::string_view name = "hazard-without-memory";
  explicit WithoutMemory(kvc::Index blocks) : ReuseHazard(blocks, {.remembers_evicted = false}) {}
};
struct WithoutSizes : kvc::ReuseHazard {
  static constexpr std::string_view name = "hazard-without-sizes";
  explicit WithoutSizes(kvc::Index blocks) : ReuseHazard(blocks, {.sizes = false}) {}
};
struct WithoutTails : kvc::ReuseHazard {
  static constexpr std::string_view name = "hazard-without-tails";
  explicit WithoutTails(kvc::Index blocks) : ReuseHazard(blocks, {.tails = false}) {}
};
struct FullTrust : kvc::ReuseHazard {
  static constexpr std::string_view name = "hazard-full-trust";
  explicit FullTrust(kvc::Index blocks) : ReuseHazard(blocks, {.trust = 1, .largest_factor = 100}) {}
};
struct HalfTrust : kvc::ReuseHazard {
  static constexpr std::string_view name = "hazard-half-trust";
  explicit HalfTrust(kvc::Index blocks) : ReuseHazard(blocks, {.trust = 0.35}) {}
};
struct WeakPrior : kvc::ReuseHazard {
  static constexpr std::string_view name = "hazard-prior-5";
  explicit WeakPrior(kvc::Index blocks) : ReuseHazard(blocks, {.prior_prompts = 5}) {}
};
struct StrongPrior : kvc::ReuseHazard {
  static constexpr std::string_view name = "hazard-prior-80";
  explicit StrongPrior(kvc::Index blocks) : ReuseHazard(blocks, {.prior_prompts = 80}) {}
};
struct LessSmoothing : kvc::ReuseHazard {
  static constexpr std::string_view name = "hazard-smoothing-1";
  explicit LessSmoothing(kvc::Index blocks) : ReuseHazard(blocks, {.smoothing = 1}) {}
};
struct MoreSmoothing : kvc::ReuseHazard {
  static constexpr std::string_view name = "hazard-smoothing-6";
  explicit MoreSmoothing(kvc::Index blocks) : ReuseHazard(blocks, {.smoothing = 6}) {}
};
using Variants = std::tuple<WithoutMemory, WithoutSizes, WithoutTails, FullTrust, HalfTrust, WeakPrior, StrongPrior,
                            LessSmoothing, MoreSmoothing>;

using Replayed = decltype(std::tuple_cat(std::declval<Evictions>(), std::declval<Variants>()));

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
inline constexpr std::string_view eviction_name =
    Eviction::name == "fifo" ? std::string_view("fifo-chain") : std::string_view(Eviction::name);

inline constexpr auto eviction_names = []<std::size_t... i>(std::index_sequence<i...>) {
  return std::array{eviction_name<std::tuple_element_t<i, Replayed>>...};
}(std::make_index_sequence<std::tuple_size_v<Replayed>>{});
/// The first of them are policies of the library, the others variants of its default.
inline constexpr std::size_t policies = std::tuple_size_v<Evictions>;

static_assert(
    []<class... E>(std::tuple<E...>*) {
      return (std::is_same_v<E, DefaultEviction> || ...) && (std::is_same_v<E, kvc::Lru> || ...);
    }(static_cast<Evictions*>(nullptr)),
    "the library's default and the reference of the gap are always replayed");

}  // namespace replay
