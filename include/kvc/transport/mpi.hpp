// Mpi: a transport between the processes of an MPI communicator.
//
//   MPI_Init(&argc, &argv);
//   transport::Mpi transport(MPI_COMM_WORLD);       // peer numbers are ranks; collective over the communicator
//
// Define OMPI_SKIP_MPICXX, or link kvc::mpi, which does.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/transport/backoff.hpp"
#include "kvc/transport/concept.hpp"
#include "kvc/transport/mpi_control.hpp"
#include "kvc/transport/mpi_handles.hpp"
#include "kvc/transport/mpi_operation.hpp"
#include "kvc/transport/mpi_process.hpp"
#include "kvc/transport/mpi_stream.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {

/// A Transport whose peers are the ranks of a communicator. One thread at a time. MPI must be initialised before, with
/// MPI_THREAD_FUNNELED at least, or MPI_THREAD_MULTIPLE if other threads use it too, and finalised after.
///
/// A message is its head, and its body in parts (transport/mpi_operation.hpp), straight from the blocks of one pool to
/// those of another. The receiver matches the parts as they are announced; many are in flight at once. Acknowledgements
/// keep a window per peer and channel, which bounds what MPI may have to buffer.
///
/// Progress is made in poll, accept, cancel and wait, and in try_send when the window is full. It starts no thread.
///
/// Peers that die: MPI reports nothing (and mpirun ends all ranks, unless it runs with --enable-recovery). A peer on
/// the same machine is lost as soon as its process has ended; for one on another machine only the timeouts of transfers
/// help. A peer that violates the protocol (a part that exceeds its body, a head of a bad size) is lost, too.
///
/// MPI cannot cancel a message that was sent or a part that was matched. A ticket of a peer that is lost or dropped
/// stays pending, and its memory in use, until MPI no longer uses it or the process of that peer is known to have
/// ended. For a silent peer on another machine this may be never. Until then the memory (the pool) must stay; a program
/// that cannot wait ends with MPI_Abort.
class Mpi {
  using Operation = detail::Operation;
  using OperationPtr = std::shared_ptr<Operation>;
  using ControlMessage = detail::ControlMessage;
  using Stream = detail::Stream;

 public:
  struct Config {
    Channel channels = 4;
    Index window_messages = 64;             ///< sent to a peer on a channel, and not received there
    Index window_bytes = Index{256} << 20;  ///< of bodies in flight to a peer
    std::size_t part_bytes = 32 << 10;      ///< spans of at least this size are MPI messages of their own
  };

