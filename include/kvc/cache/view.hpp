// CacheView: one sequence of a KvCache in one layer, as attention reads it.
#pragma once

#include <utility>

#include "kvc/attention/kv_view.hpp"
#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/fwd.hpp"
#include "kvc/layout/group_layout.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/policy/capabilities.hpp"

namespace kvc {
inline namespace v0 {

/// The keys and values of one sequence in one layer: a KvView. A small value that owns nothing; the cache must outlive
/// it. It always shows what the sequence has now. Runs that it hands out are valid until the sequence is extended,
/// committed, rolled back, truncated or closed.
template <class T, class P, class L>
class CacheView {
 public:
  using Element = T;

  /// `KvCache::view` makes views.
  CacheView(const P& policy, const GroupLayout<L>& layout, const Shape& shape, const StorageOf<T>* pool, Index group,
            Index layer, SeqId seq)
      : policy_(&policy), layout_(&layout), shape_(&shape), pool_(pool), group_(group), layer_(layer), seq_(seq) {}

  /// Key/value heads.
  [[nodiscard]] Index kv_heads() const noexcept { return shape_->kv_heads; }
  /// Elements in the key of one head.
  [[nodiscard]] Index key_dim() const noexcept { return shape_->key_dim; }
  /// Elements in the value of one head.
  [[nodiscard]] Index value_dim() const noexcept { return shape_->value_dim; }
  /// The committed positions, and those of an uncommitted extension. The layer group may have dropped some of them.
  [[nodiscard]] Pos length() const {
    if constexpr (HoldsGroups<P>) {
      return policy_->positions(seq_, group_);
    } else {
      return policy_->reserved(seq_);
    }
  }

  /// f(KvRun<T>) with the rows of one head for the positions of `range` that the layer group retains, in ascending
  /// order. Throws std::invalid_argument if the range is not within [0, length()).
  template <class F>
  void for_each_run(Index head, PosRange range, F&& f) const {
    KVC_ASSERT(0 <= head && head < kv_heads());
    const auto hand_out = [&](const SlotRun& run) {
      KvRun<T> rows{pool_ + layout_->k(run.block, layer_, head, run.offset),
                    pool_ + layout_->v(run.block, layer_, head, run.offset),
                    Index{run.count},
                    layout_->k_stride(),
                    layout_->v_stride(),
                    run.first};
      if constexpr (has_scale_planes) {
        rows.k_scales = pool_ + layout_->k_scales(run.block, layer_, head, run.offset);
        rows.v_scales = pool_ + layout_->v_scales(run.block, layer_, head, run.offset);
        rows.k_scale_stride = layout_->k_scale_stride();
        rows.v_scale_stride = layout_->v_scale_stride();
      }
      f(rows);
    };
    if constexpr (HoldsGroups<P>) {
      policy_->for_each_run(seq_, group_, range, hand_out);
    } else {
      policy_->for_each_run(seq_, range, hand_out);
    }
  }

  /// From each head to the next: a layout has them evenly spaced.
  [[nodiscard]] HeadStrides head_strides() const noexcept {
    HeadStrides strides{layout_->k(BlockId{0}, layer_, 1, 0) - layout_->k(BlockId{0}, layer_, 0, 0),
                        layout_->v(BlockId{0}, layer_, 1, 0) - layout_->v(BlockId{0}, layer_, 0, 0)};
    if constexpr (has_scale_planes) {
      strides.k_scales = layout_->k_scales(BlockId{0}, layer_, 1, 0) - layout_->k_scales(BlockId{0}, layer_, 0, 0);
      strides.v_scales = layout_->v_scales(BlockId{0}, layer_, 1, 0) - layout_->v_scales(BlockId{0}, layer_, 0, 0);
    }
    return strides;
  }

 private:
  static constexpr bool has_scale_planes = ScaledElement<T> && GroupLayout<L>::has_scale_planes;

  const P* policy_;
  const GroupLayout<L>* layout_;
  const Shape* shape_;
  const StorageOf<T>* pool_;
  Index group_;
  Index layer_;  // of the group
  SeqId seq_;
};

}  // namespace v0
}  // namespace kvc
