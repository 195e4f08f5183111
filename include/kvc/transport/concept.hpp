// The contract of a transport: ordered, flow-controlled streams of messages between the peers of a group, which are
// threads (transport/in_process.hpp) or processes (transport/mpi.hpp).
//
// A message is a head and a body. The head is at most `max_message_head` bytes, is copied when it is sent, and is there
// whole when the message arrives. The body may be large; it is sent from where it lies and received to where it
// belongs: whoever polls looks at the head, and only then says where the bytes go. (This is the active message of UCX.)
// So the rows of a cache go from the blocks of one pool to those of another, and nobody needs memory for what has not
// been asked for.
//
//   expression                        does
//   t.self(), t.peers()               the number of this peer, and how many there are: 0 <= peer < peers()
//   t.channels()                      streams from each peer to each other: 0 <= channel < channels()
//   t.try_send(to, ch, head, body)    -> optional<Ticket>; empty if the window to that peer is full: nothing was
//                                     sent, do something else, or `wait`. `body` is a list of pieces; the list
//                                     is copied, the bytes stay as they are until the ticket is settled
//   t.poll(ch)                        -> optional<Arrival>: the next message on a channel, from whichever peer
//   arrival.peer(), .head()           who sent it; span<const byte>, valid as long as the arrival
//   arrival.body_bytes()              how many bytes the body has
//   t.accept(move(arrival), pieces)   -> Ticket: receives the body to `pieces`, which are of exactly body_bytes() and
//                                     are touched by nobody else until the ticket is settled. An arrival that is
//                                     destroyed without this lets its body go: it comes to nobody, and counts as taken
//   t.state(ticket)                   -> TicketState
//   t.cancel(ticket)                  -> bool: gives up a message or a body. True: the ticket is settled, and the
//                                     memory is the caller's. False: it cannot be stopped now; ask for its state later
//   t.wait(until)                     -> bool: true when there may be something new to see, false when it is `until`.
//                                     What happened since the last wait ended counts as new. Makes progress
//   t.is_lost(peer)                   whether that peer has closed, has died, or was dropped
//   t.drop(peer)                      from now on counts it as lost: no body is received from it, nothing sent to it
//
// Order: messages of one sender on one channel arrive in the order of sending; there is no order between channels.
// Flow control: a window bounds what one peer has sent on a channel and the other has not taken; a single message may
// be larger than it. Nobody who does not poll makes others keep more than that.
// Loss: messages without a body that a peer sent before it closed may still come when is_lost says true; so look at
// is_lost first, then poll until there is nothing, then act on it. Tickets of a lost peer settle, as done or as failed;
// between processes not before the transport knows that nobody uses the memory any more, which may be never.
// Errors: a number out of range, a head that is too long, pieces of another size than the body: std::invalid_argument.
// A lost peer is no error: the ticket of what is sent to it fails.
// Threads: an endpoint is used by one thread at a time; different endpoints by different threads.
#pragma once

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {

using Peer = std::int32_t;     ///< number of a peer in its group
using Channel = std::int32_t;  ///< number of a stream between two peers
using TimePoint = std::chrono::steady_clock::time_point;

inline constexpr TimePoint no_deadline = TimePoint::max();
inline constexpr std::size_t max_message_head = 512;

enum class TicketState : std::uint8_t {
  pending,
  done,   ///< a body that was accepted is where it belongs; of one that was sent the memory is the caller's again
  failed  ///< it never will be; the memory is not touched any more
};

/// The pieces that a body is sent from, and those that it is received to.
using SendSpans = std::span<const std::span<const std::byte>>;
using ReceiveSpans = std::span<const std::span<std::byte>>;

template <class T>
concept Transport =
    std::default_initializable<typename T::Ticket> && std::movable<typename T::Ticket> &&
    std::movable<typename T::Arrival> &&
    requires(T t, const T c, Peer peer, Channel channel, std::span<const std::byte> head, SendSpans body,
             ReceiveSpans pieces, typename T::Arrival arrival, const typename T::Arrival came,
             typename T::Ticket& ticket, const typename T::Ticket& given, TimePoint until) {
      { c.self() } -> std::same_as<Peer>;
      { c.peers() } -> std::same_as<Peer>;
      { c.channels() } -> std::same_as<Channel>;
      { t.try_send(peer, channel, head, body) } -> std::same_as<std::optional<typename T::Ticket>>;
      { t.poll(channel) } -> std::same_as<std::optional<typename T::Arrival>>;
      { came.peer() } -> std::same_as<Peer>;
      { came.head() } -> std::same_as<std::span<const std::byte>>;
      { came.body_bytes() } -> std::same_as<std::uint64_t>;
      { t.accept(std::move(arrival), pieces) } -> std::same_as<typename T::Ticket>;
      { t.state(given) } -> std::same_as<TicketState>;
      { t.cancel(ticket) } -> std::same_as<bool>;
      { t.wait(until) } -> std::same_as<bool>;
      { c.is_lost(peer) } -> std::same_as<bool>;
      t.drop(peer);
    };

namespace detail {
/// Bytes of all pieces.
template <class Pieces>
[[nodiscard]] std::uint64_t total_bytes(Pieces pieces) noexcept {
  std::uint64_t sum = 0;
  for (const auto& piece : pieces) {
    sum += piece.size();
  }
  return sum;
}

}  // namespace detail

/// Waits until `condition()`, which may poll, is true; false if it is not when it is `deadline`.
template <class T, class F>
bool wait_for(T& transport, TimePoint deadline, F&& condition) {
  while (!condition()) {
    if (!transport.wait(deadline) && std::chrono::steady_clock::now() >= deadline) {
      return condition();
    }
  }
  return true;
}

}  // namespace transport
}  // namespace v0
}  // namespace kvc
