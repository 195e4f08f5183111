// The protocol that moves sequences from one cache to another over any transport: the messages, and the states of both
// sides. Standard library only.
//
// A transfer moves one sequence from a sender (transfer/sender.hpp) to a receiver (transfer/receiver.hpp). Any number
// of transfers share a connection: every message names its transfer. Messages to the receiver travel on `data_channel`,
// replies to the sender on `reply_channel`. Each is a head of at most 512 bytes; OFFER, ROWS and STATE also have a
// body.
//
//   message     head, after MessageHead      body                      meaning
//   OFFER       OfferRecord                  tokens, then salt         describes a sequence and asks for room
//   ROWS        RowsRecord                   rows of one layer         positions [first, last) of a layer
//   STATE       SentStateRecord              a state of one layer      of a recurrent layer, after so many tokens
//   END         payload                                                all rows have left
//   CANCEL                                                             the sender gives up
//   ACCEPT      AcceptRecord                                           room is reserved; send rows from `first` on
//   REFUSE      RefusalRecord, text                                    no room, or this cannot be received here
//   DONE                                                               the sequence is committed
//   ABORT       RefusalRecord, text                                    the receiver gives up
//
// States of a transfer at the sender:
//
//   offered ---ACCEPT---> sending ---all rows have left: END---> ending ---DONE--> complete
//      |                     |                                    |
//      +-------REFUSE--------+--ABORT, cancel, deadline, loss-----+---> failed: messages in flight are cancelled, and
//                                                                       CANCEL is sent unless the receiver knows
//
// States of a transfer at the receiver:
//
//   OFFER ---> opening ---room is reserved: ACCEPT---> receiving ---END, rows are in place: DONE---> complete
//                 |                                        |
//                 +--invalid, no room: REFUSE              +--CANCEL, invalid, cancel, timeout, loss---> failed: its
//                                                             blocks are freed, ABORT is sent unless the sender knows
//
// Before END the receiving cache shows nothing of a sequence, and no prompt matches a prefix of it. Messages of a
// transfer that has ended are ignored: they were in flight when it ended. The rows of a layer come in ascending order
// without a gap; layers in any order, and interleaved.
//
// The body of ROWS consists of stored blocks in the order of layout/row_spans.hpp: positions [k * block_tokens, (k + 1)
// * block_tokens) of the *sender's* block size, cut to [first, last), keys before values. A full block therefore leaves
// the pool as one span, and arrives as one span in a pool with the same block size and layout.
//
// A cache with layer groups speaks version 2: see transfer/group_offer.hpp. Its OFFER has two counts more in the head
// and the description of the groups at the beginning of the body, its ACCEPT the positions that the receiver wants of
// each group, and ROWS counts the layers that store rows. A cache whose layers are one group of full attention, each
// with rows of its own, speaks version 1. Only the version of an OFFER is checked.
//
// With recurrent layers the head of an OFFER has two counts more, its body the kinds of states and the lengths of which
// states are offered, and an ACCEPT says which of these lengths the receiver wants. A STATE is the state of one layer.
// The states of a layer come by ascending length; layers in any order, and between ROWS.
//
// All integers are little-endian; rows are sent as they lie in the pool. There is no checksum: the transport is
// reliable. Every number from a peer is checked before it is used.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/transfer/outcome.hpp"
#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {

inline constexpr Channel data_channel = 0;        ///< from senders to receivers
inline constexpr Channel reply_channel = 1;       ///< from receivers to senders
inline constexpr Channel first_free_channel = 2;  ///< channels from here on belong to the application

