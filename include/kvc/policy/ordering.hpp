// Orders in which a scheduler can take waiting requests: indices into its list, stable for equal requests.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <functional>
#include <numeric>
#include <ranges>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/open_options.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {
struct NoOptions {
  OpenOptions operator()(const auto&) const { return {}; }
};
}  // namespace detail

/// Earliest first: arrival_of(request) is any value with an order. Fair, and ignores the cache. O(n log n).
template <std::ranges::random_access_range R, class Arrival>
[[nodiscard]] std::vector<std::size_t> order_of_arrival(const R& requests, Arrival arrival_of) {
  std::vector<std::size_t> order(static_cast<std::size_t>(std::ranges::size(requests)));
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, std::less<>{}, [&](std::size_t i) {
    return std::invoke(arrival_of, std::ranges::begin(requests)[static_cast<std::ranges::range_difference_t<R>>(i)]);
  });
  return order;
}

/// Most cached tokens first: requests that share a prefix follow one another while it is there (Zheng et al., SGLang,
/// NeurIPS 2024, section 3). Requests without a cached prefix wait while there are others: limit how long. The order is
/// of now: admitting one request may change the match of another. O(tokens of all prompts + n log n).
///   prompt_of(request)   a range that lives as long as the request: a span, or a reference to a vector of tokens
///   options_of(request)  the OpenOptions to open it with
template <class P, std::ranges::random_access_range R, class PromptOf, class OptionsOf = detail::NoOptions>
  requires MatchesPrefixes<P> &&
           std::ranges::borrowed_range<std::invoke_result_t<PromptOf&, std::ranges::range_reference_t<const R>>>
[[nodiscard]] std::vector<std::size_t> longest_prefix_first(const P& policy, const R& requests, PromptOf prompt_of,
                                                            OptionsOf options_of = {}) {
  std::vector<std::pair<Pos, std::size_t>> matched;
  for (std::size_t i = 0; i < static_cast<std::size_t>(std::ranges::size(requests)); ++i) {
    const auto& request = std::ranges::begin(requests)[static_cast<std::ranges::range_difference_t<R>>(i)];
    const std::span<const Token> prompt = std::invoke(prompt_of, request);
    matched.emplace_back(policy.match_length(prompt, std::invoke(options_of, request)), i);
  }
  std::ranges::stable_sort(matched, std::greater<>{}, [](const auto& m) { return m.first; });
  std::vector<std::size_t> order;
  order.reserve(matched.size());
  for (const auto& [length, i] : matched) {
    order.push_back(i);
  }
  return order;
}

}  // namespace v0
}  // namespace kvc
