// The results of transfers: how they ended, and what both sides report.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {

using transport::Channel;
using transport::no_deadline;
using transport::Peer;
using transport::TicketState;
using transport::TimePoint;

/// Number of a transfer: the sender counts its offers.
using Id = std::uint64_t;

/// The result of a transfer.
enum class Outcome : std::uint32_t {
  complete,
  no_room,       ///< the receiver's pool is full; a later attempt may succeed
  busy,          ///< the receiver has its maximum of transfers; a later attempt may succeed
  never_fits,    ///< the sequence is longer than the receiver's pool allows
  incompatible,  ///< different version, shape or element type: see the reason
  cancelled,     ///< by the application, on either side
  timed_out,     ///< the deadline has passed, or the peer was silent for too long
  peer_lost,     ///< the peer has closed or died
  broken         ///< a peer violated the protocol
};
/// The name of an outcome; "unknown" for any other number.
[[nodiscard]] constexpr std::string_view to_text(Outcome outcome) noexcept {
  constexpr std::array<std::string_view, 9> names = {
      "complete", "no room", "busy", "never fits", "incompatible", "cancelled", "timed out", "peer lost", "broken"};
  return static_cast<std::size_t>(outcome) < names.size() ? names[static_cast<std::size_t>(outcome)] : "unknown";
}

/// Thrown by `require_complete` for a failed transfer.
class Error : public std::runtime_error {
 public:
  /// The outcome, and a reason in words, which may be empty.
  Error(Outcome outcome, std::string_view reason)
      : std::runtime_error(
            kvc::detail::concat({"kvc: transfer ", to_text(outcome), reason.empty() ? "" : ": ", reason})),
        outcome_(outcome) {}
  /// How the transfer ended.
  [[nodiscard]] Outcome outcome() const noexcept { return outcome_; }

 private:
  Outcome outcome_;
};

/// A finished transfer, at the sender.
struct Sent {
  Id id;
  Peer to;
  SeqId seq;
  std::uint64_t request;  ///< the number of the offer
  Outcome outcome;
  Pos cached;           ///< positions that the receiver had already
  std::uint64_t bytes;  ///< of rows and states that were sent
  std::string reason;   ///< of a failure, in words
};

/// A finished transfer, at the receiver.
struct Received {
  Peer from;
  Id id;                  ///< the sender's
  std::uint64_t request;  ///< the number of the offer
  Outcome outcome;
  SeqId seq;                       ///< if complete: committed, and the caller's to close; otherwise no sequence
  Pos length;                      ///< positions
  Pos cached;                      ///< of these, how many were in the cache already
  std::uint64_t bytes;             ///< of rows and states that arrived
  std::vector<std::byte> payload;  ///< that the sender gave to `finish`
  std::string reason;              ///< of a failure, in words
};

/// Throws unless the transfer is complete: FormatError if the two caches are incompatible, otherwise Error.
inline void require_complete(const Sent& sent) {
  if (sent.outcome == Outcome::incompatible) {
    throw_error(FormatError(kvc::detail::concat({"transfer to peer ", std::to_string(sent.to)}), 0, sent.reason));
  }
  if (sent.outcome != Outcome::complete) {
    throw_error(Error(sent.outcome, sent.reason));
  }
}

}  // namespace transfer
}  // namespace v0
}  // namespace kvc
