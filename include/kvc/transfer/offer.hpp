// Reading an OFFER, and checking what its head alone can show: whether the cache can receive the sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kvc/core/types.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/transfer/protocol.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// An offered sequence.
struct Offered {
  std::uint64_t request = 0;
  Pos length = 0;
  Pos tokens = 0;
  layout::RowOrder order{};
  Pos block_tokens = 1;  // of the sender
};

/// A refusal unless rows of the description `found` fit a cache with the description `own`.
[[nodiscard]] inline std::optional<Refusal> compare(const snapshot::format::DescriptionRecord& own,
                                                    const snapshot::format::DescriptionRecord& found) {
  using D = snapshot::format::DescriptionRecord;
  const auto different = [](std::size_t field, std::string_view what, const std::string& expected,
                            const std::string& actual) {
    return Refusal{Outcome::incompatible, kvc::detail::concat({"expected ", what, " ", expected, ", found ", actual}),
                   sizeof(MessageHead) + field};
  };
  if (found.element != own.element) {
    return different(offsetof(D, element), "elements", snapshot::format::to_text(own.element),
                     snapshot::format::to_text(found.element));
  }
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
      return different(c.field, c.what, std::to_string(c.expected), std::to_string(c.actual));
    }
  }
  const std::string layout = snapshot::format::to_text(found.layout);
  if (layout != HeadMajor::name && layout != TokenMajor::name) {
    return different(offsetof(D, layout), "layout", "head-major or token-major", layout);
  }
  if (found.block_tokens < 1 || found.block_tokens > static_cast<std::uint32_t>(max_pos)) {
    return different(offsetof(D, block_tokens), "block_tokens", "between 1 and 2^31 - 1",
                     std::to_string(found.block_tokens));
  }
  return std::nullopt;
}

/// Reads an OFFER, of which MessageHead has been taken, to `offered`. A refusal if it is invalid or does not fit.
[[nodiscard]] inline std::optional<Refusal> read_offer(const MessageHead& head, HeadReader& in,
                                                       std::uint64_t body_bytes,
                                                       const snapshot::format::DescriptionRecord& own,
                                                       Offered& offered) {
  if (head.major != major_version) {
    return Refusal{Outcome::incompatible,
                   kvc::detail::concat(
                       {"expected version ", std::to_string(major_version), ", found ", std::to_string(head.major)}),
                   offsetof(MessageHead, major)};
  }
  const std::optional<OfferRecord> record = in.take<OfferRecord>();
  if (!record) {
    return Refusal{Outcome::broken, "the offer is too short"};
  }
  if (std::optional<Refusal> refusal = compare(own, record->description)) {
    return refusal;
  }
  if (record->length < 1 || (record->tokens != 0 && record->tokens != record->length) ||
      record->salt_bytes > most_salt_bytes ||
      body_bytes != sizeof(Token) * static_cast<std::uint64_t>(record->tokens) + record->salt_bytes) {
    return Refusal{Outcome::broken, "length, tokens, salt and body of the offer contradict each other"};
  }
  offered.request = record->request;
  offered.length = record->length;
  offered.tokens = record->tokens;
  offered.order = snapshot::format::to_text(record->description.layout) == TokenMajor::name
                      ? layout::RowOrder::token_major
                      : layout::RowOrder::head_major;
  offered.block_tokens = static_cast<Pos>(record->description.block_tokens);
  return std::nullopt;
}

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
