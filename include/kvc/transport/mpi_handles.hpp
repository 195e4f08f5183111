// The handles that transport::Mpi gives out: tickets and arrivals. Part of transport/mpi.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kvc/transport/concept.hpp"
#include "kvc/transport/mpi_operation.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {

class Mpi;

namespace detail {

/// A message that was sent, or a body that was accepted. A default-constructed one is done.
class MpiTicket {
 public:
  MpiTicket() = default;

 private:
  friend class transport::Mpi;
  explicit MpiTicket(std::shared_ptr<Operation> operation) : operation_(std::move(operation)) {}
  std::shared_ptr<Operation> operation_;  // null: done
};

/// A received head, and a body that can be accepted.
class MpiArrival {
 public:
  MpiArrival(MpiArrival&&) = default;
  MpiArrival& operator=(MpiArrival&& other) noexcept {
    std::swap(operation_, other.operation_);
    std::swap(peer_, other.peer_);
    std::swap(body_bytes_, other.body_bytes_);
    std::swap(head_, other.head_);
    return *this;
  }
  ~MpiArrival() {
    if (operation_ != nullptr) {
      operation_->discards = true;  // the transport receives it, and drops the bytes
    }
  }
  [[nodiscard]] Peer peer() const noexcept { return peer_; }
  [[nodiscard]] std::span<const std::byte> head() const noexcept { return head_; }
  [[nodiscard]] std::uint64_t body_bytes() const noexcept { return body_bytes_; }

 private:
  friend class transport::Mpi;
  MpiArrival(Peer peer, std::vector<std::byte> head, std::uint64_t body_bytes, std::shared_ptr<Operation> operation)
      : operation_(std::move(operation)), peer_(peer), body_bytes_(body_bytes), head_(std::move(head)) {}
  std::shared_ptr<Operation> operation_;  // null: no body, or accepted
  Peer peer_;
  std::uint64_t body_bytes_;
  std::vector<std::byte> head_;
};

}  // namespace detail
}  // namespace transport
}  // namespace v0
}  // namespace kvc
