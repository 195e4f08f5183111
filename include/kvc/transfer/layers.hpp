// LayerProgress: how far each layer of a sequence is written and sent, and which rows to send next.
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

/// Counts positions, layer by layer.
class LayerProgress {
 public:
  /// Positions of one layer.
  struct Part {
    Index layer;
    PosRange range;
  };

  LayerProgress() = default;
  /// The first `ready` positions of each layer are written, and none is sent.
  LayerProgress(Index layers, Pos ready) : layers_(static_cast<std::size_t>(layers), Layer{ready, 0}) {}

  /// Positions of `layer` before `last` are written.
  void ready(Index layer, Pos last) noexcept {
    Layer& own = layers_[static_cast<std::size_t>(layer)];
    own.ready = std::max(own.ready, last);
  }
  /// The same for all layers.
  void all_ready(Pos last) noexcept {
    for (Layer& layer : layers_) {
      layer.ready = std::max(layer.ready, last);
    }
  }
  /// The receiver has the positions before `first` already.
  void skip(Pos first) noexcept {
    for (Layer& layer : layers_) {
      layer.sent = first;
    }
  }
  /// Whether there is something to send. O(layers).
  [[nodiscard]] bool has_next() const noexcept {
    return std::any_of(layers_.begin(), layers_.end(), [](const Layer& layer) { return layer.sent < layer.ready; });
  }
  /// The rows to send next: at most `most` positions of the first layer with unsent ones, cut at the end of a block if
  /// that leaves any. O(layers).
  [[nodiscard]] std::optional<Part> next(Index most, Pos block_tokens) const noexcept {
    const auto layer = std::find_if(layers_.begin(), layers_.end(), [](const Layer& l) { return l.sent < l.ready; });
    if (layer == layers_.end()) {
      return std::nullopt;
    }
    Index last = std::min<Index>(layer->ready, layer->sent + most);
    if (last < layer->ready && last - last % block_tokens > layer->sent) {
      last -= last % block_tokens;
    }
    return Part{layer - layers_.begin(), {layer->sent, static_cast<Pos>(last)}};
  }
  /// The rows of `part` have been sent.
  void sent(const Part& part) noexcept { layers_[static_cast<std::size_t>(part.layer)].sent = part.range.last; }

 private:
  struct Layer {
    Pos ready;
    Pos sent;
  };
  std::vector<Layer> layers_;
};

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
