// InProcess: a transport between the threads of one process.
//
//   transport::InProcess hub({.peers = 3});
//   transport::InProcess::Endpoint prefill(hub, 0);   // in one thread
//   transport::InProcess::Endpoint decode(hub, 1);    // in another
#pragma once

#include <algorithm>
#include <atomic>
#include <concepts>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/transport/concept.hpp"
#include "kvc/transport/copy.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {

/// Connects endpoints of one process; an Endpoint is a Transport. Thread-safe. All endpoints must be destroyed before
/// it.
///
/// A body is copied once, by the thread that accepts it, straight from the sender's memory to the receiver's, without
/// the lock. Nothing is checksummed: the bytes do not leave memory.
///
/// An endpoint that is destroyed is lost to its peers: its messages with a body are withdrawn, and messages to it fail.
/// Both wait for a copy in progress.
class InProcess {
  struct Message {
    Peer from;
    Peer to;
    Channel channel;
    std::vector<std::byte> head;
    std::vector<std::span<const std::byte>> body;
    std::uint64_t bytes;
    std::atomic<TicketState> state = TicketState::pending;
    // Guarded by the lock of the hub:
    bool withdrawn = false;
    bool copying = false;
    bool counted = true;  // in the window
  };
  using MessagePtr = std::shared_ptr<Message>;

 public:
  struct Config {
    Peer peers = 2;
    Channel channels = 4;
    Index window_messages = 64;             ///< sent from one peer to another on one channel, and not received yet
    Index window_bytes = Index{256} << 20;  ///< the same for the bytes of bodies
  };

  /// Throws std::invalid_argument if a count is not positive.
  explicit InProcess(const Config& config) : config_(validated(config)), mailboxes_(count(config.peers)) {
    for (Mailbox& box : mailboxes_) {
      box.streams.resize(count(config.peers) * count(config.channels));
      box.broken.resize(count(config.peers), false);
    }
  }
  InProcess(const InProcess&) = delete;
  InProcess& operator=(const InProcess&) = delete;

  /// The transport of one peer, for one thread at a time.
  class Endpoint {
   public:
    /// A message that was sent, or a body that was accepted. A default-constructed one is done.
    class Ticket {
     public:
      Ticket() = default;

     private:
      friend class Endpoint;
      explicit Ticket(MessagePtr message) : message_(std::move(message)) {}
      explicit Ticket(TicketState settled) : settled_(settled) {}
      MessagePtr message_;
      TicketState settled_ = TicketState::done;
    };

    /// A received head, and a body that can be accepted.
    class Arrival {
     public:
      Arrival(Arrival&&) = default;
      Arrival& operator=(Arrival&& other) noexcept {
        discard();
        hub_ = other.hub_;
        message_ = std::move(other.message_);
        return *this;
      }
      ~Arrival() { discard(); }
      /// The sender.
      [[nodiscard]] Peer peer() const noexcept { return message_->from; }
      /// The head. Valid as long as the arrival.
      [[nodiscard]] std::span<const std::byte> head() const noexcept { return message_->head; }
      /// Bytes of the body.
      [[nodiscard]] std::uint64_t body_bytes() const noexcept { return message_->bytes; }

     private:
      friend class Endpoint;
      Arrival(InProcess& hub, MessagePtr message) : hub_(&hub), message_(std::move(message)) {}
      void discard() noexcept {
        if (message_ != nullptr) {
          const std::lock_guard lock(hub_->mutex_);
          hub_->take(*std::exchange(message_, nullptr), TicketState::done);
        }
      }
      InProcess* hub_;
      MessagePtr message_;
    };

    /// Throws std::invalid_argument if there is no such peer, or it already had an endpoint.
    Endpoint(InProcess& hub, Peer self) : hub_(&hub), self_(self) {
      require_between(self, Peer{0}, hub.config_.peers - 1, "self");
      const std::lock_guard lock(hub.mutex_);
      require(!std::exchange(hub.box(self).connected, true), "self", self, "a peer that never had an endpoint");
    }
    Endpoint(const Endpoint&) = delete;
    Endpoint& operator=(const Endpoint&) = delete;
    ~Endpoint() {
      for (Peer peer = 0; peer < peers(); ++peer) {
        drop(peer);
      }
    }

