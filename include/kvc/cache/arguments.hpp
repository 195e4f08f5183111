// The arguments of KvCache: errors that name the one that does not fit.
#pragma once

#include "kvc/core/error.hpp"
#include "kvc/element/element.hpp"
#include "kvc/fwd.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/memory/space.hpp"
#include "kvc/policy/concept.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {
/// ElementType<T> as a value: an assertion of it fails without a list of constraints.
template <class T>
inline constexpr bool is_element_type = ElementType<T>;
template <class P>
struct ConfigOf {
  using Type = int;
};
template <class P>
  requires requires { typename P::Config; }
struct ConfigOf<P> {
  using Type = typename P::Config;
};
}  // namespace detail

/// Instantiated only if an argument is not what a KvCache needs: says which, and why. See the specialisation in
/// kvc/cache.hpp.
template <class T, class P, class L, class S>
class KvCache {
  static_assert(
      detail::is_element_type<T>,
      "kvc: the first argument of KvCache is not an element type. For Eigen::half and Eigen::bfloat16 include "
      "kvc/element/float16.hpp; for Int8, Fp8E4M3 and Int4 kvc/element/quantized.hpp; for Mixed "
      "kvc/element/mixed.hpp; for None kvc/element/none.hpp. For a type of your own specialise kvc::Element "
      "(kvc/element/element.hpp).");
  static_assert(
      Policy<P>,
      "kvc: the second argument of KvCache is not a policy. Include kvc/policy/contiguous.hpp, "
      "kvc/policy/paged.hpp or kvc/policy/prefix_shared.hpp, or see kvc/policy/concept.hpp for one of your own; "
      "the compiler names the expression that is missing.");
  static_assert(Layout<L>,
                "kvc: the third argument of KvCache is not a layout, see kvc/layout/layout.hpp; the compiler names the "
                "expression that is missing.");
  static_assert(Space<S>,
                "kvc: the fourth argument of KvCache is not a space, see kvc/memory/space.hpp; the compiler names the "
                "expression that is missing.");

 public:
  /// Takes what a cache takes, so that its call is not an error as well.
  template <class Config = typename detail::ConfigOf<P>::Type, class Where = S>
  explicit KvCache(const Shape&, const Config&, const Where& = Where{}) {}
};

}  // namespace v0
}  // namespace kvc
