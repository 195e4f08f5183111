// The calls of KvCache: checks of their arguments, and the error where there is no room.
#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "kvc/cache/pool_layout.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/token_span.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/policy/capabilities.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The policy of a cache of T. Throws std::invalid_argument if P cannot hold these layers.
template <class T, class P>
[[nodiscard]] P make_policy(const LayerGroups& layers, const typename P::Config& config) {
  require(layers.layers() > 0, "layers", layers.layers(), "at least 1");
  require(HoldsStates<P> || layers.states().empty(), "layers.states().size()", layers.states().size(),
          concat({"0: ", P::name, " holds no recurrent states"}));
  const GroupRules rules = kvc::Element<T>::row_size(1) > 0 ? layers.rules(row_bytes<T>) : layers.rules();
  if constexpr (HoldsGroups<P>) {
    return P(config, rules);
  } else {
    require(rules.is_plain(), "layers", std::to_string(rules.groups.size()) + " group(s)",
            concat({"one group of full attention: ", P::name, " holds no other"}));
    return P(config);
  }
}

/// Refuses to compile `extend(seq, count)` where P finds rows by their tokens.
template <class P, class I>
constexpr void require_count_is_enough() {
  static_assert(
      sizeof(I) == 0 || !KnowsTokens<P>,
      "kvc: this policy finds rows again by their tokens: write extend(seq, tokens), or, for rows that no prompt "
      "is to find, extend_without_tokens(seq, count)");
}

/// A number of positions to extend by, as Pos. Throws std::invalid_argument if it is none.
template <std::integral I>
[[nodiscard]] Pos checked_extension(I count) {
  static_assert(
      !std::same_as<I, bool>,
      "kvc: extend takes a count of positions or their tokens, not a bool: write extend(seq, 1) for one position");
  return checked_count(static_cast<std::conditional_t<std::same_as<I, bool>, int, I>>(count), "count");
}

/// A number of positions of a sequence that has `length`, as Pos. Throws std::invalid_argument if it is none.
template <std::integral I>
[[nodiscard]] Pos checked_position(I position, Pos length, std::string_view name) {
  static_assert(!std::same_as<I, bool>, "kvc: fork and truncate take a number of positions, not a bool");
  if (std::cmp_less(position, 0) || std::cmp_greater(position, length)) [[unlikely]] {
    throw_invalid(name, position, concat({"between 0 and ", std::to_string(length), ", the length of the sequence"}));
  }
  return static_cast<Pos>(position);
}

/// Throws the CapacityError of an operation on `tokens` tokens. why(policy) gives the LimitMet, of a policy that
/// explains its refusals.
template <class P, class Why>
[[noreturn]] KVC_COLD void throw_no_room(const P& policy, const char* operation, Index tokens, Why why) {
  if constexpr (ExplainsRefusals<P>) {
    const LimitMet met = why(policy);
    if constexpr (HoldsGroups<P>) {
      if (met.group >= 0) {
        throw_error(CapacityError(operation, tokens, policy.stats(met.group), met));
      }
    }
    throw_error(CapacityError(operation, tokens, policy.stats(), met));
  } else {
    throw_error(CapacityError(operation, tokens, policy.stats()));
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
