// Stream: what goes between this process and a peer on one channel: how many messages the peer has not taken, and
// the bodies that come. Part of transport/mpi.hpp.
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

struct Stream {
  using OperationPtr = std::shared_ptr<Operation>;

  Index unacknowledged = 0;           // messages sent there
  Index taken = 0;                    // messages that came, and are still to be acknowledged
  std::deque<OperationPtr> arriving;  // bodies of which not all parts have been matched, in the order of their heads

  /// Receives parts that have come to where they belong, as far as that is known: parts are matched in the order in
  /// which they were sent. Calls begun(operation) of each body that a part was received of. False once a part is larger
  /// than it may be.
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
  /// What is still to come of a body is received by nobody. One whose parts have all been matched is passed by.
  void cut(const OperationPtr& body) {
    const auto at = std::find(arriving.begin(), arriving.end(), body);
    if (at != arriving.end()) {
      *at = body->cut();
    }
  }
  /// The same of all.
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
