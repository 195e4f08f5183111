// StoredLayers: how a transfer numbers the layers of a cache, and what it says of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/snapshot/describe.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/snapshot/recurrent_layers.hpp"
#include "kvc/transfer/protocol.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// The layers of a cache that store rows: those of group 0, then those of group 1, and so on. Of a plain cache these
/// are the layers of the model, in their order.
class StoredLayers {
 public:
  /// Throws std::invalid_argument if the cache has more than 32 layer groups.
  template <class Cache>
  explicit StoredLayers(const Cache& cache)
      : is_plain_(cache.layers().is_plain()),
        groups_(
            snapshot::detail::describe_groups(cache.layers(), snapshot::detail::bytes_of_row<typename Cache::Element>)),
        layers_(snapshot::detail::describe_layers(cache.layers())),
        recurrent_(cache.layers()) {
    require(groups_.size() <= most_groups, "cache.layers().groups().size()", groups_.size(), "at most 32");
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      firsts_.push_back(size());
      for (std::uint64_t i = 0; i < groups_[g].layers; ++i) {
        places_.push_back({static_cast<Index>(g), static_cast<Index>(i)});
      }
    }
  }

  /// Whether version 1 of the protocol describes them.
  [[nodiscard]] bool is_plain() const noexcept { return is_plain_; }
  /// The version of the protocol.
  [[nodiscard]] std::uint16_t version() const noexcept { return is_plain_ ? major_version : group_version; }
  /// Their number.
  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(places_.size()); }
  /// Which layer of which group number `layer` is.
  [[nodiscard]] LayerPlace place(Index layer) const noexcept { return places_[static_cast<std::size_t>(layer)]; }
  /// The number of a layer of the model; nothing if it reads the rows of another one, or has states.
  [[nodiscard]] std::optional<Index> number_of(Index model_layer) const noexcept {
    const snapshot::format::LayerRecord& layer = layers_[static_cast<std::size_t>(model_layer)];
    return layer.reads != 0 || layer.group < 0
               ? std::nullopt
               : std::optional(firsts_[static_cast<std::size_t>(layer.group)] + Index{layer.layer});
  }
  /// The groups.
  [[nodiscard]] std::span<const snapshot::format::GroupRecord> groups() const noexcept { return groups_; }
  /// The layers of the model.
  [[nodiscard]] std::span<const snapshot::format::LayerRecord> model_layers() const noexcept { return layers_; }
  /// The layers with recurrent states, which have numbers of their own.
  [[nodiscard]] const snapshot::detail::RecurrentLayers& recurrent() const noexcept { return recurrent_; }
  /// Positions of a group in a sequence of `length`: as many, or the rows of another input.
  [[nodiscard]] Pos end(Index group, Pos length) const noexcept {
    const Pos cross = groups_[static_cast<std::size_t>(group)].cross_rows;
    return cross > 0 ? cross : length;
  }
  /// Bytes of the rows of one position in a layer of a group.
  [[nodiscard]] std::uint64_t token_bytes(Index group) const noexcept {
    return snapshot::format::token_bytes(groups_[static_cast<std::size_t>(group)]);
  }

 private:
  bool is_plain_;
  std::vector<snapshot::format::GroupRecord> groups_;
  std::vector<snapshot::format::LayerRecord> layers_;
  snapshot::detail::RecurrentLayers recurrent_;
  std::vector<Index> firsts_;       // [groups] number of the first layer
  std::vector<LayerPlace> places_;  // [size()]
};

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
