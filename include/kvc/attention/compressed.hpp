// CompressedView: rows that stand for several tokens each, as a view of their own.
#pragma once

#include "kvc/attention/kv_view.hpp"
#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {

/// The compressed rows of a view: row j stands for positions [j * r, (j + 1) * r), and lies in their r slots, one
/// behind the other. A KvView whose position j is row j, with r times as many elements in a key and a value. Attention
/// over it costs what attention over as many positions costs.
///
///   view            any view whose rows of r positions, from a multiple of r on, follow one another; copied
///   tokens_per_row  r
///   tokens          of the view's positions, those that a query row may see: rows that end within them are there
///
/// A query row at position p sees the rows of the first p + 1 tokens, so that each query row has a view of its own;
/// decode takes them as a batch. `KvCache::compressed_view` and `compressed_views` make them of a layer with
/// LayerKind::tokens_per_row. A selection of compressed rows is a SelectedView of one.
template <KvView View>
class CompressedView {
 public:
  using Element = typename View::Element;

  /// Throws std::invalid_argument unless tokens_per_row >= 1 and 0 <= tokens <= view.length().
  CompressedView(const View& view, Pos tokens_per_row, Pos tokens) : view_(view), tokens_(tokens_per_row) {
    require(tokens_per_row >= 1, "tokens_per_row", tokens_per_row, "at least 1");
    require(0 <= tokens && tokens <= view.length(), "tokens", tokens, "between 0 and the length of the view");
    length_ = tokens / tokens_per_row;
  }
  /// The same of all positions.
  CompressedView(const View& view, Pos tokens_per_row) : CompressedView(view, tokens_per_row, view.length()) {}

  /// Key/value heads.
  [[nodiscard]] Index kv_heads() const noexcept { return view_.kv_heads(); }
  /// Elements in the key of one head.
  [[nodiscard]] Index key_dim() const noexcept { return tokens_ * view_.key_dim(); }
  /// Elements in the value of one head.
  [[nodiscard]] Index value_dim() const noexcept { return tokens_ * view_.value_dim(); }
  /// Whole rows.
  [[nodiscard]] Pos length() const noexcept { return length_; }

  /// f(KvRun) for runs of rows. Throws std::invalid_argument if a row does not lie in one piece.
  template <class F>
  void for_each_run(Index head, PosRange rows, F&& f) const {
    KVC_ASSERT(0 <= rows.first && rows.last <= length_);
    if (rows.empty()) {
      return;
    }
    view_.for_each_run(head, PosRange{rows.first * tokens_, rows.last * tokens_}, [&](const KvRun<Element>& run) {
      require(run.first % tokens_ == 0 && run.rows % tokens_ == 0 &&
                  run.k_stride == kvc::Element<Element>::row_size(view_.key_dim()),
              "position", run.first, "in one piece of memory with those of its compressed row");
      f(KvRun<Element>{run.k, run.v, run.rows / tokens_, run.k_stride * tokens_, run.v_stride * tokens_,
                       run.first / tokens_});
    });
  }

 private:
  View view_;
  Pos tokens_;
  Pos length_ = 0;
};

}  // namespace v0
}  // namespace kvc
