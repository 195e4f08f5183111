// What MpiTransports tell each other beside the messages of their users: that messages were taken, which opens a window
// again, and that a peer closes. Part of transport/mpi.hpp.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <list>

#include "kvc/transport/concept.hpp"

namespace kvc::inline v0::detail {

struct MpiNote {
  static constexpr std::int32_t closing = -1;  ///< instead of a channel
  std::int32_t channel;
  std::int32_t messages;  ///< that were taken
};

class MpiNotes {
 public:
  static constexpr int tag = 0;

  void send(MPI_Comm comm, Peer to, const MpiNote& note) {
    Sent& sent = sent_.emplace_back(Sent{note, MPI_REQUEST_NULL, to});
    if (MPI_Isend(&sent.note, sizeof sent.note, MPI_BYTE, to, tag, comm, &sent.request) != MPI_SUCCESS) {
      sent_.pop_back();  // to a peer that is gone: it needs no note
    }
  }
  /// Calls f(peer, note) of each that has come, and passes by what is not one.
  template <class F>
  static void receive(MPI_Comm comm, F&& f) {
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
      MpiNote note{};
      const int result = MPI_Mrecv(&note, sizeof note, MPI_BYTE, &message, MPI_STATUS_IGNORE);
      if (result == MPI_SUCCESS && size == sizeof note) {
        f(Peer{status.MPI_SOURCE}, note);
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
  void bury(Peer dead, MpiNotes& grave) {
    for (auto at = sent_.begin(); at != sent_.end();) {
      const auto note = at++;
      if (note->to == dead) {
        grave.sent_.splice(grave.sent_.end(), sent_, note);
      }
    }
  }
  void move_to(MpiNotes& other) { other.sent_.splice(other.sent_.end(), sent_); }

 private:
  struct Sent {
    MpiNote note;
    MPI_Request request;
    Peer to;
  };
  std::list<Sent> sent_;  // MPI reads them where they are
};

}  // namespace kvc::inline v0::detail
