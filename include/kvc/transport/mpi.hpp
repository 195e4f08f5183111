// MpiTransport: a transport between the processes of an MPI communicator.
//
//   MPI_Init(&argc, &argv);
//   MpiTransport transport(MPI_COMM_WORLD);       // peer numbers are ranks; collective over the communicator
//
// A message is its head, of at most 536 bytes, and its body in parts: each piece that is large enough is an MPI message
// of its own, straight from the blocks of the pool; smaller ones go together, described by a derived datatype. The
// receiver takes the parts as they are announced (matched probes), straight to where they belong, whatever the pieces
// there. Many are under way at once. A window of messages per peer and channel is kept by acknowledgements, and bounds
// what MPI may have to buffer.
//
// Progress is made in poll, accept, cancel and wait, in try_send when the window is full,, and nowhere else: no thread
// is started, and MPI needs to be initialised with MPI_THREAD_FUNNELED at most, or with MPI_THREAD_MULTIPLE if others
// use it too.
//
// Peers that die: MPI itself says nothing (and mpirun ends all, unless it is run with --enable-recovery). A peer on the
// same machine, whose process is gone, is found to be lost; of another machine's only the deadlines of transfers tell.
// Operations with a lost peer fail. What MPI had begun to receive from it is given up only when its process is known to
// be gone, or when the peer is dropped.
//
// Define OMPI_SKIP_MPICXX or link kvc::mpi, which does. Threads: one at a time.
#pragma once

#include <mpi.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/transport/concept.hpp"

namespace kvc::inline v0 {

class MpiTransport {
  /// A body, or a message, that is under way.
  struct Operation {
    Peer peer = 0;
    TicketState state = TicketState::pending;
    std::vector<MPI_Request> requests;
    std::vector<std::byte> head;  // what is being sent
    std::uint64_t sends_bytes = 0;
    // Of a body that is received: where to, and how much has been matched.
    bool receives = false;
    Channel channel = 0;
    std::vector<std::span<std::byte>> pieces;
    std::size_t piece = 0;
    std::size_t offset = 0;  // in the piece
    std::uint64_t unmatched = 0;
    bool discards = false;
    std::vector<std::vector<std::byte>> scrap;
  };
  using OperationPtr = std::shared_ptr<Operation>;

 public:
  struct Config {
    Channel channels = 4;
    Index window_messages = 64;             ///< sent on a channel to a peer, and not taken there
    Index window_bytes = Index{256} << 20;  ///< bodies on their way to a peer
    std::size_t part_bytes = 32 << 10;      ///< pieces of at least this size are messages of their own
  };

  /// Collective. Throws std::invalid_argument if a count is not positive.
  explicit MpiTransport(MPI_Comm comm, const Config& config) : config_(config) {
    require(config.channels >= 1, "config.channels", config.channels, "at least 1");
    require(config.window_messages >= 1, "config.window_messages", config.window_messages, "at least 1");
    require(config.window_bytes >= 1, "config.window_bytes", config.window_bytes, "at least 1");
    require(config.part_bytes >= 1, "config.part_bytes", config.part_bytes, "at least 1");
    MPI_Comm_dup(comm, &comm_);
    int rank = 0;
    int size = 0;
    MPI_Comm_rank(comm_, &rank);
    MPI_Comm_size(comm_, &size);
    self_ = rank;
    peers_.resize(static_cast<std::size_t>(size));
    for (Neighbour& peer : peers_) {
      peer.streams.resize(static_cast<std::size_t>(config.channels));
    }
    meet();
  }
  explicit MpiTransport(MPI_Comm comm) : MpiTransport(comm, Config()) {}
  MpiTransport(const MpiTransport&) = delete;
  MpiTransport& operator=(const MpiTransport&) = delete;
  /// Says good-bye to the others, after what it has sent has gone or a second has passed. MPI must not be finalised
  /// yet.
  ~MpiTransport() {
    const TimePoint until = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    while (!active_.empty() && std::chrono::steady_clock::now() < until) {
      progress();
    }
    for (Peer peer = 0; peer < peers(); ++peer) {
      if (peer != self_ && !neighbour(peer).lost) {
        send_note(peer, Note{closing, 0});
      }
    }
    for (bool busy = true; busy && std::chrono::steady_clock::now() < until;) {
      progress();
      busy = !notes_.empty();
    }
    for (Peer peer = 0; peer < peers(); ++peer) {
      drop(peer);
    }
    // The communicator is not freed: that waits for all others in some implementations, and they may be dead.
  }