    /// The number of this peer.
    [[nodiscard]] Peer self() const noexcept { return self_; }
    /// Peers of the hub.
    [[nodiscard]] Peer peers() const noexcept { return hub_->config_.peers; }
    /// Streams from each peer to each other.
    [[nodiscard]] Channel channels() const noexcept { return hub_->config_.channels; }

    /// Sends a message; empty if the window to that peer is full.
    std::optional<Ticket> try_send(Peer to, Channel channel, std::span<const std::byte> head, SendSpans body = {}) {
      require_peer(to);
      require_channel(channel);
      require(head.size() <= max_message_head, "head.size()", head.size(), "at most max_message_head");
      const std::uint64_t bytes = io::total_bytes(body);
      const auto message = std::make_shared<Message>();
      message->from = self_;
      message->to = to;
      message->channel = channel;
      message->head.assign(head.begin(), head.end());
      message->body.assign(body.begin(), body.end());
      message->bytes = bytes;
      const std::lock_guard lock(hub_->mutex_);
      if (hub_->is_broken(self_, to)) {
        return Ticket(TicketState::failed);
      }
      Stream& stream = hub_->stream(self_, to, channel);
      const bool fits = stream.messages < hub_->config_.window_messages &&
                        stream.bytes + bytes <= static_cast<std::uint64_t>(hub_->config_.window_bytes);
      if (!fits && stream.messages > 0) {
        return std::nullopt;
      }
      if (bytes == 0) {
        message->state = TicketState::done;
      }
      stream.queue.push_back(message);
      ++stream.messages;
      stream.bytes += bytes;
      hub_->notify(to);
      return Ticket(message);
    }

    /// The next message on a channel, from any peer.
    std::optional<Arrival> poll(Channel channel) {
      require_channel(channel);
      const std::lock_guard lock(hub_->mutex_);
      for (Peer i = 0; i < peers(); ++i) {
        const Peer from = next_;
        next_ = next_ + 1 == peers() ? 0 : next_ + 1;
        Stream& stream = hub_->stream(from, self_, channel);
        if (!stream.queue.empty()) {
          const MessagePtr message = std::move(stream.queue.front());
          stream.queue.pop_front();
          if (message->bytes == 0) {
            hub_->take(*message, TicketState::done);
          } else {
            stream.taken.push_back(message);
          }
          return Arrival(*hub_, message);
        }
      }
      return std::nullopt;
    }

    /// Copies the body of an arrival to `spans`.
    Ticket accept(Arrival&& arrival, ReceiveSpans spans) {
      require(io::total_bytes(spans) == arrival.body_bytes(), "spans", io::total_bytes(spans),
              "as many bytes as the body has");
      const MessagePtr message = std::exchange(arrival.message_, nullptr);
      std::unique_lock lock(hub_->mutex_);
      if (message->withdrawn) {
        return Ticket(TicketState::failed);
      }
      message->copying = true;
      lock.unlock();
      detail::copy_body(message->body, spans);
      lock.lock();
      message->copying = false;
      hub_->take(*message, TicketState::done);
      hub_->copied_.notify_all();
      return {};
    }

    /// The state of a message or body.
    [[nodiscard]] TicketState state(const Ticket& ticket) const noexcept {
      return ticket.message_ == nullptr ? ticket.settled_ : ticket.message_->state.load();
    }

    /// Always true. Waits for a peer that is copying the body.
    bool cancel(Ticket& ticket) {
      if (ticket.message_ != nullptr) {
        std::unique_lock lock(hub_->mutex_);
        hub_->withdraw(lock, ticket.message_);
      }
      return true;
    }

    /// Blocks until there may be news, or until the time.
    bool wait(TimePoint until) {
      std::unique_lock lock(hub_->mutex_);
      Mailbox& own = hub_->box(self_);
      const auto is_new = [&] { return own.events != seen_; };
      if (until == no_deadline) {
        own.changed.wait(lock, is_new);
      } else {
        own.changed.wait_until(lock, until, is_new);
      }
      return std::exchange(seen_, own.events) != own.events;
    }

