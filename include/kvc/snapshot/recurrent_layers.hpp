// RecurrentLayers: how snapshots and transfers number the recurrent layers of a cache, and where their states are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/snapshot/format.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {
namespace detail {

/// The recurrent layers of a model: those of kind 0, then those of kind 1, and so on.
class RecurrentLayers {
 public:
  RecurrentLayers() = default;
  explicit RecurrentLayers(const LayerGroups& layers) {
    for (const StateGroup& kind : layers.states()) {
      firsts_.push_back(size());
      kinds_.push_back({static_cast<std::uint64_t>(kind.layers), static_cast<std::uint64_t>(kind.bytes)});
      layers_.resize(layers_.size() + static_cast<std::size_t>(kind.layers), Layer{0, kind.bytes});
    }
    numbers_.resize(static_cast<std::size_t>(layers.layers()), none);
    for (Index i = 0; i < layers.layers(); ++i) {
      if (layers.is_recurrent(i)) {
        const StatePlace place = layers.state_place(i);
        const Index number = firsts_[static_cast<std::size_t>(place.kind)] + place.layer;
        layers_[static_cast<std::size_t>(number)].model_layer = i;
        numbers_[static_cast<std::size_t>(i)] = number;
      }
    }
  }

  /// Their number.
  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(layers_.size()); }
  [[nodiscard]] std::span<const format::StateKindRecord> kinds() const noexcept { return kinds_; }
  /// The layer of the model.
  [[nodiscard]] Index model_layer(Index number) const noexcept { return at(number).model_layer; }
  /// Bytes of the state of one of them.
  [[nodiscard]] Index bytes(Index number) const noexcept { return at(number).bytes; }
  /// The number of a layer of the model; nothing if it stores rows.
  [[nodiscard]] std::optional<Index> number_of(Index model_layer) const noexcept {
    const Index number = numbers_[static_cast<std::size_t>(model_layer)];
    return number == none ? std::nullopt : std::optional(number);
  }

 private:
  static constexpr Index none = -1;
  struct Layer {
    Index model_layer;
    Index bytes;
  };
  [[nodiscard]] const Layer& at(Index number) const noexcept { return layers_[static_cast<std::size_t>(number)]; }

  std::vector<format::StateKindRecord> kinds_;
  std::vector<Index> firsts_;   // [kinds] number of the first layer
  std::vector<Layer> layers_;   // [size()]
  std::vector<Index> numbers_;  // [layers of the model]
};

/// The layers of a model in the order in which a file counts them: those that store rows, group by group, and then the
/// recurrent ones. Layers that read the rows of another one are not among them.
[[nodiscard]] inline std::vector<Index> layers_of_file(const LayerGroups& layers) {
  std::vector<Index> order;
  for (Index group = 0; group < static_cast<Index>(layers.groups().size()); ++group) {
    for (Index i = 0; i < layers.layers(); ++i) {
      if (!layers.is_recurrent(i) && layers.place(i).group == group && layers.place(i).is_owner) {
        order.push_back(i);
      }
    }
  }
  const RecurrentLayers recurrent(layers);
  for (Index i = 0; i < recurrent.size(); ++i) {
    order.push_back(recurrent.model_layer(i));
  }
  return order;
}

/// The lengths of which a sequence has recurrent states; none of a policy that holds no states.
template <class P>
[[nodiscard]] std::span<const Pos> state_lengths(const P& policy, SeqId seq) {
  if constexpr (HoldsStates<P>) {
    return policy.state_lengths(seq);
  } else {
    return {};
  }
}
/// The block with which the states of a sequence after `length` tokens begin. No two that differ have it in common.
template <class P>
[[nodiscard]] BlockId state_block(const P& policy, SeqId seq, Pos length) {
  if constexpr (HoldsStates<P>) {
    return policy.state_blocks(seq, 0, length)[0];
  } else {
    return no_block;
  }
}
/// The blocks of all kinds of states of a sequence after `length` tokens, one kind after the other.
template <class P>
[[nodiscard]] std::vector<BlockId> state_blocks(const P& policy, SeqId seq, Pos length) {
  std::vector<BlockId> all;
  if constexpr (HoldsStates<P>) {
    for (std::size_t kind = 0; kind < policy.group_rules().states.size(); ++kind) {
      const std::span<const BlockId> blocks = policy.state_blocks(seq, static_cast<Index>(kind), length);
      all.insert(all.end(), blocks.begin(), blocks.end());
    }
  }
  return all;
}
/// The state of a recurrent layer of the model that lies in these blocks of all kinds.
template <class Cache>
[[nodiscard]] io::ConstByteSpan state_bytes(const Cache& cache, Index model_layer, std::span<const BlockId> blocks) {
  if constexpr (requires { cache.state(model_layer, blocks); }) {
    const Index kind = cache.layers().state_place(model_layer).kind;
    for (Index k = 0; k < kind; ++k) {
      blocks = blocks.subspan(static_cast<std::size_t>(cache.policy().state_sizes(k).blocks));
    }
    return cache.state(model_layer, blocks);
  } else {
    return {};
  }
}
/// The state of a recurrent layer of the model after `length` tokens: in the pool, `bytes` of them.
template <class Cache>
[[nodiscard]] io::ConstByteSpan state_bytes(const Cache& cache, Index model_layer, SeqId seq, Pos length) {
  if constexpr (requires { cache.state(model_layer, seq, length); }) {
    return cache.state(model_layer, seq, length);
  } else {
    return {};
  }
}
/// The same, to be written.
template <class Cache>
[[nodiscard]] io::ByteSpan writable_state_bytes(Cache& cache, Index model_layer, SeqId seq, Pos length) {
  const io::ConstByteSpan state = detail::state_bytes(cache, model_layer, seq, length);
  auto* const pool = reinterpret_cast<std::byte*>(cache.data());
  return {pool + (state.data() - pool), state.size()};
}

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
