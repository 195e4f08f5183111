// Outbox: sends short messages now, or as soon as the window to the peer is open.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <span>
#include <vector>

#include "kvc/transfer/protocol.hpp"
#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// Keeps the order of the messages to one peer.
template <transport::Transport T>
class Outbox {
 public:
  static constexpr std::ptrdiff_t most_waiting = 1024;  ///< messages for one peer

  /// Sends a message, or queues it. A peer that leaves so many unread that most_waiting are queued for it gets no more:
  /// its transfers end by their timeouts. O(messages queued).
  void add(T& transport, Peer to, Channel channel, const HeadWriter& head) {
    const auto waiting = std::count_if(waiting_.begin(), waiting_.end(), [&](const Message& m) { return m.to == to; });
    if (waiting < most_waiting && (waiting > 0 || !transport.try_send(to, channel, head.bytes(), {}))) {
      waiting_.push_back({to, channel, {head.bytes().begin(), head.bytes().end()}});
    }
  }
  /// Sends queued messages as far as the windows allow. True if it sent any.
  bool send(T& transport) {
    std::vector<Peer> full;
    const std::size_t before = waiting_.size();
    std::erase_if(waiting_, [&](const Message& m) {
      const bool is_full = std::find(full.begin(), full.end(), m.to) != full.end();
      if (is_full || !transport.try_send(m.to, m.channel, m.head, {})) {  // to a lost peer: sent, and fails
        full.push_back(m.to);
        return false;
      }
      return true;
    });
    return waiting_.size() != before;
  }
  /// Whether a message for this peer is queued.
  [[nodiscard]] bool has(Peer peer) const noexcept {
    return std::any_of(waiting_.begin(), waiting_.end(), [&](const Message& m) { return m.to == peer; });
  }

 private:
  struct Message {
    Peer to;
    Channel channel;
    std::vector<std::byte> head;
  };
  std::deque<Message> waiting_;
};

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