    /// Whether the peer has closed, or was dropped.
    [[nodiscard]] bool is_lost(Peer peer) const {
      require_peer(peer);
      const std::lock_guard lock(hub_->mutex_);
      return hub_->is_broken(self_, peer);
    }

    /// The peer loses this endpoint too.
    void drop(Peer peer) {
      require_peer(peer);
      std::unique_lock lock(hub_->mutex_);
      hub_->box(self_).broken[count(peer)] = true;
      for (Channel channel = 0; channel < channels(); ++channel) {
        for (const auto& [from, to] : {std::pair(self_, peer), std::pair(peer, self_)}) {
          Stream& stream = hub_->stream(from, to, channel);
          std::vector<MessagePtr> bodies = stream.taken;
          std::copy_if(stream.queue.begin(), stream.queue.end(), std::back_inserter(bodies),
                       [](const MessagePtr& message) { return message->bytes > 0; });
          for (const MessagePtr& message : bodies) {
            hub_->withdraw(lock, message);
          }
        }
      }
      hub_->notify(peer);
      hub_->notify(self_);
    }

   private:
    void require_peer(Peer peer) const { require_between(peer, Peer{0}, peers() - 1, "peer"); }
    void require_channel(Channel channel) const { require_between(channel, Channel{0}, channels() - 1, "channel"); }

    InProcess* hub_;
    Peer self_;
    Peer next_ = 0;           // that is polled next
    std::uint64_t seen_ = 0;  // events, at the last wait
  };

 private:
  /// Messages from one peer to another on one channel.
  struct Stream {
    std::deque<MessagePtr> queue;   // not polled yet
    std::vector<MessagePtr> taken;  // polled, but the body not received
    Index messages = 0;             // in the window
    std::uint64_t bytes = 0;
  };
  struct Mailbox {
    std::vector<Stream> streams;  // by sender and channel
    std::vector<bool> broken;     // by peer: this one has dropped it
    bool connected = false;
    std::uint64_t events = 0;  // news for its owner
    std::condition_variable changed;
  };

  static const Config& validated(const Config& config) {
    require(config.peers >= 1, "config.peers", config.peers, "at least 1");
    require(config.channels >= 1, "config.channels", config.channels, "at least 1");
    require(config.window_messages >= 1, "config.window_messages", config.window_messages, "at least 1");
    require(config.window_bytes >= 1, "config.window_bytes", config.window_bytes, "at least 1");
    return config;
  }
  template <std::signed_integral I>
  [[nodiscard]] static std::size_t count(I i) noexcept {
    return static_cast<std::size_t>(i);
  }

  // All of these need the lock.
  [[nodiscard]] Mailbox& box(Peer peer) noexcept { return mailboxes_[count(peer)]; }
  [[nodiscard]] Stream& stream(Peer from, Peer to, Channel channel) noexcept {
    return box(to).streams[count(from) * count(config_.channels) + count(channel)];
  }
  [[nodiscard]] bool is_broken(Peer a, Peer b) noexcept { return box(a).broken[count(b)] || box(b).broken[count(a)]; }
  void notify(Peer peer) noexcept {
    ++box(peer).events;
    box(peer).changed.notify_all();
  }
  /// Settles a pending message, and removes it from the window.
  void take(Message& message, TicketState settled) noexcept {
    if (std::exchange(message.counted, false)) {
      Stream& s = stream(message.from, message.to, message.channel);
      --s.messages;
      s.bytes -= message.bytes;
      std::erase_if(s.taken, [&](const MessagePtr& m) { return m.get() == &message; });
      if (message.state == TicketState::pending) {
        message.state = settled;
      }
      notify(message.from);
    }
  }
  void withdraw(std::unique_lock<std::mutex>& lock, MessagePtr message) {
    copied_.wait(lock, [&] { return !message->copying; });
    if (message->state == TicketState::pending) {
      message->withdrawn = true;
      std::erase(stream(message->from, message->to, message->channel).queue, message);
      take(*message, TicketState::failed);
      notify(message->to);
    }
  }

  Config config_;
  std::vector<Mailbox> mailboxes_;  // by peer
  std::mutex mutex_;
  std::condition_variable copied_;
};
static_assert(Transport<InProcess::Endpoint>);

}  // namespace transport
}  // namespace v0
}  // namespace kvc