namespace detail {

enum class MessageKind : std::uint32_t { offer = 1, rows, end, cancel, accept, refuse, done, abort, state };

inline constexpr std::uint32_t magic = 0x5443564bU;  // "KVCT"
inline constexpr std::uint16_t major_version = 1;    // offers of other versions are refused
inline constexpr std::uint16_t group_version = 2;    // the major version of caches with layer groups
inline constexpr std::uint16_t minor_version = 0;

struct MessageHead {
  std::uint32_t magic;
  std::uint16_t major;
  std::uint16_t minor;
  MessageKind kind;
  std::uint32_t zero;
  Id transfer;
};
struct OfferRecord {
  snapshot::format::DescriptionRecord description;
  std::uint64_t request;     // number of the application
  std::int32_t length;       // positions
  std::int32_t tokens;       // in the body: 0, or as many as positions
  std::uint32_t salt_bytes;  // in the body, behind them
  std::uint32_t zero;
};
struct GroupCountsRecord {  // behind OfferRecord, with layer groups
  std::uint32_t groups;
  std::uint32_t layers;  // of the model
};
struct StateCountsRecord {  // behind GroupCountsRecord, with recurrent layers
  std::uint32_t kinds;
  std::uint32_t lengths;  // of which states are offered: at most most_states
};
struct OfferedGroupRecord {  // in the body, with layer groups: one for each, then snapshot::format::LayerRecord; with
                             // recurrent layers then snapshot::format::StateKindRecord and the lengths, 4 bytes each
  snapshot::format::GroupRecord group;
  std::int32_t block_tokens;  // of the sender
  std::int32_t gone_first;    // positions [gone_first, gone_last) are not sent
  std::int32_t gone_last;
  std::uint32_t zero;
};
struct RowsRecord {
  std::int32_t layer;  // with layer groups: those of group 0 that store rows, then those of group 1, and so on
  std::int32_t first;
  std::int32_t last;
  std::uint32_t zero;
};
struct AcceptRecord {
  std::int32_t first;
  std::uint32_t zero;
};
struct WantedRecord {  // behind AcceptRecord, one for each layer group: positions [first, last), and from `then` on
  std::int32_t first;
  std::int32_t last;
  std::int32_t then;
};
struct WantedStatesRecord {  // behind these, with recurrent layers
  std::uint64_t lengths;     // bit i: the states of the i-th offered length
};
struct SentStateRecord {
  std::int32_t layer;   // those of kind 0, then those of kind 1, and so on
  std::int32_t length;  // tokens that it stands for
};
struct RefusalRecord {
  Outcome outcome;
  std::uint32_t offset;  // of the invalid field in the head
};
static_assert(sizeof(MessageHead) == 24 && sizeof(OfferRecord) == 152 && sizeof(RowsRecord) == 16);
static_assert(snapshot::format::Plain<MessageHead> && snapshot::format::Plain<OfferRecord> &&
              snapshot::format::Plain<RowsRecord> && snapshot::format::Plain<AcceptRecord> &&
              snapshot::format::Plain<RefusalRecord> && snapshot::format::Plain<GroupCountsRecord> &&
              snapshot::format::Plain<OfferedGroupRecord> && snapshot::format::Plain<WantedRecord> &&
              snapshot::format::Plain<StateCountsRecord> && snapshot::format::Plain<WantedStatesRecord> &&
              snapshot::format::Plain<SentStateRecord>);

inline constexpr std::size_t max_payload_bytes = transport::max_message_head - sizeof(MessageHead);
inline constexpr std::size_t most_text_bytes = max_payload_bytes - sizeof(RefusalRecord);
inline constexpr std::uint32_t most_salt_bytes = 1U << 16;
inline constexpr std::size_t most_groups = 32;  // so that an ACCEPT has room for what is wanted of each
inline constexpr std::size_t most_states = 64;  // lengths, the bits of WantedStatesRecord
static_assert(sizeof(AcceptRecord) + most_groups * sizeof(WantedRecord) + sizeof(WantedStatesRecord) <=
              max_payload_bytes);

/// Assembles the head of a message.
class HeadWriter {
 public:
  HeadWriter(MessageKind kind, Id transfer, std::uint16_t version = major_version) {
    add(MessageHead{magic, version, minor_version, kind, 0, transfer});
  }
  template <snapshot::format::Plain Record>
  HeadWriter& add(const Record& record) noexcept {
    return add(std::as_bytes(std::span(&record, 1)));
  }
  /// Adds the bytes that fit into a head.
  HeadWriter& add(std::span<const std::byte> bytes) noexcept {
    const std::size_t count = std::min(bytes.size(), bytes_.size() - size_);
    std::copy_n(bytes.begin(), count, bytes_.begin() + static_cast<std::ptrdiff_t>(size_));
    size_ += count;
    return *this;
  }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return std::span(bytes_).first(size_); }

 private:
  std::array<std::byte, transport::max_message_head> bytes_{};
  std::size_t size_ = 0;
};

/// Takes records from the head of a received message.
class HeadReader {
 public:
  explicit HeadReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <snapshot::format::Plain Record>
  [[nodiscard]] std::optional<Record> take() noexcept {
    if (bytes_.size() < sizeof(Record)) {
      return std::nullopt;
    }
    Record record;
    std::memcpy(&record, bytes_.data(), sizeof record);
    bytes_ = bytes_.subspan(sizeof record);
    return record;
  }
  [[nodiscard]] std::span<const std::byte> rest() const noexcept { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

/// The reason of a refusal, and the offset of the invalid field in the head.
struct Refusal {
  Outcome outcome;
  std::string reason;
  std::size_t offset = 0;  // 0: none
};
[[nodiscard]] inline HeadWriter refusal_head(MessageKind kind, Id transfer, const Refusal& refusal,
                                             std::uint16_t version = major_version) {
  HeadWriter head(kind, transfer, version);
  head.add(RefusalRecord{refusal.outcome, static_cast<std::uint32_t>(refusal.offset)});
  head.add(std::as_bytes(std::span(refusal.reason)));
  return head;
}
/// Reads a REFUSE or an ABORT, of which MessageHead has been taken.
[[nodiscard]] inline Refusal read_refusal(HeadReader& in) {
  const auto record = in.take<RefusalRecord>();
  if (!record || record->outcome == Outcome::complete || record->outcome > Outcome::broken) {
    return {Outcome::broken, "a refusal without a valid reason"};
  }
  std::string text;
  for (const std::byte b : in.rest()) {
    const auto c = static_cast<char>(b);
    text.push_back(' ' <= c && c <= '~' ? c : '.');
  }
  return {record->outcome, std::move(text), record->offset};
}

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
