// StateProgress: which states of recurrent layers travel, and how far each layer is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/transfer/protocol.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// Counts the states of one sequence, layer by layer. Those of a layer travel by ascending length. Until `want` none
/// do.
class StateProgress {
 public:
  StateProgress() = default;
  /// Of so many recurrent layers, after `offered` tokens each, ascending: at most most_states lengths.
  StateProgress(Index layers, std::vector<Pos> offered)
      : offered_(std::move(offered)), layers_(static_cast<std::size_t>(layers)) {}

  [[nodiscard]] std::span<const Pos> offered() const noexcept { return offered_; }
  /// Only those of these offered lengths travel: bit i is the i-th. False if there are no so many.
  [[nodiscard]] bool want(std::uint64_t lengths) {
    wanted_.clear();
    for (std::size_t i = 0; i < most_states; ++i) {
      if ((lengths >> i & 1U) == 0) {
        continue;
      }
      if (i >= offered_.size()) {
        return false;
      }
      wanted_.push_back(offered_[i]);
    }
    return true;
  }
  /// The states of a layer after up to `last` tokens are written.
  void ready(Index layer, Pos last) noexcept {
    Pos& ready = layers_[static_cast<std::size_t>(layer)].ready;
    ready = std::max(ready, last);
  }
  /// The same of all layers.
  void all_ready(Pos last) noexcept {
    for (Layer& layer : layers_) {
      layer.ready = std::max(layer.ready, last);
    }
  }

  /// The length of the state of a layer that travels next; nothing behind the last one.
  [[nodiscard]] std::optional<Pos> next(Index layer) const noexcept {
    const std::size_t done = layers_[static_cast<std::size_t>(layer)].done;
    return done < wanted_.size() ? std::optional(wanted_[done]) : std::nullopt;
  }
  /// The first layer whose next state is written. O(layers).
  [[nodiscard]] std::optional<Index> next_ready() const noexcept {
    return find([&](const Layer& l) { return l.done < wanted_.size() && wanted_[l.done] <= l.ready; });
  }
  /// The first layer with a state that has not travelled. O(layers).
  [[nodiscard]] std::optional<Index> next_missing() const noexcept {
    return find([&](const Layer& l) { return l.done < wanted_.size(); });
  }
  /// The next state of a layer has travelled.
  void advance(Index layer) noexcept { ++layers_[static_cast<std::size_t>(layer)].done; }

 private:
  struct Layer {
    Pos ready = 0;
    std::size_t done = 0;  // of the wanted lengths
  };
  template <class F>
  [[nodiscard]] std::optional<Index> find(F&& is_it) const noexcept {
    const auto layer = std::ranges::find_if(layers_, is_it);
    return layer == layers_.end() ? std::nullopt : std::optional(Index{layer - layers_.begin()});
  }

  std::vector<Pos> offered_;
  std::vector<Pos> wanted_;
  std::vector<Layer> layers_;
};

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
