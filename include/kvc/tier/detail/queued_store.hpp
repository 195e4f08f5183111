// QueuedStore: the part that stores have in common whose threads take operations from a queue. Standard library only.
#pragma once

#include <cstddef>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "kvc/tier/block_store.hpp"
#include "kvc/tier/detail/operation_queue.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// The end of operations, and the latest error. The store that derives from it begins operations, and stops the queue
/// and its threads in its destructor.
class QueuedStore {
 public:
  QueuedStore(const QueuedStore&) = delete;
  QueuedStore& operator=(const QueuedStore&) = delete;

  /// See BlockStore.
  [[nodiscard]] std::optional<Completion> poll() { return queue_.poll(); }
  /// See BlockStore. True for operations that no thread has begun or sent, or that have ended.
  bool cancel(Ticket ticket) { return queue_.cancel(ticket); }
  /// See BlockStore.
  [[nodiscard]] bool wait(TimePoint until) { return queue_.wait(until); }
  /// See BlockStore.
  [[nodiscard]] std::size_t under_way() const { return queue_.under_way(); }
  /// Why the latest operation failed that did, with the file or the server; empty if none has.
  [[nodiscard]] std::string last_error() const {
    const std::lock_guard lock(error_mutex_);
    return last_error_;
  }

 protected:
  explicit QueuedStore(std::size_t lanes = 1) : queue_(lanes) {}
  ~QueuedStore() = default;

  void set_error(std::string text) {
    const std::lock_guard lock(error_mutex_);
    last_error_ = std::move(text);
  }

  OperationQueue queue_;

 private:
  mutable std::mutex error_mutex_;
  std::string last_error_;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
