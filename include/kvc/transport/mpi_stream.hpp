// Stream: the state of one channel between this process and a peer. Part of transport/mpi.hpp.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>

#include "kvc/core/types.hpp"
#include "kvc/transport/mpi_operation.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {
namespace detail {

/// Counts the messages for the window, and matches the parts of bodies.
struct Stream {
  using OperationPtr = std::shared_ptr<Operation>;

  Index unacknowledged = 0;           // messages sent
  Index taken = 0;                    // messages received, and not acknowledged yet
  std::deque<OperationPtr> arriving;  // bodies with unmatched parts, in the order of their heads

  /// Receives the parts that have arrived to their places, as far as those are known; parts are matched in the order of
  /// sending. Calls begun(operation) for each body of which it received a part. False if a part exceeds its body.
  template <class F>
  [[nodiscard]] bool match(MPI_Comm comm, int body_tag, F&& begun) {
    while (!arriving.empty() && arriving.front()->has_place()) {
      const OperationPtr operation = arriving.front();
      int flag = 0;
      MPI_Message message = MPI_MESSAGE_NULL;
      MPI_Status status;
      MPI_Improbe(operation->peer, body_tag, comm, &flag, &message, &status);
      if (flag == 0) {
        return true;
      }
      int size = 0;
      MPI_Get_count(&status, MPI_BYTE, &size);
      if (!operation->receive_part(message, size)) {
        return false;
      }
      begun(operation);
      if (operation->unmatched == 0) {
        arriving.pop_front();
      }
    }
    return true;
  }
  /// Discards the rest of a body. Ignores a body whose parts have all been matched.
  void cut(const OperationPtr& body) {
    const auto at = std::find(arriving.begin(), arriving.end(), body);
    if (at != arriving.end()) {
      *at = body->cut();
    }
  }
  /// The same for all bodies.
  void cut_all() {
    for (OperationPtr& body : arriving) {
      body = body->cut();
    }
  }
};

}  // namespace detail
}  // namespace transport
}  // namespace v0
}  // namespace kvc
