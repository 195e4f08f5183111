// What MpiTransports tell each other beside the messages of their users: that messages were taken, which opens a window
// again, and that a peer closes. Part of transport/mpi.hpp.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <list>

#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {
namespace detail {

struct ControlMessage {
  static constexpr std::int32_t closing = -1;  ///< instead of a channel
  std::int32_t channel;
  std::int32_t messages;  ///< that were taken
};

class ControlMessages {
 public:
  static constexpr int tag = 0;

  /// False if MPI does not begin it.
  [[nodiscard]] bool send(MPI_Comm comm, Peer to, const ControlMessage& note) {
    Sent& sent = sent_.emplace_back(Sent{note, MPI_REQUEST_NULL, to});
    const int result = MPI_Isend(&sent.note, sizeof sent.note, MPI_BYTE, to, tag, comm, &sent.request);
    if (result != MPI_SUCCESS) {
      sent_.pop_back();
    }
    return result == MPI_SUCCESS;
  }
  /// Calls f(peer, note) of each that has come. What is not one is not received, and broken(peer) called.
  template <class F, class G>
  static void receive(MPI_Comm comm, F&& f, G&& broken) {
    for (;;) {
      int flag = 0;
      MPI_Message message = MPI_MESSAGE_NULL;
      MPI_Status status;
      MPI_Improbe(MPI_ANY_SOURCE, tag, comm, &flag, &message, &status);
      if (flag == 0) {
        return;
      }
      int size = 0;
      MPI_Get_count(&status, MPI_BYTE, &size);
      ControlMessage note{};
      if (size == sizeof note && MPI_Mrecv(&note, size, MPI_BYTE, &message, MPI_STATUS_IGNORE) == MPI_SUCCESS) {
        f(Peer{status.MPI_SOURCE}, note);
      } else {
        broken(Peer{status.MPI_SOURCE});
      }
    }
  }
  /// Forgets those that are sent.
  void test() {
    sent_.remove_if([](Sent& sent) {
      int done = 0;
      MPI_Test(&sent.request, &done, MPI_STATUS_IGNORE);
      return done != 0;
    });
  }
  [[nodiscard]] bool empty() const noexcept { return sent_.empty(); }
  /// Moves those to `dead` to `grave`: MPI still knows them.
  void bury(Peer dead, ControlMessages& grave) {
    for (auto at = sent_.begin(); at != sent_.end();) {
      const auto note = at++;
      if (note->to == dead) {
        grave.sent_.splice(grave.sent_.end(), sent_, note);
      }
    }
  }
  void move_to(ControlMessages& other) { other.sent_.splice(other.sent_.end(), sent_); }

 private:
  struct Sent {
    ControlMessage note;
    MPI_Request request;
    Peer to;
  };
  std::list<Sent> sent_;  // MPI reads them where they are
};

}  // namespace detail
}  // namespace transport
}  // namespace v0
}  // namespace kvc