  /// Collective. Throws std::invalid_argument if a count is not positive.
  explicit Mpi(MPI_Comm comm, const Config& config) : config_(config) {
    require(config.channels >= 1, "config.channels", config.channels, "at least 1");
    require(config.window_messages >= 1, "config.window_messages", config.window_messages, "at least 1");
    require(config.window_bytes >= 1, "config.window_bytes", config.window_bytes, "at least 1");
    require(config.part_bytes >= 1, "config.part_bytes", config.part_bytes, "at least 1");
    MPI_Comm_dup(comm, &comm_);
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);  // an error with a peer fails its operations
    int rank = 0;
    int size = 0;
    MPI_Comm_rank(comm_, &rank);
    MPI_Comm_size(comm_, &size);
    self_ = rank;
    peers_.resize(static_cast<std::size_t>(size));
    std::vector<detail::PeerProcess> processes = detail::meet_processes(comm_);
    for (std::size_t i = 0; i < peers_.size(); ++i) {
      peers_[i].streams.resize(static_cast<std::size_t>(config.channels));
      peers_[i].process = std::move(processes[i]);
    }
  }
  /// With the default configuration.
  explicit Mpi(MPI_Comm comm) : Mpi(comm, Config()) {}
  Mpi(const Mpi&) = delete;
  Mpi& operator=(const Mpi&) = delete;
  /// Tells the peers that it closes, once its messages have left or a second has passed. MPI must not be finalised yet.
  ~Mpi() {
    const TimePoint until = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    const auto is_to_live_peer = [&](const OperationPtr& operation) { return !peer_state(operation->peer).lost; };
    while (std::any_of(active_.begin(), active_.end(), is_to_live_peer) && std::chrono::steady_clock::now() < until) {
      progress();
    }
    for (Peer peer = 0; peer < peers(); ++peer) {
      if (peer != self_ && !peer_state(peer).lost) {
        (void)control_.send(comm_, peer, {ControlMessage::closing, 0});
      }
    }
    while (!control_.empty() && std::chrono::steady_clock::now() < until) {
      progress();
    }
    // Never destroyed: until it is finalised, MPI may use the memory of operations that are not complete.
    alignas(Grave) static std::byte place[sizeof(Grave)];
    static Grave& left = *::new (place) Grave;
    left.operations.insert(left.operations.end(), active_.begin(), active_.end());
    left.operations.insert(left.operations.end(), grave_.operations.begin(), grave_.operations.end());
    control_.move_to(left.control);
    grave_.control.move_to(left.control);
    // The communicator is not freed: some implementations wait for all ranks, and they may be dead.
  }

  using Ticket = detail::MpiTicket;
  using Arrival = detail::MpiArrival;

  /// The rank of this process.
  [[nodiscard]] Peer self() const noexcept { return self_; }
  /// Processes of the communicator.
  [[nodiscard]] Peer peers() const noexcept { return static_cast<Peer>(peers_.size()); }
  /// Streams from each peer to each other.
  [[nodiscard]] Channel channels() const noexcept { return config_.channels; }

  /// Sends a message, its body in parts; empty if the window to that peer is full.
  std::optional<Ticket> try_send(Peer to, Channel channel, std::span<const std::byte> head, SendSpans body = {}) {
    require_peer(to);
    require_channel(channel);
    require(head.size() <= max_message_head, "head.size()", head.size(), "at most max_message_head");
    const std::uint64_t bytes = io::total_bytes(body);
    PeerState& peer = peer_state(to);
    Stream& stream = peer.streams[static_cast<std::size_t>(channel)];
    const auto is_full = [&] {
      return stream.unacknowledged >= config_.window_messages ||
             (bytes > 0 && peer.sending_bytes > 0 &&
              peer.sending_bytes + bytes > static_cast<std::uint64_t>(config_.window_bytes));
    };
    if (is_full()) {
      progress();
    }
    const auto operation = std::make_shared<Operation>(to, channel);
    if (peer.lost) {
      operation->state = TicketState::failed;
      return Ticket(operation);
    }
    if (is_full()) {
      return std::nullopt;
    }
    operation->sends_bytes = bytes;
    peer.sending_bytes += bytes;
    ++stream.unacknowledged;
    operation->send_head(comm_, head_tag(channel), bytes, head);
    if (operation->has_begun()) {
      operation->send_body(comm_, body_tag(channel), config_.part_bytes, body);
    }
    active_.push_back(operation);
    if (!operation->has_begun()) {
      lose(to);  // the next message would be taken for the rest of this one
    }
    return Ticket(operation);
  }

  /// The next message on a channel, from any peer. Makes progress.
  std::optional<Arrival> poll(Channel channel) {
    require_channel(channel);
    progress();
    for (;;) {
      int flag = 0;
      MPI_Message message = MPI_MESSAGE_NULL;
      MPI_Status status;
      MPI_Improbe(MPI_ANY_SOURCE, head_tag(channel), comm_, &flag, &message, &status);
      if (flag == 0) {
        return std::nullopt;
      }
      const Peer from = status.MPI_SOURCE;
      std::uint64_t bytes = 0;
      constexpr int least = sizeof bytes, most = least + static_cast<int>(max_message_head);
      int size = 0;
      MPI_Get_count(&status, MPI_BYTE, &size);
      std::vector<std::byte> wire(static_cast<std::size_t>(std::clamp(size, 0, most)));
      if (size < least || size > most ||
          MPI_Mrecv(wire.data(), size, MPI_BYTE, &message, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
        lose(from);  // not a head of this protocol
        continue;
      }
      std::memcpy(&bytes, wire.data(), sizeof bytes);
      wire.erase(wire.begin(), wire.begin() + sizeof bytes);
      if (bytes == 0) {
        acknowledge(from, channel);
        return Arrival(from, std::move(wire), bytes, nullptr);
      }
      const OperationPtr operation = Operation::receive(from, channel, bytes);
      operation->discards = peer_state(from).lost;
      peer_state(from).streams[static_cast<std::size_t>(channel)].arriving.push_back(operation);
      if (!operation->discards) {
        return Arrival(from, std::move(wire), bytes, operation);
      }
    }
  }

  /// Receives the body of an arrival to `spans`.
  Ticket accept(Arrival&& arrival, ReceiveSpans spans) {
    require(io::total_bytes(spans) == arrival.body_bytes(), "spans", io::total_bytes(spans),
            "as many bytes as the body has");
    if (arrival.operation_ == nullptr) {
      return {};
    }
    const OperationPtr operation = std::exchange(arrival.operation_, nullptr);
    if (operation->state == TicketState::pending) {
      operation->receive_to(spans);
      match(operation->peer, operation->channel);
    }
    return Ticket(operation);
  }

  /// The state of a message or body.
  [[nodiscard]] TicketState state(const Ticket& ticket) const noexcept {
    if (ticket.operation_ == nullptr) {
      return TicketState::done;
    }
    return ticket.operation_->state;
  }

  /// Cannot cancel a message that was sent. Receives no more parts of a body.
  bool cancel(Ticket& ticket) {
    progress();
    if (state(ticket) == TicketState::pending && ticket.operation_->receives) {
      stream_of(*ticket.operation_).cut(ticket.operation_);
    }
    return state(ticket) != TicketState::pending;
  }

  /// MPI cannot sleep until a message arrives, so this polls (transport/backoff.hpp), every 1 ms at least, or every 100
  /// us while messages are in flight, which MPI may have to push on.
  bool wait(TimePoint until) {
    TimePoint now = std::chrono::steady_clock::now();
    for (const detail::Backoff backoff(now);; now = std::chrono::steady_clock::now()) {
      progress();
      if (std::exchange(seen_, events_) != events_ || has_arrivals()) {
        return true;
      }
      if (now >= until) {
        return false;
      }
      backoff.pause(now, until, std::chrono::microseconds(active_.empty() ? 1000 : 100));
    }
  }

  /// Whether the peer has closed, has died, or was dropped.
  [[nodiscard]] bool is_lost(Peer peer) const {
    require_peer(peer);
    return peers_[static_cast<std::size_t>(peer)].lost;
  }

  /// Treats the peer as lost from now on.
  void drop(Peer peer) {
    require_peer(peer);
    lose(peer);
  }

 private:
  struct PeerState {
    std::vector<Stream> streams;  // by channel
    std::uint64_t sending_bytes = 0;
    detail::PeerProcess process;
    bool lost = false;   // nothing is sent to it, no body is received
    bool ended = false;  // MPI uses no memory for it any more
  };
  /// Operations and messages that MPI may still refer to, though nobody waits for them.
  struct Grave {
    std::vector<OperationPtr> operations;
    detail::ControlMessages control;
  };

  [[nodiscard]] static int head_tag(Channel channel) noexcept { return 1 + 2 * channel; }
  [[nodiscard]] static int body_tag(Channel channel) noexcept { return 2 + 2 * channel; }

  void require_peer(Peer peer) const { require_between(peer, Peer{0}, peers() - 1, "peer"); }
  void require_channel(Channel channel) const { require_between(channel, Channel{0}, channels() - 1, "channel"); }
  [[nodiscard]] PeerState& peer_state(Peer peer) noexcept { return peers_[static_cast<std::size_t>(peer)]; }

  [[nodiscard]] Stream& stream_of(const Operation& operation) noexcept {
    return peer_state(operation.peer).streams[static_cast<std::size_t>(operation.channel)];
  }

  void match(Peer from, Channel channel) {
    Stream& stream = peer_state(from).streams[static_cast<std::size_t>(channel)];
    const auto begun = [&](const OperationPtr& operation) {
      if (std::find(active_.begin(), active_.end(), operation) == active_.end()) {
        active_.push_back(operation);
      }
    };
    if (!stream.match(comm_, body_tag(channel), begun)) {
      lose(from);
    }
  }

  void progress() {
    detail::ControlMessages::receive(
        comm_,
        [&](Peer from, const ControlMessage& message) {
          ++events_;
          if (message.channel == ControlMessage::closing) {
            lose(from);
          } else if (0 <= message.channel && message.channel < channels()) {
            Stream& stream = peer_state(from).streams[static_cast<std::size_t>(message.channel)];
            stream.unacknowledged -= std::clamp<Index>(message.messages, 0, stream.unacknowledged);
          }
        },
        [&](Peer from) { lose(from); });
    control_.test();
    for (Peer peer = 0; peer < peers(); ++peer) {
      for (Channel channel = 0; channel < channels(); ++channel) {
        match(peer, channel);
      }
    }
    std::vector<OperationPtr> settled;
    std::erase_if(active_, [&](const OperationPtr& operation) {
      if (operation->test()) {
        settled.push_back(operation);
      }
      return operation->state != TicketState::pending;
    });
    for (const OperationPtr& operation : settled) {
      ++events_;
      peer_state(operation->peer).sending_bytes -= operation->sends_bytes;
      if (operation->acknowledges) {
        acknowledge(operation->peer, operation->channel);
      }
    }
    find_ended_processes();
  }

  [[nodiscard]] bool has_arrivals() {
    for (Channel channel = 0; channel < channels(); ++channel) {
      int flag = 0;
      MPI_Iprobe(MPI_ANY_SOURCE, head_tag(channel), comm_, &flag, MPI_STATUS_IGNORE);
      if (flag != 0) {
        return true;
      }
    }
    return false;
  }

  void acknowledge(Peer from, Channel channel) {
    Stream& stream = peer_state(from).streams[static_cast<std::size_t>(channel)];
    if (++stream.taken >= std::max<Index>(1, config_.window_messages / 2) && !peer_state(from).lost &&
        !control_.send(comm_, from, {channel, static_cast<std::int32_t>(std::exchange(stream.taken, 0))})) {
      lose(from);  // it would wait for this for ever
    }
  }

  /// Loses the peers on this machine whose processes have ended.
  void find_ended_processes() {
    const TimePoint now = std::chrono::steady_clock::now();
    if (now < next_look_) {
      return;
    }
    next_look_ = now + std::chrono::milliseconds(20);
    for (Peer peer = 0; peer < peers(); ++peer) {
      if (!peer_state(peer).ended && peer_state(peer).process.has_ended()) {
        lose(peer);
        bury(peer);
      }
    }
  }

  /// Receives no more from a peer, and sends it nothing. Calls that MPI has begun continue.
  void lose(Peer lost) {
    PeerState& peer = peer_state(lost);
    if (std::exchange(peer.lost, true)) {
      return;
    }
    ++events_;
    for (Stream& stream : peer.streams) {
      stream.cut_all();
    }
  }

  /// Settles all operations with a process that has ended.
  void bury(Peer dead) {
    peer_state(dead).ended = true;
    // Messages that it had queued for this process arrive in a few rounds; it queues no more.
    for (int round = 0; round < 1000; ++round) {
      int flag = 0;
      MPI_Iprobe(dead, detail::ControlMessages::tag, comm_, &flag, MPI_STATUS_IGNORE);
    }
    for (const OperationPtr& operation : active_) {
      if (operation->peer == dead && !operation->test()) {
        operation->state = TicketState::failed;
        grave_.operations.push_back(operation);  // MPI still refers to it
      }
    }
    std::erase_if(active_, [&](const OperationPtr& operation) { return operation->peer == dead; });
    for (Stream& stream : peer_state(dead).streams) {
      stream.arriving.clear();
    }
    control_.bury(dead, grave_.control);
    ++events_;
  }

  Config config_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  Peer self_ = 0;
  std::vector<PeerState> peers_;
  std::vector<OperationPtr> active_;
  detail::ControlMessages control_;
  Grave grave_;  // of processes that have ended
  std::uint64_t events_ = 0;
  std::uint64_t seen_ = 0;
  TimePoint next_look_{};
};
static_assert(Transport<Mpi>);

}  // namespace transport
}  // namespace v0
}  // namespace kvc