  class Ticket {
   public:
    Ticket() = default;

   private:
    friend class MpiTransport;
    explicit Ticket(OperationPtr operation) : operation_(std::move(operation)) {}
    OperationPtr operation_;  // none: done
  };

  class Arrival {
   public:
    Arrival(Arrival&&) = default;
    Arrival& operator=(Arrival&& other) noexcept {
      std::swap(transport_, other.transport_);
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
    friend class MpiTransport;
    Arrival(MpiTransport& transport, Peer peer, std::vector<std::byte> head, std::uint64_t body_bytes,
            OperationPtr operation)
        : transport_(&transport),
          operation_(std::move(operation)),
          peer_(peer),
          body_bytes_(body_bytes),
          head_(std::move(head)) {}
    MpiTransport* transport_;
    OperationPtr operation_;  // none: it has no body, or was accepted
    Peer peer_;
    std::uint64_t body_bytes_;
    std::vector<std::byte> head_;
  };

  [[nodiscard]] Peer self() const noexcept { return self_; }
  [[nodiscard]] Peer peers() const noexcept { return static_cast<Peer>(peers_.size()); }
  [[nodiscard]] Channel channels() const noexcept { return config_.channels; }

  std::optional<Ticket> try_send(Peer to, Channel channel, std::span<const std::byte> head, SendPieces body = {}) {
    require_peer(to);
    require_channel(channel);
    require(head.size() <= max_message_head, "head.size()", head.size(), "at most max_message_head");
    std::uint64_t bytes = 0;
    for (const std::span<const std::byte> piece : body) {
      bytes += piece.size();
    }
    Neighbour& peer = neighbour(to);
    Stream& stream = peer.streams[static_cast<std::size_t>(channel)];
    const auto is_full = [&] {
      return stream.unacknowledged >= config_.window_messages ||
             (peer.sending_bytes > 0 && peer.sending_bytes + bytes > static_cast<std::uint64_t>(config_.window_bytes));
    };
    if (is_full()) {
      progress();
    }
    const auto operation = std::make_shared<Operation>();
    operation->peer = to;
    if (peer.lost) {
      operation->state = TicketState::failed;
      return Ticket(operation);
    }
    if (is_full()) {
      return std::nullopt;
    }
    operation->head.resize(sizeof bytes + head.size());
    std::memcpy(operation->head.data(), &bytes, sizeof bytes);
    std::copy(head.begin(), head.end(), operation->head.begin() + sizeof bytes);
    operation->sends_bytes = bytes;
    peer.sending_bytes += bytes;
    ++stream.unacknowledged;
    MPI_Isend(operation->head.data(), static_cast<int>(operation->head.size()), MPI_BYTE, to, head_tag(channel), comm_,
              &operation->requests.emplace_back());
    send_parts(*operation, to, channel, body);
    active_.push_back(operation);
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
      int size = 0;
      MPI_Get_count(&status, MPI_BYTE, &size);
      std::vector<std::byte> wire(static_cast<std::size_t>(size));
      MPI_Mrecv(wire.data(), size, MPI_BYTE, &message, MPI_STATUS_IGNORE);
      const Peer from = status.MPI_SOURCE;
      std::uint64_t bytes = 0;
      if (wire.size() < sizeof bytes) {
        continue;  // not one of ours
      }
      std::memcpy(&bytes, wire.data(), sizeof bytes);
      wire.erase(wire.begin(), wire.begin() + sizeof bytes);
      OperationPtr operation;
      if (bytes > 0) {
        operation = std::make_shared<Operation>();
        operation->peer = from;
        operation->channel = channel;
        operation->receives = true;
        operation->unmatched = bytes;
        neighbour(from).streams[static_cast<std::size_t>(channel)].arriving.push_back(operation);
        if (neighbour(from).dropped) {
          operation->discards = true;
          continue;
        }
      } else {
        acknowledge(from, channel);
      }
      return Arrival(*this, from, std::move(wire), bytes, std::move(operation));
    }
  }

  Ticket accept(Arrival&& arrival, ReceivePieces pieces) {
    std::uint64_t bytes = 0;
    for (const std::span<std::byte> piece : pieces) {
      bytes += piece.size();
    }
    require(bytes == arrival.body_bytes(), "pieces", bytes, "as many bytes as the body has");
    if (arrival.operation_ == nullptr) {
      return {};
    }
    const OperationPtr operation = std::exchange(arrival.operation_, nullptr);
    if (operation->state == TicketState::pending) {
      operation->pieces.assign(pieces.begin(), pieces.end());
      match(neighbour(operation->peer), operation->channel);
    }
    return Ticket(operation);
  }

