// LayerGroups: the layers of a model, and which of them are alike.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/shape.hpp"

namespace kvc {
inline namespace v0 {

/// The rows that one layer of a model stores of each token, and how long they are kept.
struct LayerKind {
  Index kv_heads = 1;   ///< key/value heads
  Index key_dim = 0;    ///< elements in the key of one head
  Index value_dim = 0;  ///< elements in the value of one head; 0 means the same as key_dim
  Pos window = 0;       ///< sliding window: a row sees so many keys, its own among them; 0: no window
  Pos chunk = 0;        ///< chunked attention: a row sees no key before the last multiple of this; 0: no chunks
  Pos kept = 0;         ///< with a window or chunks: the first positions that every row sees all the same
  Pos cross_rows = 0;   ///< cross attention: rows of another input, written with the first tokens; 0: of own tokens
  /// The value is the first value_dim elements of the key, and is stored once: the latent rows of MLA, or, with
  /// value_dim == key_dim, rows of keys alone, such as those of the indexer of sparse attention. For every element
  /// type: of an Int8 or Int4 row, the value has the scales of the key.
  bool latent = false;
  /// Compressed rows: one row of key_dim (and value_dim) elements for so many consecutive tokens, written with the last
  /// of them; 1: a row for each token. It divides key_dim and value_dim, and such a layer keeps everything. For element
  /// types without scales: float, Eigen::half, Eigen::bfloat16, Fp8E4M3.
  Pos tokens_per_row = 1;

  friend constexpr bool operator==(const LayerKind&, const LayerKind&) = default;
};

/// Layers that store the same kind of row and keep the same positions.
struct LayerGroup {
  Shape shape;             ///< its layers, and what each stores of a token: a row, or its share of a compressed one
  Retained retained{};     ///< the positions that it keeps
  Pos cross_rows = 0;      ///< rows of another input; 0: of the sequence's own tokens
  bool latent = false;     ///< the value is the beginning of the key, and not stored
  Pos tokens_per_row = 1;  ///< more than 1: compressed rows, each for so many tokens
  friend constexpr bool operator==(const LayerGroup&, const LayerGroup&) = default;
};

/// Recurrent layers whose states have the same bytes.
struct StateGroup {
  Index layers = 0;
  Index bytes = 0;  ///< of the state of one layer
  friend constexpr bool operator==(const StateGroup&, const StateGroup&) = default;
};

/// Where the rows of a model layer are.
struct LayerPlace {
  Index group = 0;
  Index layer = 0;       ///< layer of the group
  bool is_owner = true;  ///< false: the layer reads rows that another one writes
};

/// Where the state of a recurrent layer is.
struct StatePlace {
  Index kind = 0;   ///< its StateGroup
  Index layer = 0;  ///< layer of that
};

/// The layers of a model, in the order in which the model runs them. Equal kinds are one group.
///
///   LayerGroups layers;  // Gemma 3: five layers with a window, then one without
///   for (int i = 0; i < 62; ++i) {
///     layers.add({.kv_heads = 16, .key_dim = 128, .window = i % 6 == 5 ? 0 : 1024});
///   }
///   KvCache<float, PrefixShared<>> cache(layers, {.blocks = 1000});
///
/// A Shape converts to it: one group. Layers are numbered from 0, as those of the model; groups in the order in which
/// their first layers were added.
class LayerGroups {
 public:
  LayerGroups() = default;
  /// shape.layers layers of full attention that are all alike. Throws std::invalid_argument for a bad shape.
  LayerGroups(const Shape& shape) {  // NOLINT: converts by design
    const Shape valid = validated(shape);
    groups_.push_back({valid});
    for (Index layer = 0; layer < valid.layers; ++layer) {
      places_.push_back({0, layer});
    }
  }

  /// Adds a layer and returns its number. Throws std::invalid_argument that names the member of `kind` that is not
  /// allowed, or if there are 2^24 layers, and std::bad_alloc; nothing has changed then. O(groups), amortised.
  Index add(const LayerKind& kind) {
    make_room(1);
    Shape row = validated(Shape{1, kind.kv_heads, kind.key_dim, kind.value_dim});
    const Pos share = kind.tokens_per_row;
    require_between(share, Pos{1}, Pos{1} << 16, "tokens_per_row");
    require(row.key_dim % share == 0, "key_dim", row.key_dim, "a multiple of tokens_per_row");
    require(row.value_dim % share == 0, "value_dim", row.value_dim, "a multiple of tokens_per_row");
    row.key_dim /= share;
    row.value_dim /= share;
    LayerGroup group{row, {kind.window, kind.chunk, kind.kept}, kind.cross_rows, kind.latent, share};
    require(share == 1 || (group.retained.everything() && kind.cross_rows == 0), "tokens_per_row", share,
            "1 in a layer with a window, chunks or rows of another input");
    require(!kind.latent || group.shape.value_dim <= group.shape.key_dim, "value_dim", group.shape.value_dim,
            "at most key_dim in a latent layer");
    require_valid(group.retained);
    require(kind.cross_rows >= 0, "cross_rows", kind.cross_rows, "at least 0 (0: no cross attention)");
    require(kind.cross_rows == 0 || group.retained.everything(), "cross_rows", kind.cross_rows,
            "0 in a layer with a window or chunks");
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      group.shape.layers = groups_[g].shape.layers;
      if (groups_[g] == group) {
        ++groups_[g].shape.layers;
        return add_place({static_cast<Index>(g), group.shape.layers});
      }
    }
    group.shape.layers = 1;
    groups_.push_back(group);
    return add_place({static_cast<Index>(groups_.size()) - 1, 0});
  }
  /// Adds `count` layers of one kind; returns the number of the first. Throws as `add`; nothing has changed then.
  /// O(count * groups).
  Index add(const LayerKind& kind, Index count) {
    make_room(count);
    const Index first = add(kind);
    for (Index i = 1; i < count; ++i) {
      add(kind);
    }
    return first;
  }
  /// Adds a layer that stores nothing and reads the rows of an earlier one, later in the same pass. Returns its number.
  /// Throws std::invalid_argument if there is no such layer, it is recurrent, or there are 2^24 layers, and
  /// std::bad_alloc; nothing has changed then. O(1), amortised.
  Index add_reader_of(Index layer) {
    make_room(1);
    LayerPlace place = this->place(layer);  // throws for a recurrent one
    place.is_owner = false;
    return add_place(place);
  }
  /// Adds a recurrent layer, whose state takes `bytes` bytes whatever the number of tokens: see KvCache::state. Returns
  /// its number. Throws std::invalid_argument unless `bytes` are between 1 and 2^30, or if there are 2^24 layers, and
  /// std::bad_alloc; nothing has changed then. O(kinds of states), amortised.
  Index add_state(Index bytes) {
    require_between(bytes, Index{1}, most_state_bytes, "bytes");
    make_room(1);
    auto kind = std::ranges::find(states_, bytes, &StateGroup::bytes);
    if (kind == states_.end()) {
      kind = states_.insert(states_.end(), {0, bytes});
    }
    places_.push_back({-1 - (kind - states_.begin()), kind->layers++});
    return layers() - 1;
  }
  /// Adds `count` such layers; returns the number of the first. Throws as above. O(count * kinds of states).
  Index add_state(Index bytes, Index count) {
    make_room(count);
    const Index first = add_state(bytes);
    for (Index i = 1; i < count; ++i) {
      add_state(bytes);
    }
    return first;
  }
  /// Keeps so many positions more than the next query needs, so that a sequence can be cut back by as many at any time:
  /// speculative decoding needs as many as it proposes tokens. Throws std::invalid_argument for a negative number.
  LayerGroups& with_rewind(Pos positions) {
    require(positions >= 0, "rewind", positions, "at least 0");
    rewind_ = positions;
    return *this;
  }

  /// Layers of the model, readers included.
  [[nodiscard]] Index layers() const noexcept { return static_cast<Index>(places_.size()); }
  [[nodiscard]] std::span<const LayerGroup> groups() const noexcept { return groups_; }
  /// Recurrent layers, in kinds of equal size.
  [[nodiscard]] std::span<const StateGroup> states() const noexcept { return states_; }
  [[nodiscard]] Pos rewind() const noexcept { return rewind_; }
  /// Whether a Shape says the same: one group of full attention with keys and values, and no layer reads the rows of
  /// another one.
  [[nodiscard]] bool is_plain() const noexcept {
    return groups_.size() == 1 && groups_[0].retained.everything() && groups_[0].cross_rows == 0 &&
           !groups_[0].latent && groups_[0].tokens_per_row == 1 && states_.empty() &&
           layers() == groups_[0].shape.layers;
  }
  /// Where the rows of a layer are. Throws std::invalid_argument if there is no such layer, or it is recurrent. O(1).
  [[nodiscard]] LayerPlace place(Index layer) const {
    require_between(layer, Index{0}, layers() - 1, "layer");
    const LayerPlace& place = places_[static_cast<std::size_t>(layer)];
    require(place.group >= 0, "layer", layer, "one that stores rows: this one has a recurrent state");
    return place;
  }
  /// Whether a layer is recurrent. Throws std::invalid_argument if there is no such layer. O(1).
  [[nodiscard]] bool is_recurrent(Index layer) const {
    require_between(layer, Index{0}, layers() - 1, "layer");
    return places_[static_cast<std::size_t>(layer)].group < 0;
  }
  /// Where the state of a layer is. Throws std::invalid_argument unless the layer is recurrent. O(1).
  [[nodiscard]] StatePlace state_place(Index layer) const {
    require(is_recurrent(layer), "layer", layer, "a recurrent one: this one stores rows");
    const LayerPlace& place = places_[static_cast<std::size_t>(layer)];
    return {-1 - place.group, place.layer};
  }

  /// The rules of these groups for a policy. `weight(group)` is the memory of one position in all layers of a group,
  /// for example row_bytes<T>, in units of `unit` bytes.
  template <class F>
  [[nodiscard]] GroupRules rules(F weight, Index unit = 1) const {
    GroupRules rules{{}, rewind_, {}};
    for (const LayerGroup& group : groups_) {
      rules.groups.push_back({group.retained, group.cross_rows, weight(group), group.tokens_per_row});
    }
    for (const StateGroup& kind : states_) {
      rules.states.push_back({kind.layers, ceil_div(aligned_state_bytes(kind), unit)});
    }
    return rules;
  }
  /// The same for elements of two bytes.
  [[nodiscard]] GroupRules rules() const {
    return rules(
        [](const LayerGroup& group) {
          const Shape& s = group.shape;
          return s.layers * s.kv_heads * (s.key_dim + (group.latent ? 0 : s.value_dim));
        },
        2);
  }
  /// Bytes from the state of one layer to that of the next: each begins on a line of 64 bytes.
  [[nodiscard]] static constexpr Index aligned_state_bytes(const StateGroup& kind) noexcept {
    return ceil_div(kind.bytes, Index{64}) * 64;
  }

  friend bool operator==(const LayerGroups& a, const LayerGroups& b) noexcept {
    return a.groups_ == b.groups_ && a.states_ == b.states_ && a.rewind_ == b.rewind_ &&
           std::ranges::equal(a.places_, b.places_, [](const LayerPlace& x, const LayerPlace& y) {
             return x.group == y.group && x.layer == y.layer && x.is_owner == y.is_owner;
           });
  }

 private:
  /// Makes room for so many layers, so that adding them cannot fail. Throws std::invalid_argument and std::bad_alloc.
  void make_room(Index count) {
    require_between(count, Index{1}, most_layers - layers(), "layers to add");
    const auto reserve = [](auto& list, Index more) {
      const std::size_t size = list.size() + static_cast<std::size_t>(more);
      if (size > list.capacity()) {
        list.reserve(std::max(size, 2 * list.capacity()));
      }
    };
    reserve(places_, count);
    reserve(groups_, 1);
    reserve(states_, 1);
  }
  Index add_place(LayerPlace place) {
    places_.push_back(place);
    return layers() - 1;
  }

  static constexpr Index most_state_bytes = Index{1} << 30;
  static constexpr Index most_layers = Index{1} << 24;  // as of a Shape

  std::vector<LayerGroup> groups_;
  std::vector<StateGroup> states_;
  std::vector<LayerPlace> places_;  // of a recurrent layer the group is -1 - kind
  Pos rewind_ = 0;
};

}  // namespace v0
}  // namespace kvc
