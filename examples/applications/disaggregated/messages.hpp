// The messages between the router and the engines, beside the transfers: short ones, on two channels of the same
// transport. A message is a head without a body, so it arrives whole; a prompt takes several.
//
//   router to engines                            engines to router
//   START       the clocks begin                 READY        the model is loaded
//   ASSIGN      a prompt to compute, and who     PREFILLED    the prompt is computed: the first token
//               decodes it; PROMPT: its tokens   HANDED_OVER  the decode engine has the sequence
//   DELIVER     another engine decodes it        UNDELIVERED  it has not, and will not
//   CANCEL      forget a request                 TOKENS       of one step, of all sequences
//   STOP        there is nothing more            FINISHED     all tokens of a request are there
//                                                GIVEN_UP     its rows are gone: compute the prompt again
//                                                STOPPED      the engine has nothing left
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "kvc/transfer/protocol.hpp"
#include "kvc/transport/concept.hpp"
#include "model.hpp"

namespace disaggregated {

using kvc::transport::Peer;

inline constexpr kvc::transport::Channel to_engines = kvc::transfer::first_free_channel;
inline constexpr kvc::transport::Channel to_router = kvc::transfer::first_free_channel + 1;
inline constexpr kvc::transport::Channel channels = kvc::transfer::first_free_channel + 2;
/// The router shares the thread of the first prefill engine.
inline constexpr Peer router_peer = 0;

/// One attempt to serve a request; messages about an earlier attempt are ignored.
struct Attempt {
  std::uint32_t request = 0;
  std::uint32_t number = 0;
  friend bool operator==(const Attempt&, const Attempt&) = default;
  [[nodiscard]] std::uint64_t key() const noexcept { return std::uint64_t{number} << 32U | request; }
};

/// Nanoseconds since START.
using Time = std::int64_t;
/// The clock of an engine: real time, or the time of a test.
struct Clock {
  std::function<kvc::transport::TimePoint()> now = std::chrono::steady_clock::now;
  kvc::transport::TimePoint zero{};
  void start() { zero = now(); }
  /// Starts when the router did. The clocks of one machine agree; on another machine it starts now, and times are off
  /// by the delay of START.
  void start(kvc::transport::TimePoint routers) {
    const kvc::transport::TimePoint here = now();
    zero = routers <= here && here - routers < std::chrono::seconds(1) ? routers : here;
  }
  [[nodiscard]] Time elapsed() const { return std::chrono::nanoseconds(now() - zero).count(); }
};

enum class Kind : std::uint32_t {
  start,
  assign,
  prompt,
  deliver,
  cancel,
  stop,
  ready,
  prefilled,
  handed_over,
  undelivered,
  refused,
  tokens,
  finished,
  given_up,
  stopped
};

struct Start {
  kvc::transport::TimePoint zero;
};
struct Assign {
  Peer decode;
  Pos prompt_tokens;
  Pos output_tokens;
};
struct Deliver {
  Peer decode;
};
struct Prefilled {
  Time begin;
  Time end;
  Token first;
  Pos reused;  // positions of the prompt that were cached
};
struct HandedOver {
  std::uint64_t bytes;
  Time begin;  // when the first rows could be sent
  Pos kept;    // positions that the decode engine had already
  int refusals;
};
struct Undelivered {
  kvc::transfer::Outcome outcome;
};
struct NewToken {
  Attempt attempt;
  std::int32_t index;  // in the output
  Token token;
};
struct Finished {
  Time received;
  Time begin;
  Time end;
  int place;  // place in the batch
};
struct GivenUp {
  bool for_good;  // it never fits
};
struct Stopped {
  Time computing;
  Time receiving;
  std::uint64_t received_bytes;
  bool clean;  // no block is referenced, and the bookkeeping is consistent
};

/// The payload of a transfer.
struct TransferPayload {
  Token first;
  Pos output_tokens;
};

struct MessageHead {
  Kind kind;
  std::uint32_t zero;
  Attempt attempt;
};
inline constexpr std::size_t most_prompt_tokens =
    (kvc::transport::max_message_head - sizeof(MessageHead)) / sizeof(Token);
inline constexpr std::size_t most_new_tokens =
    (kvc::transport::max_message_head - sizeof(MessageHead)) / sizeof(NewToken);

/// A received message.
struct Message {
  Peer from;
  Kind kind;
  Attempt attempt;
  std::vector<std::byte> rest;

  /// Throws std::runtime_error if the bytes are no message.
  template <class Record>
  [[nodiscard]] Record as() const {
    return list<Record>().at(0);
  }
  template <class Record>
  [[nodiscard]] std::vector<Record> list() const {
    static_assert(std::is_trivially_copyable_v<Record>);
    if (rest.size() % sizeof(Record) != 0) {
      throw std::runtime_error("a message between engines has another size than it should");
    }
    std::vector<Record> records(rest.size() / sizeof(Record));
    if (!rest.empty()) {
      std::memcpy(static_cast<void*>(records.data()), rest.data(), rest.size());
    }
    return records;
  }
};

/// Sends on one of the two channels, and receives on the other.
template <kvc::transport::Transport T>
class Post {
 public:
  Post(T& transport, kvc::transport::Channel in, kvc::transport::Channel out)
      : transport_(&transport), in_(in), out_(out) {}

  void send(Peer to, Kind kind, Attempt attempt = {}) { send_bytes(to, kind, attempt, {}); }
  template <class Record>
  void send(Peer to, Kind kind, Attempt attempt, const Record& record) {
    send_list(to, kind, attempt, std::span(&record, 1));
  }
  template <class Record>
  void send_list(Peer to, Kind kind, Attempt attempt, std::span<const Record> records) {
    static_assert(std::is_trivially_copyable_v<Record>);
    send_bytes(to, kind, attempt, std::as_bytes(records));
  }
  /// Sends messages that found the window full before.
  void flush() {
    std::vector<Peer> full;
    std::erase_if(waiting_, [&](const Waiting& w) {
      if (std::find(full.begin(), full.end(), w.to) == full.end() && transport_->try_send(w.to, out_, w.message)) {
        return true;
      }
      full.push_back(w.to);
      return false;
    });
  }
  [[nodiscard]] bool empty() const noexcept { return waiting_.empty(); }

  [[nodiscard]] std::optional<Message> receive() {
    const auto arrival = transport_->poll(in_);
    MessageHead head{};
    if (!arrival || arrival->head().size() < sizeof head) {
      return std::nullopt;
    }
    std::memcpy(&head, arrival->head().data(), sizeof head);
    const auto rest = arrival->head().subspan(sizeof head);
    return Message{arrival->peer(), head.kind, head.attempt, {rest.begin(), rest.end()}};
  }

 private:
  struct Waiting {
    Peer to;
    std::vector<std::byte> message;
  };

  void send_bytes(Peer to, Kind kind, Attempt attempt, std::span<const std::byte> rest) {
    const MessageHead head{kind, 0, attempt};
    const auto bytes = std::as_bytes(std::span(&head, 1));
    std::vector<std::byte> message(bytes.begin(), bytes.end());
    message.insert(message.end(), rest.begin(), rest.end());
    waiting_.push_back({to, std::move(message)});
    flush();
  }

  T* transport_;
  kvc::transport::Channel in_;
  kvc::transport::Channel out_;
  std::deque<Waiting> waiting_;
};

}  // namespace disaggregated
