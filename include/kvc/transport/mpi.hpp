// Mpi: a transport between the processes of an MPI communicator.
//
//   MPI_Init(&argc, &argv);
//   Mpi transport(MPI_COMM_WORLD);       // peer numbers are ranks; collective over the communicator
//
// A message is its head, and its body in parts (transport/mpi_operation.hpp), straight from the blocks of one pool to
// those of another. The receiver takes parts as they are announced (matched probes). Many are under way at once. A
// window of messages per peer and channel is kept by acknowledgements, and bounds what MPI may have to buffer.
//
// Progress is made in poll, accept, cancel and wait, in try_send when the window is full, and nowhere else: no thread
// is started, and MPI needs to be initialised with MPI_THREAD_FUNNELED at most, or with MPI_THREAD_MULTIPLE if others
// use it too.
//
// Peers that die: MPI itself says nothing (and mpirun ends all, unless it is run with --enable-recovery). A peer on the
// same machine, whose process has ended, is found to be lost; of another machine's only the deadlines of transfers tell.
//
// What MPI has begun it may go on with: neither a message that was sent nor a part that was matched can be called back.
// So a ticket of a peer that is lost or dropped stays pending, and its memory in use, until MPI is done with it or the
// process of that peer is known to have ended. Of a peer on another machine that says nothing more this is never known.
// Until then the memory (the pool) must stay; a program that cannot wait for it ends with MPI_Abort.
//
// A peer that does not keep to the protocol (a part larger than its body, a head or note of a wrong size) is lost.
//
// Define OMPI_SKIP_MPICXX or link kvc::mpi, which does. Threads: one at a time.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/transport/backoff.hpp"
#include "kvc/transport/concept.hpp"
#include "kvc/transport/mpi_control.hpp"
#include "kvc/transport/mpi_operation.hpp"
#include "kvc/transport/mpi_process.hpp"
#include "kvc/transport/mpi_stream.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {

class Mpi {
  using Operation = detail::Operation;
  using OperationPtr = std::shared_ptr<Operation>;
  using Note = detail::ControlMessage;
  using Stream = detail::Stream;

 public:
  struct Config {
    Channel channels = 4;
    Index window_messages = 64;             ///< sent on a channel to a peer, and not taken there
    Index window_bytes = Index{256} << 20;  ///< bodies on their way to a peer
    std::size_t part_bytes = 32 << 10;      ///< pieces of at least this size are messages of their own
  };

  /// Collective. Throws std::invalid_argument if a count is not positive.
  explicit Mpi(MPI_Comm comm, const Config& config) : config_(config) {
    require(config.channels >= 1, "config.channels", config.channels, "at least 1");
    require(config.window_messages >= 1, "config.window_messages", config.window_messages, "at least 1");
    require(config.window_bytes >= 1, "config.window_bytes", config.window_bytes, "at least 1");
    require(config.part_bytes >= 1, "config.part_bytes", config.part_bytes, "at least 1");
    MPI_Comm_dup(comm, &comm_);
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);  // what fails with a peer fails its operations
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
  explicit Mpi(MPI_Comm comm) : Mpi(comm, Config()) {}
  Mpi(const Mpi&) = delete;
  Mpi& operator=(const Mpi&) = delete;
  /// Says good-bye to the others, after what it has sent has gone or a second has passed. MPI must not be finalised
  /// yet.
  ~Mpi() {
    const TimePoint until = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    const auto is_of_the_living = [&](const OperationPtr& operation) { return !neighbour(operation->peer).lost; };
    while (std::any_of(active_.begin(), active_.end(), is_of_the_living) && std::chrono::steady_clock::now() < until) {
      progress();
    }
    for (Peer peer = 0; peer < peers(); ++peer) {
      if (peer != self_ && !neighbour(peer).lost) {
        (void)notes_.send(comm_, peer, {Note::closing, 0});
      }
    }
    while (!notes_.empty() && std::chrono::steady_clock::now() < until) {
      progress();
    }
    // MPI may use the memory of what is still under way until it is finalised: never destroyed.
    static auto& left = *new Grave;
    left.operations.insert(left.operations.end(), active_.begin(), active_.end());
    left.operations.insert(left.operations.end(), grave_.operations.begin(), grave_.operations.end());
    notes_.move_to(left.notes);
    grave_.notes.move_to(left.notes);
    // The communicator is not freed: that waits for all others in some implementations, and they may be dead.
  }

