// Control messages between Mpi transports: acknowledgements, which reopen a window, and the closing of a peer. Part of
// transport/mpi.hpp.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <list>

#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {
namespace detail {

/// The message itself, as it is sent.
struct ControlMessage {
  static constexpr std::int32_t closing = -1;  ///< in place of a channel
  std::int32_t channel;
  std::int32_t messages;  ///< that were received
};

/// Sends control messages without waiting, and receives them.
class ControlMessages {
 public:
  static constexpr int tag = 0;

  /// False if MPI refuses to send.
  [[nodiscard]] bool send(MPI_Comm comm, Peer to, const ControlMessage& message) {
    Outgoing& outgoing = outgoing_.emplace_back(Outgoing{message, MPI_REQUEST_NULL, to});
    const int result =
        MPI_Isend(&outgoing.message, sizeof outgoing.message, MPI_BYTE, to, tag, comm, &outgoing.request);
    if (result != MPI_SUCCESS) {
      outgoing_.pop_back();
    }
    return result == MPI_SUCCESS;
  }
  /// Calls f(peer, message) for each that has arrived. Does not receive anything else, and calls broken(peer) for it.
  template <class F, class G>
  static void receive(MPI_Comm comm, F&& f, G&& broken) {
    for (;;) {
      int flag = 0;
      MPI_Message matched = MPI_MESSAGE_NULL;
      MPI_Status status;
      MPI_Improbe(MPI_ANY_SOURCE, tag, comm, &flag, &matched, &status);
      if (flag == 0) {
        return;
      }
      int size = 0;
      MPI_Get_count(&status, MPI_BYTE, &size);
      ControlMessage message{};
      if (size == sizeof message && MPI_Mrecv(&message, size, MPI_BYTE, &matched, MPI_STATUS_IGNORE) == MPI_SUCCESS) {
        f(Peer{status.MPI_SOURCE}, message);
      } else {
        broken(Peer{status.MPI_SOURCE});
      }
    }
  }
  /// Discards the messages that MPI has sent.
  void test() {
    outgoing_.remove_if([](Outgoing& outgoing) {
      int done = 0;
      MPI_Test(&outgoing.request, &done, MPI_STATUS_IGNORE);
      return done != 0;
    });
  }
  [[nodiscard]] bool empty() const noexcept { return outgoing_.empty(); }
  /// Moves messages to the peer `dead` to `grave`: MPI still refers to them.
  void bury(Peer dead, ControlMessages& grave) {
    for (auto at = outgoing_.begin(); at != outgoing_.end();) {
      const auto message = at++;
      if (message->to == dead) {
        grave.outgoing_.splice(grave.outgoing_.end(), outgoing_, message);
      }
    }
  }
  void move_to(ControlMessages& other) { other.outgoing_.splice(other.outgoing_.end(), outgoing_); }

 private:
  /// A message that MPI has not sent yet.
  struct Outgoing {
    ControlMessage message;
    MPI_Request request;
    Peer to;
  };
  std::list<Outgoing> outgoing_;  // stable addresses: MPI reads them
};

}  // namespace detail
}  // namespace transport
}  // namespace v0
}  // namespace kvc