  [[nodiscard]] TicketState state(const Ticket& ticket) const noexcept {
    if (ticket.operation_ == nullptr) {
      return TicketState::done;
    }
    return ticket.operation_->state;
  }

  /// Messages that were sent cannot be called back; a body can be refused between two of its parts.
  bool cancel(Ticket& ticket) {
    progress();
    if (state(ticket) != TicketState::pending) {
      return true;
    }
    Operation& operation = *ticket.operation_;
    int all_done = 0;
    MPI_Testall(static_cast<int>(operation.requests.size()), operation.requests.data(), &all_done, MPI_STATUSES_IGNORE);
    if (!operation.receives || all_done == 0) {
      return false;
    }
    auto& arriving = neighbour(operation.peer).streams[static_cast<std::size_t>(operation.channel)].arriving;
    for (OperationPtr& entry : arriving) {
      if (entry == ticket.operation_) {  // the rest of it comes to nobody
        entry = std::make_shared<Operation>();
        entry->peer = operation.peer;
        entry->channel = operation.channel;
        entry->receives = entry->discards = true;
        entry->unmatched = operation.unmatched;
      }
    }
    std::erase(active_, ticket.operation_);
    operation.state = TicketState::failed;
    return true;
  }

  bool wait(TimePoint until) {
    for (int turns = 0;; ++turns) {
      progress();
      if (std::exchange(seen_, events_) != events_ || has_arrivals()) {
        return true;
      }
      if (std::chrono::steady_clock::now() >= until) {
        return false;
      }
      if (turns < 200) {
        std::this_thread::yield();
      } else {  // others may need the processor
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }
  }

  [[nodiscard]] bool is_lost(Peer peer) const {
    require_peer(peer);
    return peers_[static_cast<std::size_t>(peer)].lost;
  }

  void drop(Peer peer) {
    require_peer(peer);
    neighbour(peer).dropped = true;
    lose(peer);
  }

 private:
  struct Stream {
    Index unacknowledged = 0;           // messages sent there
    Index taken = 0;                    // messages that came, and are still to be acknowledged
    std::deque<OperationPtr> arriving;  // bodies of which not all parts have been matched, in the order of their heads
  };
  struct Neighbour {
    std::vector<Stream> streams;  // by channel
    std::uint64_t sending_bytes = 0;
    pid_t process = 0;  // 0: not of this machine
    bool lost = false;
    bool dropped = false;  // by this side: nothing is heard from it any more
  };
  /// What transports tell each other.
  struct Note {
    std::int32_t channel;
    std::int32_t messages;  // that were taken
  };
  static constexpr std::int32_t closing = -1;  // instead of a channel
  struct PendingNote {
    Note note;
    MPI_Request request;
    Peer to;
  };

  static constexpr int note_tag = 0;
  [[nodiscard]] static int head_tag(Channel channel) noexcept { return 1 + 2 * channel; }
  [[nodiscard]] static int body_tag(Channel channel) noexcept { return 2 + 2 * channel; }

  void require_peer(Peer peer) const { require_between(peer, Peer{0}, peers() - 1, "peer"); }
  void require_channel(Channel channel) const { require_between(channel, Channel{0}, channels() - 1, "channel"); }
  [[nodiscard]] Neighbour& neighbour(Peer peer) noexcept { return peers_[static_cast<std::size_t>(peer)]; }

  /// Learns which peers are processes that can be looked after.
  void meet() {
    struct Card {
      std::array<char, 256> host;
      std::uint64_t pid_namespace;
      std::int64_t process;
    };
    Card own{};
    gethostname(own.host.data(), own.host.size() - 1);
    struct stat space {};
    own.pid_namespace = stat("/proc/self/ns/pid", &space) == 0 ? static_cast<std::uint64_t>(space.st_ino) : 0;
    own.process = getpid();
    std::vector<Card> all(peers_.size());
    MPI_Allgather(&own, sizeof own, MPI_BYTE, all.data(), sizeof own, MPI_BYTE, comm_);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (all[i].host == own.host && all[i].pid_namespace == own.pid_namespace && all[i].process != own.process) {
        peers_[i].process = static_cast<pid_t>(all[i].process);
      }
    }
  }