  class Ticket {
   public:
    Ticket() = default;

   private:
    friend class Mpi;
    explicit Ticket(OperationPtr operation) : operation_(std::move(operation)) {}
    OperationPtr operation_;  // none: done
  };

  class Arrival {
   public:
    Arrival(Arrival&&) = default;
    Arrival& operator=(Arrival&& other) noexcept {
      std::swap(operation_, other.operation_);
      std::swap(peer_, other.peer_);
      std::swap(body_bytes_, other.body_bytes_);
      std::swap(head_, other.head_);
      return *this;
    }
    ~Arrival() {
      if (operation_ != nullptr) {
        operation_->discards = true;  // as if it were received, by progress
      }
    }
    [[nodiscard]] Peer peer() const noexcept { return peer_; }
    [[nodiscard]] std::span<const std::byte> head() const noexcept { return head_; }
    [[nodiscard]] std::uint64_t body_bytes() const noexcept { return body_bytes_; }

   private:
    friend class Mpi;
    Arrival(Peer peer, std::vector<std::byte> head, std::uint64_t body_bytes, OperationPtr operation)
        : operation_(std::move(operation)), peer_(peer), body_bytes_(body_bytes), head_(std::move(head)) {}
    OperationPtr operation_;  // none: it has no body, or was accepted
    Peer peer_;
    std::uint64_t body_bytes_;
    std::vector<std::byte> head_;
  };

  [[nodiscard]] Peer self() const noexcept { return self_; }
  [[nodiscard]] Peer peers() const noexcept { return static_cast<Peer>(peers_.size()); }
  [[nodiscard]] Channel channels() const noexcept { return config_.channels; }

