// Reading the head of an OFFER, and checking what it alone can show: whether the cache can receive the sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/transfer/protocol.hpp"
#include "kvc/transfer/stored_layers.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// An offered sequence.
struct Offered {
  /// A layer group, as the sender describes it.
  struct Group {
    Pos block_tokens = 1;
    PosRange gone{0, 0};  // positions whose rows it does not send: no row behind the sequence sees them
  };
  std::uint64_t request = 0;
  Pos length = 0;
  Pos tokens = 0;
  layout::RowOrder order{};
  std::size_t groups_bytes = 0;  // of the body: the description of layer groups and states, before the tokens
  std::vector<Group> groups;     // of a plain cache there is one; with layer groups they come with the body
  std::size_t state_lengths = 0;
  std::vector<Pos> states;  // [state_lengths] of which states are offered, ascending; they come with the body
};

/// A refusal of what is not as the cache has it.
[[nodiscard]] inline Refusal different(std::string_view what, const std::string& expected, const std::string& found,
                                       std::size_t offset = 0) {
  return {Outcome::incompatible, kvc::detail::concat({"expected ", what, " ", expected, ", found ", found}), offset};
}

/// A refusal unless the layers of the description `found` are those of `own`.
[[nodiscard]] inline std::optional<Refusal> compare_shape(const snapshot::format::DescriptionRecord& own,
                                                          const snapshot::format::DescriptionRecord& found) {
  using D = snapshot::format::DescriptionRecord;
  struct Count {
    std::size_t field;
    std::string_view what;
    std::uint64_t expected;
    std::uint64_t actual;
  };
  for (const Count& c :
       {Count{offsetof(D, layers), "layers", own.layers, found.layers},
        Count{offsetof(D, kv_heads), "kv_heads", own.kv_heads, found.kv_heads},
        Count{offsetof(D, key_dim), "key_dim", own.key_dim, found.key_dim},
        Count{offsetof(D, value_dim), "value_dim", own.value_dim, found.value_dim},
        Count{offsetof(D, key_row_bytes), "bytes of a key", own.key_row_bytes, found.key_row_bytes},
        Count{offsetof(D, value_row_bytes), "bytes of a value", own.value_row_bytes, found.value_row_bytes}}) {
    if (c.expected != c.actual) {
      return different(c.what, std::to_string(c.expected), std::to_string(c.actual), sizeof(MessageHead) + c.field);
    }
  }
  return std::nullopt;
}

/// A refusal unless rows of the description `found` fit a cache with the description `own`. Of a cache with layer
/// groups the body describes the layers.
[[nodiscard]] inline std::optional<Refusal> compare(const snapshot::format::DescriptionRecord& own,
                                                    const snapshot::format::DescriptionRecord& found, bool is_plain) {
  using D = snapshot::format::DescriptionRecord;
  if (found.element != own.element) {
    return different("elements", snapshot::format::to_text(own.element), snapshot::format::to_text(found.element),
                     sizeof(MessageHead) + offsetof(D, element));
  }
  if (std::optional<Refusal> refusal = is_plain ? compare_shape(own, found) : std::nullopt) {
    return refusal;
  }
  const std::string layout = snapshot::format::to_text(found.layout);
  if (layout != HeadMajor::name && layout != TokenMajor::name) {
    return different("layout", "head-major or token-major", layout, sizeof(MessageHead) + offsetof(D, layout));
  }
  if (found.block_tokens < 1 || found.block_tokens > static_cast<std::uint32_t>(max_pos)) {
    return different("block_tokens", "between 1 and 2^31 - 1", std::to_string(found.block_tokens),
                     sizeof(MessageHead) + offsetof(D, block_tokens));
  }
  return std::nullopt;
}

/// Reads an OFFER, of which MessageHead has been taken, to `offered`. A refusal if it is invalid or does not fit.
[[nodiscard]] inline std::optional<Refusal> read_offer(const MessageHead& head, HeadReader& in,
                                                       std::uint64_t body_bytes,
                                                       const snapshot::format::DescriptionRecord& own,
                                                       const StoredLayers& layers, Offered& offered) {
  if (head.major != layers.version()) {
    const std::string_view kind = head.major == group_version   ? ", of a cache with layer groups"
                                  : head.major == major_version ? ", of a cache without layer groups"
                                                                : "";
    return different("version", std::to_string(layers.version()),
                     kvc::detail::concat({std::to_string(head.major), kind}), offsetof(MessageHead, major));
  }
  const std::optional<OfferRecord> record = in.take<OfferRecord>();
  std::optional<GroupCountsRecord> counts = GroupCountsRecord{0, 0};
  if (record && !layers.is_plain()) {
    counts = in.take<GroupCountsRecord>();
  }
  if (!record || !counts) {
    return Refusal{Outcome::broken, "the offer is too short"};
  }
  const StateCountsRecord states = in.take<StateCountsRecord>().value_or(StateCountsRecord{0, 0});
  if (std::optional<Refusal> refusal = compare(own, record->description, layers.is_plain())) {
    return refusal;
  }
  if (!layers.is_plain()) {
    constexpr std::size_t at = sizeof(MessageHead) + sizeof(OfferRecord);
    if (counts->groups != layers.groups().size()) {
      return different("layer groups", std::to_string(layers.groups().size()), std::to_string(counts->groups), at);
    }
    if (counts->layers != layers.model_layers().size()) {
      return different("layers", std::to_string(layers.model_layers().size()), std::to_string(counts->layers),
                       at + offsetof(GroupCountsRecord, layers));
    }
    if (states.kinds != layers.recurrent().kinds().size()) {
      return different("kinds of recurrent states", std::to_string(layers.recurrent().kinds().size()),
                       std::to_string(states.kinds), at + sizeof(GroupCountsRecord));
    }
    if (states.lengths > most_states || (states.lengths > 0) != (states.kinds > 0)) {
      return Refusal{Outcome::broken, "states of no length, or of more than 64"};
    }
  }
  const std::size_t groups_bytes =
      counts->groups * sizeof(OfferedGroupRecord) + counts->layers * sizeof(snapshot::format::LayerRecord) +
      (layers.is_plain() ? 0 : states.kinds * sizeof(snapshot::format::StateKindRecord) + states.lengths * sizeof(Pos));
  if (record->length < 1 || (record->tokens != 0 && record->tokens != record->length) ||
      record->salt_bytes > most_salt_bytes ||
      body_bytes != groups_bytes + sizeof(Token) * static_cast<std::uint64_t>(record->tokens) + record->salt_bytes) {
    return Refusal{Outcome::broken, "length, tokens, salt and body of the offer contradict each other"};
  }
  offered.request = record->request;
  offered.length = record->length;
  offered.tokens = record->tokens;
  offered.order = snapshot::format::to_text(record->description.layout) == TokenMajor::name
                      ? layout::RowOrder::token_major
                      : layout::RowOrder::head_major;
  offered.groups_bytes = groups_bytes;
  offered.state_lengths = layers.is_plain() ? 0 : states.lengths;
  offered.groups.assign(1, {static_cast<Pos>(record->description.block_tokens), {0, 0}});
  return std::nullopt;
}

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
