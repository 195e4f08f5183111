// RowSource: the rows and states of a cache that a sender reads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/snapshot/recurrent_layers.hpp"
#include "kvc/transfer/group_offer.hpp"
#include "kvc/transfer/layers.hpp"
#include "kvc/transfer/protocol.hpp"
#include "kvc/transfer/rows.hpp"
#include "kvc/transfer/state_progress.hpp"
#include "kvc/transfer/stored_layers.hpp"
#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// Says which rows and states of a sequence there are to send, and finds them: of a plain cache, or by layer groups.
template <class Cache>
class RowSource {
 public:
  using Part = LayerProgress::Part;

  /// Throws std::invalid_argument if the cache has more than 32 layer groups.
  explicit RowSource(const Cache& cache) : cache_(&cache), layers_(cache) {}

  [[nodiscard]] const StoredLayers& layers() const noexcept { return layers_; }

  /// Adds what an OFFER says of layer groups and states to its body. Returns which positions of each group are not
  /// offered, and which states are; of a plain cache nothing. Throws std::invalid_argument if a group does not have all
  /// that a row behind `length` positions sees, or there is no state of that length.
  [[nodiscard]] Promised describe_groups(SeqId seq, Pos length, std::vector<std::byte>& body) const {
    Promised promised;
    if constexpr (HoldsGroups<Policy>) {
      if (!layers_.is_plain()) {
        const Policy& policy = cache_->policy();
        for (Index group = 0; group < policy.groups(); ++group) {
          const Pos least = policy.retained_from(seq, group);
          require(length >= least, "offer.length", length,
                  kvc::detail::concat({"at least ", std::to_string(least), ", from which on group ",
                                       std::to_string(group), " retains what a row sees"}));
        }
        promised = detail::append_groups(body, layers_, policy, seq, length);
      }
    }
    return promised;
  }
  /// The first `length` positions of all layers are written; `length` may be 0.
  void all_ready(Pos length, LayerProgress& progress) const noexcept {
    for (Index layer = 0; layer < layers_.size() && length > 0; ++layer) {
      progress.ready(layer, layers_.end(layers_.place(layer).group, length));
    }
  }
  /// Records the rows and states that an ACCEPT wants: positions from `first` on, or those that the rest of it, behind
  /// AcceptRecord, names for each layer group, and the states that it names. False if they are not offered. `gone` is
  /// of the result of describe_groups.
  [[nodiscard]] bool want(Pos first, Pos length, std::span<const PosRange> gone, HeadReader& in,
                          LayerProgress& progress, StateProgress& states) const {
    std::vector<WantedRows> wanted;
    for (std::size_t g = 0; g < layers_.groups().size(); ++g) {
      const Pos end = layers_.end(static_cast<Index>(g), length);
      wanted.push_back(WantedRows::all(first, end));
      if (!layers_.is_plain()) {
        const std::optional<WantedRecord> record = in.take<WantedRecord>();
        if (!record || record->first < 0 || record->last < record->first || record->then < record->last ||
            end < record->then) {
          return false;
        }
        const auto wants = [&](Pos begin, Pos behind) {
          return std::max(begin, gone[g].first) < std::min(behind, gone[g].last);
        };
        if (wants(record->first, record->last) || wants(record->then, end)) {
          return false;  // their places may have other rows by now
        }
        wanted.back() = {record->first, record->last, record->then, end};
      }
    }
    if (layers_.recurrent().size() > 0) {
      const std::optional<WantedStatesRecord> record = in.take<WantedStatesRecord>();
      if (!record || !states.want(record->lengths)) {
        return false;
      }
    }
    for (Index layer = 0; layer < layers_.size(); ++layer) {
      progress.want(layer, wanted[static_cast<std::size_t>(layers_.place(layer).group)]);
    }
    return true;
  }

  /// The rows of a layer to send next, in a message of about `message_bytes`.
  [[nodiscard]] Part next(const LayerProgress& progress, Index layer, Index message_bytes) const {
    const Index group = layers_.place(layer).group;
    const auto token_bytes = static_cast<Index>(layers_.token_bytes(group));
    return progress.next(layer, std::max<Index>(1, message_bytes / std::max<Index>(1, token_bytes)),
                         block_tokens(group));
  }
  /// Finds rows: `spans` are where they lie. False if the policy does not hold them any more.
  [[nodiscard]] bool find(SeqId seq, const Part& part) {
    constexpr layout::RowOrder order = layout::row_order<typename Cache::LayoutType>();
    const LayerPlace place = layers_.place(part.layer);
    spans_.clear();
    if constexpr (HoldsGroups<Policy>) {
      if (!layers_.is_plain()) {
        return part.range.last <= cache_->policy().positions(seq, place.group) &&
               finder_.add(*cache_, cache_->data(), seq, place, part.range, order, block_tokens(place.group), spans_);
      }
    }
    finder_.add(*cache_, cache_->data(), seq, part.layer, part.range, order, block_tokens(0), spans_);
    return true;
  }
  /// Finds the state of a recurrent layer after `length` tokens. False if the policy does not hold it any more.
  [[nodiscard]] bool find_state(SeqId seq, Index recurrent, Pos length) {
    spans_.clear();
    if (!std::ranges::binary_search(snapshot::detail::state_lengths(cache_->policy(), seq), length)) {
      return false;
    }
    spans_.add(snapshot::detail::state_bytes(*cache_, layers_.recurrent().model_layer(recurrent), seq, length));
    return true;
  }
  [[nodiscard]] transport::SendSpans spans() const noexcept { return spans_.spans(); }

 private:
  using Policy = typename Cache::PolicyType;

  [[nodiscard]] Pos block_tokens(Index group) const {
    if constexpr (HoldsGroups<Policy>) {
      return layers_.is_plain() ? cache_->policy().block_tokens() : cache_->policy().block_tokens(group);
    } else {
      return cache_->policy().block_tokens();
    }
  }

  const Cache* cache_;
  StoredLayers layers_;
  io::SpanList<const std::byte> spans_;
  RowFinder finder_;
};

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
