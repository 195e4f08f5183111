// CacheView: one sequence of a KvCache in one layer, as attention reads it.
#pragma once

#include <utility>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/fwd.hpp"
#include "kvc/layout/shape.hpp"

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
  CacheView(const P& policy, const L& layout, const Shape& shape, const StorageOf<T>* pool, Index layer, SeqId seq)
      : policy_(&policy), layout_(&layout), shape_(&shape), pool_(pool), layer_(layer), seq_(seq) {}

  /// Key/value heads.
  [[nodiscard]] Index kv_heads() const noexcept { return shape_->kv_heads; }
  /// Elements in the key of one head.
  [[nodiscard]] Index key_dim() const noexcept { return shape_->key_dim; }
  /// Elements in the value of one head.
  [[nodiscard]] Index value_dim() const noexcept { return shape_->value_dim; }
  /// Positions that can be read: the committed ones, and those of an uncommitted extension.
  [[nodiscard]] Pos length() const { return policy_->reserved(seq_); }

  /// f(KvRun<T>) with the rows of one head for the positions of `range`, in ascending order.
  /// Throws std::invalid_argument if the range is not within [0, length()).
  template <class F>
  void for_each_run(Index head, PosRange range, F&& f) const {
    KVC_ASSERT(0 <= head && head < kv_heads());
    policy_->for_each_run(seq_, range, [&](const SlotRun& run) {
      f(KvRun<T>{pool_ + layout_->k(run.block, layer_, head, run.offset),
                 pool_ + layout_->v(run.block, layer_, head, run.offset), Index{run.count}, layout_->k_stride(),
                 layout_->v_stride(), run.first});
    });
  }

 private:
  const P* policy_;
  const L* layout_;
  const Shape* shape_;
  const StorageOf<T>* pool_;
  Index layer_;
  SeqId seq_;
};

}  // namespace v0
}  // namespace kvc