  std::optional<Ticket> try_send(Peer to, Channel channel, std::span<const std::byte> head, SendSpans body = {}) {
    require_peer(to);
    require_channel(channel);
    require(head.size() <= max_message_head, "head.size()", head.size(), "at most max_message_head");
    const std::uint64_t bytes = detail::total_bytes(body);
    Neighbour& peer = neighbour(to);
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
      lose(to);  // what follows would be taken for the rest of this
    }
    return Ticket(operation);
  }

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
        lose(from);  // no head of ours: it is not received
        continue;
      }
      std::memcpy(&bytes, wire.data(), sizeof bytes);
      wire.erase(wire.begin(), wire.begin() + sizeof bytes);
      if (bytes == 0) {
        acknowledge(from, channel);
        return Arrival(from, std::move(wire), bytes, nullptr);
      }
      const OperationPtr operation = Operation::receive(from, channel, bytes);
      operation->discards = neighbour(from).lost;
      neighbour(from).streams[static_cast<std::size_t>(channel)].arriving.push_back(operation);
      if (!operation->discards) {
        return Arrival(from, std::move(wire), bytes, operation);
      }
    }
  }

  Ticket accept(Arrival&& arrival, ReceiveSpans pieces) {
    require(detail::total_bytes(pieces) == arrival.body_bytes(), "pieces", detail::total_bytes(pieces),
            "as many bytes as the body has");
    if (arrival.operation_ == nullptr) {
      return {};
    }
    const OperationPtr operation = std::exchange(arrival.operation_, nullptr);
    if (operation->state == TicketState::pending) {
      operation->receive_to(pieces);
      match(operation->peer, operation->channel);
    }
    return Ticket(operation);
  }

  [[nodiscard]] TicketState state(const Ticket& ticket) const noexcept {
    if (ticket.operation_ == nullptr) {
      return TicketState::done;
    }
    return ticket.operation_->state;
  }

  /// Messages that were sent cannot be called back; of a body, no more parts are received.
  bool cancel(Ticket& ticket) {
    progress();
    if (state(ticket) == TicketState::pending && ticket.operation_->receives) {
      stream_of(*ticket.operation_).cut(ticket.operation_);
    }
    return state(ticket) != TicketState::pending;
  }

  /// MPI has no way to sleep until something comes, so this looks again and again (transport/backoff.hpp): after 1 ms
  /// at most, or 100 us while messages are under way, which MPI may have to move on.
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

  [[nodiscard]] bool is_lost(Peer peer) const {
    require_peer(peer);
    return peers_[static_cast<std::size_t>(peer)].lost;
  }

  void drop(Peer peer) {
    require_peer(peer);
    lose(peer);
  }

 private:
  struct Neighbour {
    std::vector<Stream> streams;  // by channel
    std::uint64_t sending_bytes = 0;
    detail::PeerProcess process;
    bool lost = false;   // nothing is sent to it, no body is received
    bool ended = false;  // MPI uses no memory for it any more
  };
  /// What MPI may still look at, though nobody waits for it.
  struct Grave {
    std::vector<OperationPtr> operations;
    detail::ControlMessages notes;
  };

  [[nodiscard]] static int head_tag(Channel channel) noexcept { return 1 + 2 * channel; }
  [[nodiscard]] static int body_tag(Channel channel) noexcept { return 2 + 2 * channel; }

  void require_peer(Peer peer) const { require_between(peer, Peer{0}, peers() - 1, "peer"); }
  void require_channel(Channel channel) const { require_between(channel, Channel{0}, channels() - 1, "channel"); }
  [[nodiscard]] Neighbour& neighbour(Peer peer) noexcept { return peers_[static_cast<std::size_t>(peer)]; }

  [[nodiscard]] Stream& stream_of(const Operation& operation) noexcept {
    return neighbour(operation.peer).streams[static_cast<std::size_t>(operation.channel)];
  }

  void match(Peer from, Channel channel) {
    Stream& stream = neighbour(from).streams[static_cast<std::size_t>(channel)];
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
        [&](Peer from, const Note& note) {
          ++events_;
          if (note.channel == Note::closing) {
            lose(from);
          } else if (0 <= note.channel && note.channel < channels()) {
            Stream& stream = neighbour(from).streams[static_cast<std::size_t>(note.channel)];
            stream.unacknowledged -= std::clamp<Index>(note.messages, 0, stream.unacknowledged);
          }
        },
        [&](Peer from) { lose(from); });
    notes_.test();
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
      neighbour(operation->peer).sending_bytes -= operation->sends_bytes;
      if (operation->acknowledges) {
        acknowledge(operation->peer, operation->channel);
      }
    }
    look_for_the_dead();
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
    Stream& stream = neighbour(from).streams[static_cast<std::size_t>(channel)];
    if (++stream.taken >= std::max<Index>(1, config_.window_messages / 2) && !neighbour(from).lost &&
        !notes_.send(comm_, from, {channel, static_cast<std::int32_t>(std::exchange(stream.taken, 0))})) {
      lose(from);  // which would wait for this for ever
    }
  }

  /// Processes of this machine that are gone.
  void look_for_the_dead() {
    const TimePoint now = std::chrono::steady_clock::now();
    if (now < next_look_) {
      return;
    }
    next_look_ = now + std::chrono::milliseconds(20);
    for (Peer peer = 0; peer < peers(); ++peer) {
      if (!neighbour(peer).ended && neighbour(peer).process.has_ended()) {
        lose(peer);
        bury(peer);
      }
    }
  }

  /// Receives no more from a peer, and sends it nothing. What MPI has begun goes on.
  void lose(Peer lost) {
    Neighbour& peer = neighbour(lost);
    if (std::exchange(peer.lost, true)) {
      return;
    }
    ++events_;
    for (Stream& stream : peer.streams) {
      stream.cut_all();
    }
  }

  /// Settles all that is under way with a process that has ended.
  void bury(Peer dead) {
    neighbour(dead).ended = true;
    // What it had put into the queues of this process comes in a few rounds; it puts in no more.
    for (int round = 0; round < 1000; ++round) {
      int flag = 0;
      MPI_Iprobe(dead, detail::ControlMessages::tag, comm_, &flag, MPI_STATUS_IGNORE);
    }
    for (const OperationPtr& operation : active_) {
      if (operation->peer == dead && !operation->test()) {
        operation->state = TicketState::failed;
        grave_.operations.push_back(operation);  // MPI still knows it
      }
    }
    std::erase_if(active_, [&](const OperationPtr& operation) { return operation->peer == dead; });
    for (Stream& stream : neighbour(dead).streams) {
      stream.arriving.clear();
    }
    notes_.bury(dead, grave_.notes);
    ++events_;
  }

  Config config_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  Peer self_ = 0;
  std::vector<Neighbour> peers_;
  std::vector<OperationPtr> active_;
  detail::ControlMessages notes_;
  Grave grave_;  // of processes that have ended
  std::uint64_t events_ = 0;
  std::uint64_t seen_ = 0;
  TimePoint next_look_{};
};
static_assert(Transport<Mpi>);

}  // namespace transport
}  // namespace v0
}  // namespace kvc
