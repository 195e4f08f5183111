// The protocol by which sequences travel from one cache to another, over any transport::Transport: the messages, and what each
// side may do when. Standard library only.
//
// A transfer moves one sequence from a sender (transfer/sender.hpp) to a receiver (transfer/receiver.hpp). Any number
// of them share a connection: every message names its transfer. Messages to the receiver travel on `data_channel`,
// those to the sender on `reply_channel`; each is a head of at most 512 bytes, and OFFER and ROWS have a body.
//
//   message     head, after MessageHead      body                      says
//   OFFER       OfferRecord                  tokens, then salt         what will come; asks for room
//   ROWS        RowsRecord                   rows of one layer         positions [first, last) of a layer
//   END         note                                                   all rows have left
//   CANCEL                                                             the sender gives up
//   ACCEPT      AcceptRecord                                           there is room; rows from `first` on are wanted
//   REFUSE      RefusalRecord, text                                    there is none, or this cannot be received here
//   DONE                                                               the sequence is part of the cache
//   ABORT       RefusalRecord, text                                    the receiver gives up
//
// The sender, of one transfer:
//
//   offered ---ACCEPT---> sending ---all rows have left: END---> ending ---DONE--> complete
//      |                     |                                    |
//      +-------REFUSE--------+--ABORT, cancel, deadline, loss-----+---> failed: what is under way is called back, and
//                                                                       CANCEL sent if the receiver does not know yet
//
// The receiver, of one transfer:
//
//   OFFER ---> opening ---room is reserved: ACCEPT---> receiving ---END, rows are in place: DONE---> complete
//                 |                                        |
//                 +--wrong, no room: REFUSE                +--CANCEL, wrong, cancel, silence, loss---> failed: all that
//                                                             it held is free, ABORT sent unless the sender knows
//
// Before END nothing of a sequence can be seen in the receiving cache, and no prefix of it matched. Messages that name
// a transfer which is over are passed by: they were under way when it ended. Rows of a layer come in ascending order
// without a gap; layers in any order, and interleaved.
//
// A body of rows is made of stored blocks, as layout/row_spans.hpp orders them: positions [k * block_tokens, (k + 1) *
// block_tokens) of the *sender's* block size, as far as they are within [first, last), keys before values. So full
// blocks leave the pool in one piece, and arrive in one piece where the other pool is made alike.
//
// All integers are little-endian; rows are as they lie in the pool. There is no checksum: a transport delivers what was
// sent. Every number that a peer says is checked before it is used.
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

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {

using transport::Channel;
using transport::no_deadline;
using transport::Peer;
using transport::TicketState;
using transport::TimePoint;

inline constexpr Channel data_channel = 0;        ///< from senders to receivers
inline constexpr Channel reply_channel = 1;       ///< from receivers to senders
inline constexpr Channel first_free_channel = 2;  ///< from here on channels are the application's

/// Number of a transfer: the sender's count of what it has offered.
using Id = std::uint64_t;

/// How a transfer ended.
enum class Outcome : std::uint32_t {
  complete,
  no_room,       ///< the receiver's pool is full now: worth another try
  busy,          ///< the receiver has as many transfers as it wants: worth another try
  never_fits,    ///< the sequence is larger than the receiver's pool allows
  incompatible,  ///< another version, shape, element type, ...: see the reason
  cancelled,     ///< by the application, on either side
  timed_out,     ///< the deadline has passed, or nothing was heard for too long
  peer_lost,     ///< the peer has closed or died
  broken         ///< a peer said what it may not say
};
[[nodiscard]] constexpr std::string_view to_text(Outcome outcome) noexcept {
  constexpr std::array<std::string_view, 9> names = {
      "complete", "no room", "busy", "never fits", "incompatible", "cancelled", "timed out", "peer lost", "broken"};
  return static_cast<std::size_t>(outcome) < names.size() ? names[static_cast<std::size_t>(outcome)] : "unknown";
}

/// What `require_complete` throws of a transfer that failed.
class Error : public std::runtime_error {
 public:
  Error(Outcome outcome, std::string_view reason)
      : std::runtime_error(
            kvc::detail::concat({"kvc: transfer ", to_text(outcome), reason.empty() ? "" : ": ", reason})),
        outcome_(outcome) {}
  [[nodiscard]] Outcome outcome() const noexcept { return outcome_; }

 private:
  Outcome outcome_;
};

namespace detail {

enum class MessageKind : std::uint32_t { offer = 1, rows, end, cancel, accept, refuse, done, abort };

inline constexpr std::uint32_t magic = 0x5443564bU;  // "KVCT"
inline constexpr std::uint16_t major_version = 1;    // another one is refused
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
  std::uint64_t request;     // the application's number
  std::int32_t length;       // positions
  std::int32_t tokens;       // in the body: 0, or as many as positions
  std::uint32_t salt_bytes;  // in the body, behind them
  std::uint32_t zero;
};
struct RowsRecord {
  std::int32_t layer;
  std::int32_t first;
  std::int32_t last;
  std::uint32_t zero;
};
struct AcceptRecord {
  std::int32_t first;
  std::uint32_t zero;
};
struct RefusalRecord {
  Outcome outcome;
  std::uint32_t offset;  // in the head, of what is wrong
};
static_assert(sizeof(MessageHead) == 24 && sizeof(OfferRecord) == 152 && sizeof(RowsRecord) == 16);
static_assert(snapshot::format::Plain<MessageHead> && snapshot::format::Plain<OfferRecord> &&
              snapshot::format::Plain<RowsRecord> && snapshot::format::Plain<AcceptRecord> &&
              snapshot::format::Plain<RefusalRecord>);

inline constexpr std::size_t most_note_bytes = transport::max_message_head - sizeof(MessageHead);
inline constexpr std::size_t most_text_bytes = most_note_bytes - sizeof(RefusalRecord);
inline constexpr std::uint32_t most_salt_bytes = 1U << 16;

/// The head of a message, as it is put together.
class HeadWriter {
 public:
  HeadWriter(MessageKind kind, Id transfer) {
    add(MessageHead{magic, major_version, minor_version, kind, 0, transfer});
  }
  template <snapshot::format::Plain Record>
  HeadWriter& add(const Record& record) noexcept {
    return add(std::as_bytes(std::span(&record, 1)));
  }
  /// As far as there is room.
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

/// Takes records from the head of a message that came.
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

/// Why something is refused, and where that stands in the head.
struct Refusal {
  Outcome outcome;
  std::string reason;
  std::size_t offset = 0;
};
[[nodiscard]] inline HeadWriter refusal_head(MessageKind kind, Id transfer, const Refusal& refusal) {
  HeadWriter head(kind, transfer);
  head.add(RefusalRecord{refusal.outcome, static_cast<std::uint32_t>(refusal.offset)});
  head.add(std::as_bytes(std::span(refusal.reason)));
  return head;
}
/// Of a REFUSE or an ABORT, of which MessageHead has been taken.
[[nodiscard]] inline Refusal read_refusal(HeadReader& in) {
  const auto record = in.take<RefusalRecord>();
  if (!record || record->outcome == Outcome::complete || record->outcome > Outcome::broken) {
    return {Outcome::broken, "a refusal that gives no reason"};
  }
  std::string text;
  for (const std::byte b : in.rest()) {
    const auto c = static_cast<char>(b);
    text.push_back(' ' <= c && c <= '~' ? c : '.');
  }
  return {record->outcome, std::move(text), record->offset};
}

[[nodiscard]] inline snapshot::format::Name to_name(std::string_view text) noexcept {
  snapshot::format::Name name{};
  std::copy_n(text.begin(), std::min(text.size(), name.size() - 1), name.begin());
  return name;
}
[[nodiscard]] inline std::string to_text(const snapshot::format::Name& name) {
  std::string text(name.begin(), std::find(name.begin(), name.end(), '\0'));
  std::replace_if(text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '.');
  return text;
}

/// What a cache says of itself: with this a sender introduces itself, and a receiver compares.
template <class Cache>
[[nodiscard]] snapshot::format::DescriptionRecord describe(const Cache& cache) {
  using T = typename Cache::Element;
  const Shape& shape = cache.shape();
  const auto u64 = [](Index i) { return static_cast<std::uint64_t>(i); };
  const auto row_bytes = [&](Index dim) {
    return u64(kvc::Element<T>::row_size(dim) * static_cast<Index>(sizeof(StorageOf<T>)));
  };
  return {u64(shape.layers),
          u64(shape.kv_heads),
          u64(shape.key_dim),
          u64(shape.value_dim),
          row_bytes(shape.key_dim),
          row_bytes(shape.value_dim),
          static_cast<std::uint32_t>(cache.policy().block_tokens()),
          0,
          to_name(kvc::Element<T>::name),
          to_name(layout::to_text(layout::row_order<typename Cache::LayoutType>())),
          to_name(Cache::PolicyType::name)};
}

/// Bytes of a token's rows in one layer.
[[nodiscard]] constexpr std::uint64_t token_bytes(const snapshot::format::DescriptionRecord& d) noexcept {
  return d.kv_heads * (d.key_row_bytes + d.value_row_bytes);
}

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
