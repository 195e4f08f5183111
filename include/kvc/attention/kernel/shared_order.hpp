// The shared prefixes of a batch, found from the runs of its views.
#pragma once

#include <algorithm>
#include <functional>
#include <span>
#include <type_traits>

#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/attention/kernel/split_plan.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Sequences share a position if its key and its value are at the same address for both, or if neither retains it, in
/// whole tiles. The runs of kv head 0 stand for those of all heads.
///
///   view(b) -> const View&   b < count
template <class ViewOf>
[[nodiscard]] SharedOrder shared_order(Index count, ViewOf view) {
  using Run = KvRun<typename std::remove_cvref_t<decltype(view(0))>::Element>;
  const auto length = [&](Index b) { return Index{view(b).length()}; };
  const auto visit = [&](Index b, Index end, auto f) {
    view(b).for_each_run(0, PosRange{0, static_cast<Pos>(end)}, f);
  };
  const auto before = [](const Run& x, const Run& y) {
    return x.k != y.k ? std::less<>{}(x.k, y.k) : std::less<>{}(x.v, y.v);
  };
  const auto same = [](const Run& x, const Run& y) {
    return x.k == y.k && x.v == y.v && x.k_stride == y.k_stride && x.v_stride == y.v_stride;
  };
  return find_shared_order<Run>(count, tile_keys, length, visit, before, same);
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