  /// The datatype of pieces at absolute addresses, or of one piece.
  template <class Pieces, class F>
  static void with_type(const Pieces& pieces, F&& f) {
    if (pieces.size() == 1) {
      f(const_cast<std::byte*>(pieces.front().data()), static_cast<int>(pieces.front().size()), MPI_BYTE);
      return;
    }
    std::vector<int> lengths;
    std::vector<MPI_Aint> places;
    for (const auto& piece : pieces) {
      MPI_Aint place = 0;
      MPI_Get_address(piece.data(), &place);
      lengths.push_back(static_cast<int>(piece.size()));
      places.push_back(place);
    }
    MPI_Datatype type = MPI_DATATYPE_NULL;
    MPI_Type_create_hindexed(static_cast<int>(pieces.size()), lengths.data(), places.data(), MPI_BYTE, &type);
    MPI_Type_commit(&type);
    f(static_cast<void*>(MPI_BOTTOM), 1, type);
    MPI_Type_free(&type);  // once nothing uses it any more
  }

  void send_parts(Operation& operation, Peer to, Channel channel, SendPieces body) {
    constexpr std::size_t most = std::size_t{1} << 30;  // lengths are int
    std::vector<std::span<const std::byte>> part;
    std::size_t size = 0;
    const auto send = [&] {
      if (!part.empty()) {
        with_type(part, [&](const void* from, int count, MPI_Datatype type) {
          MPI_Isend(from, count, type, to, body_tag(channel), comm_, &operation.requests.emplace_back());
        });
        part.clear();
        size = 0;
      }
    };
    for (std::span<const std::byte> piece : body) {
      while (!piece.empty()) {
        const auto front = piece.first(std::min(piece.size(), most));
        piece = piece.subspan(front.size());
        if (front.size() >= config_.part_bytes || size >= 8 * config_.part_bytes) {
          send();
        }
        part.push_back(front);
        size += front.size();
        if (front.size() >= config_.part_bytes) {
          send();
        }
      }
    }
    send();
  }

  /// Receives parts of bodies that have been announced, to where they belong.
  void match(Neighbour& peer, Channel channel) {
    Stream& stream = peer.streams[static_cast<std::size_t>(channel)];
    while (!stream.arriving.empty()) {
      const OperationPtr operation = stream.arriving.front();
      if (operation->pieces.empty() && !operation->discards) {
        return;  // nobody has said yet where it goes
      }
      int flag = 0;
      MPI_Message message = MPI_MESSAGE_NULL;
      MPI_Status status;
      MPI_Improbe(operation->peer, body_tag(channel), comm_, &flag, &message, &status);
      if (flag == 0) {
        return;
      }
      int size = 0;
      MPI_Get_count(&status, MPI_BYTE, &size);
      auto bytes = static_cast<std::size_t>(size);
      KVC_ASSERT(bytes <= operation->unmatched);
      if (operation->discards) {
        std::vector<std::byte>& scrap = operation->scrap.emplace_back(bytes);
        MPI_Imrecv(scrap.data(), size, MPI_BYTE, &message, &operation->requests.emplace_back());
      } else {
        std::vector<std::span<std::byte>> part;
        for (std::size_t left = bytes; left > 0;) {
          const std::span<std::byte> rest = operation->pieces[operation->piece].subspan(operation->offset);
          const std::span<std::byte> front = rest.first(std::min(rest.size(), left));
          if (!front.empty()) {
            part.push_back(front);
          }
          left -= front.size();
          operation->offset += front.size();
          if (front.size() == rest.size()) {
            ++operation->piece;
            operation->offset = 0;
          }
        }
        with_type(part, [&](void* to, int count, MPI_Datatype type) {
          MPI_Imrecv(to, count, type, &message, &operation->requests.emplace_back());
        });
      }
      operation->unmatched -= bytes;
      if (std::find(active_.begin(), active_.end(), operation) == active_.end()) {
        active_.push_back(operation);
      }
      if (operation->unmatched == 0) {
        stream.arriving.pop_front();
      }
    }
  }

