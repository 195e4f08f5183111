// WantedRows: which positions of a layer travel. LayerProgress: how far each layer of a sequence is written and sent,
// and which rows to send next.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <vector>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// Positions whose rows travel, of one layer group: [first, last), which are among the first of the sequence, and
/// [then, end). Of a group that keeps everything these are [then, end) alone; first == last then.
struct WantedRows {
  Pos first = 0;
  Pos last = 0;
  Pos then = 0;
  Pos end = 0;

  /// From `from` on.
  [[nodiscard]] static constexpr WantedRows all(Pos from, Pos end) noexcept { return {from, from, from, end}; }
  /// The next position, where those before `position` have travelled.
  [[nodiscard]] constexpr Pos next(Pos position) const noexcept { return position == last ? then : position; }
  /// The first one.
  [[nodiscard]] constexpr Pos begin() const noexcept { return next(first); }
  /// The end of the range that `position` is in.
  [[nodiscard]] constexpr Pos range_end(Pos position) const noexcept { return position < last ? last : end; }

  friend constexpr bool operator==(const WantedRows&, const WantedRows&) = default;
};

/// Counts positions, layer by layer.
class LayerProgress {
 public:
  /// Positions of one layer.
  struct Part {
    Index layer;
    PosRange range;
  };

  LayerProgress() = default;
  /// Nothing is written.
  explicit LayerProgress(Index layers) : layers_(static_cast<std::size_t>(layers)) {}

  /// Positions of `layer` before `last` are written.
  void ready(Index layer, Pos last) noexcept {
    Layer& own = layers_[static_cast<std::size_t>(layer)];
    own.ready = std::max(own.ready, last);
  }
  /// Sends only what the receiver wants of a layer.
  void want(Index layer, const WantedRows& wanted) noexcept {
    Layer& own = layers_[static_cast<std::size_t>(layer)];
    own.wanted = wanted;
    own.sent = wanted.begin();
  }
  /// The first layer with unsent rows. O(layers).
  [[nodiscard]] std::optional<Index> next_layer() const noexcept {
    const auto layer = std::find_if(layers_.begin(), layers_.end(), [](const Layer& l) { return l.sent < l.ready; });
    return layer == layers_.end() ? std::nullopt : std::optional(layer - layers_.begin());
  }
  /// The next rows to send of a layer that has unsent rows: at most `most` positions, cut at the end of a block unless
  /// nothing is left then.
  [[nodiscard]] Part next(Index layer, Index most, Pos block_tokens) const noexcept {
    const Layer& own = layers_[static_cast<std::size_t>(layer)];
    const Pos ready = std::min(own.ready, own.wanted.range_end(own.sent));
    Index last = std::min<Index>(ready, own.sent + most);
    if (last < ready && last - last % block_tokens > own.sent) {
      last -= last % block_tokens;
    }
    return Part{layer, {own.sent, static_cast<Pos>(last)}};
  }
  /// The rows of `part` have been sent.
  void sent(const Part& part) noexcept {
    Layer& own = layers_[static_cast<std::size_t>(part.layer)];
    own.sent = own.wanted.next(part.range.last);
  }

 private:
  struct Layer {
    Pos ready = 0;
    Pos sent = 0;  // the next position to send
    WantedRows wanted{};
  };
  std::vector<Layer> layers_;
};

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
