// The contract of a transport: ordered, flow-controlled streams of messages between the peers of a group. The peers are
// threads (transport/in_process.hpp) or processes (transport/mpi.hpp).
#pragma once

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {

using Peer = std::int32_t;     ///< number of a peer in its group
using Channel = std::int32_t;  ///< number of a stream between two peers
using TimePoint = std::chrono::steady_clock::time_point;

inline constexpr TimePoint no_deadline = TimePoint::max();
inline constexpr std::size_t max_message_head = 512;  ///< bytes

/// The state of a message that was sent, or of a body that was accepted.
enum class TicketState : std::uint8_t {
  pending,
  done,   ///< an accepted body is in its place; the memory of a sent one belongs to the caller again
  failed  ///< it will never be done; the memory is not touched any more
};

using SendSpans = std::span<const io::ConstByteSpan>;  ///< the memory that a body is sent from
using ReceiveSpans = std::span<const io::ByteSpan>;    ///< the memory that a body is received to

/// Sends messages between peers. A message is a head and a body. The head is at most `max_message_head` bytes; it is
/// copied when it is sent, and arrives whole. The body may be large; it is sent from its place and received to its
/// place: the receiver reads the head first, and then says where the body goes (the active message of UCX). So rows
/// travel from the blocks of one pool to those of another, and nobody buffers a body that was not requested.
///
///   expression                     | requires             | returns, does             | throws           | complexity
///   -------------------------------+----------------------+---------------------------+------------------+------------
///   t.self(), t.peers()            |                      | Peer: number of this      |                  | O(1)
///                                  |                      | peer; how many there are  |                  |
///   t.channels()                   |                      | Channel: streams from     |                  | O(1)
///                                  |                      | each peer to each other   |                  |
///   t.try_send(to, ch, head, body) | 0 <= to < peers(); 0 | optional<Ticket>; empty   | invalid_argument | O(head +
///                                  | <= ch < channels();  | if the window to that     | bad_alloc        | spans)
///                                  | head of at most      | peer is full, and nothing |                  |
///                                  | max_message_head     | was sent. The list of     |                  |
///                                  | bytes                | spans is copied; the      |                  |
///                                  |                      | bytes must not change     |                  |
///                                  |                      | until the ticket is       |                  |
///                                  |                      | settled                   |                  |
///   t.poll(ch)                     | 0 <= ch < channels() | optional<Arrival>: the    | invalid_argument | O(peers)
///                                  |                      | next message on a         |                  |
///                                  |                      | channel, from any peer    |                  |
///   arrival.peer(), .head()        |                      | the sender; span<const    |                  | O(1)
///                                  |                      | byte>, valid as long as   |                  |
///                                  |                      | the arrival               |                  |
///   arrival.body_bytes()           |                      | size of the body          |                  | O(1)
///   t.accept(move(arrival), spans) | spans of             | Ticket: receives the body | invalid_argument | O(spans),
///                                  | body_bytes() bytes   | to `spans`, which nobody  | bad_alloc        | or O(body)
///                                  | in all               | else touches until the    |                  | where it is
///                                  |                      | ticket is settled. The    |                  | copied
///                                  |                      | body of an arrival that   |                  |
///                                  |                      | is destroyed without this |                  |
///                                  |                      | is discarded, and counts  |                  |
///                                  |                      | as received               |                  |
///   t.state(ticket)                | ticket of t          | TicketState; settled      |                  | O(1)
///                                  |                      | means done or failed      |                  |
///   t.cancel(ticket)               | ticket of t          | bool: true if the message |                  | O(1)
///                                  |                      | or body is settled now    |                  |
///                                  |                      | and the memory is the     |                  |
///                                  |                      | caller's; false if it     |                  |
///                                  |                      | cannot be stopped now     |                  |
///   t.wait(until)                  |                      | bool: true as soon as     |                  |
///                                  |                      | there may be news, false  |                  |
///                                  |                      | at `until`. Events since  |                  |
///                                  |                      | the last wait count as    |                  |
///                                  |                      | news. Makes progress      |                  |
///   t.is_lost(peer)                | 0 <= peer < peers()  | bool: whether that peer   | invalid_argument | O(1)
///                                  |                      | has closed, has died, or  |                  |
///                                  |                      | was dropped               |                  |
///   t.drop(peer)                   | 0 <= peer < peers()  | treats the peer as lost   | invalid_argument | O(messages)
///                                  |                      | from now on: receives no  |                  |
///                                  |                      | body from it, sends it    |                  |
///                                  |                      | nothing                   |                  |
///
/// Order. Messages of one sender on one channel arrive in the order of sending; channels are independent.
/// Flow control. A window bounds the bytes and messages that a peer has sent on a channel and the other has not
/// received; a single message may be larger. A peer that does not poll makes others keep no more than that.
/// Loss. Messages without a body that a peer sent before it closed may still arrive after is_lost returns true: read
/// is_lost first, then poll until nothing arrives, then act on it. The tickets of a lost peer settle; between processes
/// not before the transport knows that nobody uses the memory, which may be never.
/// Errors. std::invalid_argument for a number out of range, a head that is too long, or spans of another size than the
/// body. A lost peer is no error: a message to it fails.
/// Threads. One thread at a time uses an endpoint; different endpoints are independent.
template <class T>
concept Transport =
    std::default_initializable<typename T::Ticket> && std::movable<typename T::Ticket> &&
    std::movable<typename T::Arrival> &&
    requires(T t, const T c, Peer peer, Channel channel, std::span<const std::byte> head, SendSpans body,
             ReceiveSpans spans, typename T::Arrival arrival, const typename T::Arrival came,
             typename T::Ticket& ticket, const typename T::Ticket& given, TimePoint until) {
      { c.self() } -> std::same_as<Peer>;
      { c.peers() } -> std::same_as<Peer>;
      { c.channels() } -> std::same_as<Channel>;
      { t.try_send(peer, channel, head, body) } -> std::same_as<std::optional<typename T::Ticket>>;
      { t.poll(channel) } -> std::same_as<std::optional<typename T::Arrival>>;
      { came.peer() } -> std::same_as<Peer>;
      { came.head() } -> std::same_as<std::span<const std::byte>>;
      { came.body_bytes() } -> std::same_as<std::uint64_t>;
      { t.accept(std::move(arrival), spans) } -> std::same_as<typename T::Ticket>;
      { t.state(given) } -> std::same_as<TicketState>;
      { t.cancel(ticket) } -> std::same_as<bool>;
      { t.wait(until) } -> std::same_as<bool>;
      { c.is_lost(peer) } -> std::same_as<bool>;
      t.drop(peer);
    };

/// Waits until `condition()`, which may poll, is true. False if it is not at `deadline`.
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
