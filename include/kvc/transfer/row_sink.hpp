// RowSink: the rows and states of a cache that a receiver reserves and writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/retention.hpp"
#include "kvc/snapshot/recurrent_layers.hpp"
#include "kvc/transfer/group_reservation.hpp"
#include "kvc/transfer/layers.hpp"
#include "kvc/transfer/offer.hpp"
#include "kvc/transfer/protocol.hpp"
#include "kvc/transfer/reservation.hpp"
#include "kvc/transfer/rows.hpp"
#include "kvc/transfer/stored_layers.hpp"
#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// Reserves room for offered sequences, and finds the places of rows that arrive: of a plain cache, or by layer groups.
template <class Cache>
class RowSink {
 public:
  /// Throws std::invalid_argument if the cache has layer groups that its policy cannot restore, or more than 32.
  explicit RowSink(Cache& cache) : cache_(&cache), layers_(cache) {
    require(layers_.is_plain() || RestoresSequences<Policy>, "cache.layers().groups().size()", layers_.groups().size(),
            kvc::detail::concat({"one group of full attention, each layer with rows of its own: policy ", Policy::name,
                                 " cannot restore sequences (RestoresSequences)"}));
  }

  [[nodiscard]] const StoredLayers& layers() const noexcept { return layers_; }

  /// Whether an empty cache could hold the sequence.
  [[nodiscard]] bool can_ever_hold(const Offered& offered) const {
    if constexpr (RestoresSequences<Policy>) {
      if (!layers_.is_plain()) {
        return detail::can_ever_hold_groups(*cache_, offered.length, offered.tokens);
      }
    }
    return detail::can_ever_hold(*cache_, offered.length);
  }
  /// Reserves room for an offered sequence: all of it, or a refusal, and nothing has changed.
  [[nodiscard]] std::variant<Refusal, Reservation<Cache>> reserve(Offered& offered, std::span<const std::byte> body,
                                                                  Pos reserve_tokens, const Retention& retention) {
    if constexpr (RestoresSequences<Policy>) {
      if (!layers_.is_plain()) {
        return detail::reserve_groups(*cache_, layers_, offered, body, reserve_tokens, retention);
      }
    }
    return detail::reserve(*cache_, offered, body, reserve_tokens, retention);
  }
  /// Adds what is wanted of each layer group, and which states are, to an ACCEPT: of a plain cache nothing.
  void add_wanted(std::span<const WantedRows> wanted, std::uint64_t states, HeadWriter& accept) const {
    for (std::size_t g = 0; g < wanted.size() && !layers_.is_plain(); ++g) {
      accept.add(WantedRecord{wanted[g].first, wanted[g].last, wanted[g].then});
    }
    if (layers_.recurrent().size() > 0) {
      accept.add(WantedStatesRecord{states});
    }
  }

  /// The places of reserved rows of a layer, in the order in which they arrive. Valid until the next call.
  [[nodiscard]] transport::ReceiveSpans find(SeqId seq, Index layer, PosRange range, const Offered& offered) {
    const LayerPlace place = layers_.place(layer);
    const Pos block_tokens = offered.groups[static_cast<std::size_t>(place.group)].block_tokens;
    spans_.clear();
    if constexpr (HoldsGroups<Policy>) {
      if (!layers_.is_plain()) {
        [[maybe_unused]] const bool found =
            finder_.add(*cache_, cache_->data(), seq, place, range, offered.order, block_tokens, spans_);
        KVC_ASSERT(found);
        return spans_.spans();
      }
    }
    finder_.add(*cache_, cache_->data(), seq, layer, range, offered.order, block_tokens, spans_);
    return spans_.spans();
  }
  /// The place of a reserved state of a recurrent layer. Valid until the next call.
  [[nodiscard]] transport::ReceiveSpans find_state(SeqId seq, Index recurrent, Pos length) {
    spans_.clear();
    spans_.add(
        snapshot::detail::writable_state_bytes(*cache_, layers_.recurrent().model_layer(recurrent), seq, length));
    return spans_.spans();
  }

 private:
  using Policy = typename Cache::PolicyType;

  Cache* cache_;
  StoredLayers layers_;
  io::SpanList<std::byte> spans_;
  RowFinder finder_;
};

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