  void progress() {
    for (;;) {  // notes
      int flag = 0;
      MPI_Message message = MPI_MESSAGE_NULL;
      MPI_Status status;
      MPI_Improbe(MPI_ANY_SOURCE, note_tag, comm_, &flag, &message, &status);
      if (flag == 0) {
        break;
      }
      Note note{};
      MPI_Mrecv(&note, sizeof note, MPI_BYTE, &message, MPI_STATUS_IGNORE);
      ++events_;
      if (note.channel == closing) {
        lose(status.MPI_SOURCE);
      } else if (0 <= note.channel && note.channel < channels()) {
        neighbour(status.MPI_SOURCE).streams[static_cast<std::size_t>(note.channel)].unacknowledged -= note.messages;
      }
    }
    notes_.remove_if([](PendingNote& note) {
      int done = 0;
      MPI_Test(&note.request, &done, MPI_STATUS_IGNORE);
      return done != 0;
    });
    for (Neighbour& peer : peers_) {
      for (Channel channel = 0; channel < channels(); ++channel) {
        match(peer, channel);
      }
    }
    std::vector<OperationPtr> settled;
    std::erase_if(active_, [&](const OperationPtr& operation) {
      int done = 0;
      MPI_Testall(static_cast<int>(operation->requests.size()), operation->requests.data(), &done, MPI_STATUSES_IGNORE);
      if (done == 0 || operation->unmatched > 0) {
        return false;
      }
      settled.push_back(operation);
      return true;
    });
    for (const OperationPtr& operation : settled) {
      operation->state = TicketState::done;
      ++events_;
      neighbour(operation->peer).sending_bytes -= operation->sends_bytes;
      if (operation->receives) {
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
    if (++stream.taken >= std::max<Index>(1, config_.window_messages / 2) && !neighbour(from).lost) {
      send_note(from, Note{channel, static_cast<std::int32_t>(std::exchange(stream.taken, 0))});
    }
  }
  void send_note(Peer to, const Note& note) {
    PendingNote& pending = notes_.emplace_back(PendingNote{note, MPI_REQUEST_NULL, to});
    MPI_Isend(&pending.note, sizeof pending.note, MPI_BYTE, to, note_tag, comm_, &pending.request);
  }

  /// Processes of this machine that are gone.
  void look_for_the_dead() {
    const TimePoint now = std::chrono::steady_clock::now();
    if (now < next_look_) {
      return;
    }
    next_look_ = now + std::chrono::milliseconds(20);
    for (Peer peer = 0; peer < peers(); ++peer) {
      if (!neighbour(peer).lost && neighbour(peer).process != 0 && kill(neighbour(peer).process, 0) != 0 &&
          errno == ESRCH) {
        lose(peer);
      }
    }
  }

  /// Settles all that is under way with a peer.
  void lose(Peer lost) {
    Neighbour& peer = neighbour(lost);
    if (std::exchange(peer.lost, true) && !peer.dropped) {
      return;
    }
    ++events_;
    const auto give_up = [](Operation& operation) {
      int done = 0;
      for (int turn = 0; turn < 100 && done == 0; ++turn) {  // what has come already
        MPI_Testall(static_cast<int>(operation.requests.size()), operation.requests.data(), &done, MPI_STATUSES_IGNORE);
      }
      for (MPI_Request& request : operation.requests) {
        if (request != MPI_REQUEST_NULL) {
          MPI_Request_free(&request);
        }
      }
      operation.state = done != 0 && operation.unmatched == 0 ? TicketState::done : TicketState::failed;
    };
    std::erase_if(active_, [&](const OperationPtr& operation) {
      if (operation->peer != lost) {
        return false;
      }
      give_up(*operation);
      if (operation->receives ? !operation->scrap.empty() : true) {
        graveyard_.push_back(operation);  // MPI may still look at its memory
      }
      return true;
    });
    for (Stream& stream : peer.streams) {
      for (const OperationPtr& operation : stream.arriving) {
        if (operation->state == TicketState::pending) {
          give_up(*operation);
        }
      }
      stream.arriving.clear();
    }
    peer.sending_bytes = 0;
    notes_.remove_if([&](PendingNote& note) {
      if (note.to == lost && note.request != MPI_REQUEST_NULL) {
        MPI_Request_free(&note.request);
      }
      return false;  // its memory stays
    });
  }

  Config config_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  Peer self_ = 0;
  std::vector<Neighbour> peers_;
  std::vector<OperationPtr> active_;
  std::vector<OperationPtr> graveyard_;
  std::list<PendingNote> notes_;
  std::uint64_t events_ = 0;
  std::uint64_t seen_ = 0;
  TimePoint next_look_{};
};
static_assert(Transport<MpiTransport>);

}  // namespace kvc::inline v0
