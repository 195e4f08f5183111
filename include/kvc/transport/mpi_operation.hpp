// Operation: a message that Mpi is sending, or a body that it is receiving in parts. Part of transport/mpi.hpp.
//
// A large span of a body is an MPI message of its own, straight from memory; small spans travel together, described by
// a derived datatype. The receiver puts each part in its place, however its own spans are cut.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {
namespace detail {

/// Calls f(address, count, datatype) for several spans at absolute addresses, or for a single one.
template <class Spans, class F>
void with_mpi_type(const Spans& spans, F&& f) {
  if (spans.size() == 1) {
    f(const_cast<std::byte*>(spans.front().data()), static_cast<int>(spans.front().size()), MPI_BYTE);
    return;
  }
  std::vector<int> lengths;
  std::vector<MPI_Aint> places;
  lengths.reserve(spans.size());
  places.reserve(spans.size());
  for (const auto& span : spans) {
    MPI_Aint place = 0;
    MPI_Get_address(span.data(), &place);
    lengths.push_back(static_cast<int>(span.size()));
    places.push_back(place);
  }
  MPI_Datatype type = MPI_DATATYPE_NULL;
  MPI_Type_create_hindexed(static_cast<int>(spans.size()), lengths.data(), places.data(), MPI_BYTE, &type);
  MPI_Type_commit(&type);
  f(static_cast<void*>(MPI_BOTTOM), 1, type);
  MPI_Type_free(&type);  // deferred until nothing uses it
}

/// A message that is sent, or a body that is received. MPI may use the memory while it is `pending`.
class Operation {
 public:
  Operation(Peer with, Channel on) : peer(with), channel(on) {}

  const Peer peer;
  const Channel channel;
  TicketState state = TicketState::pending;

  std::uint64_t sends_bytes = 0;  // of a body

  // Of a body that is received:
  bool receives = false;
  bool acknowledges = false;    // when it is settled
  bool discards = false;        // the bytes that arrive
  std::uint64_t unmatched = 0;  // bytes whose parts have not arrived

  /// A body of `bytes` bytes that will arrive.
  [[nodiscard]] static std::shared_ptr<Operation> receive(Peer from, Channel on, std::uint64_t bytes) {
    auto operation = std::make_shared<Operation>(from, on);
    operation->receives = operation->acknowledges = true;
    operation->unmatched = bytes;
    return operation;
  }

  void send_head(MPI_Comm comm, int tag, std::uint64_t body_bytes, std::span<const std::byte> head) {
    head_.resize(sizeof body_bytes + head.size());
    std::memcpy(head_.data(), &body_bytes, sizeof body_bytes);
    std::copy(head.begin(), head.end(), head_.begin() + sizeof body_bytes);
    begun(MPI_Isend(head_.data(), static_cast<int>(head_.size()), MPI_BYTE, peer, tag, comm, next_request()));
  }
  /// Whether MPI has accepted every call so far.
  [[nodiscard]] bool has_begun() const noexcept { return !fails_; }
  /// Sends each span of at least `part_bytes` by itself, the others together.
  void send_body(MPI_Comm comm, int tag, std::size_t part_bytes, SendSpans body) {
    constexpr std::size_t most = std::size_t{1} << 30;  // lengths are int
    std::vector<std::span<const std::byte>> part;
    std::size_t size = 0;
    const auto send = [&] {
      if (!part.empty()) {
        with_mpi_type(part, [&](const void* from, int count, MPI_Datatype type) {
          begun(MPI_Isend(from, count, type, peer, tag, comm, next_request()));
        });
        part.clear();
        size = 0;
      }
    };
    for (std::span<const std::byte> span : body) {
      while (!span.empty()) {
        const auto front = span.first(std::min(span.size(), most));
        span = span.subspan(front.size());
        if (front.size() >= part_bytes || size >= 8 * part_bytes) {
          send();
        }
        part.push_back(front);
        size += front.size();
        if (front.size() >= part_bytes) {
          send();
        }
      }
    }
    send();
  }

  void receive_to(ReceiveSpans spans) { spans_.assign(spans.begin(), spans.end()); }
  /// Whether the place of the body is known.
  [[nodiscard]] bool has_place() const noexcept { return discards || !spans_.empty(); }
  /// Receives the next part of the body, which has been matched. False for a part that exceeds the rest of the body, or
  /// whose size MPI cannot express (negative): the sender violates its head. Such a part is not received, because Open
  /// MPI 4.1 may write past the end of memory that is too small.
  [[nodiscard]] bool receive_part(MPI_Message& message, int size) {
    if (size < 0 || static_cast<std::uint64_t>(size) > unmatched) {
      return false;
    }
    const auto bytes = static_cast<std::size_t>(size);
    unmatched -= bytes;
    if (discards) {
      std::vector<std::byte>& scrap = scrap_.emplace_back(bytes);
      begun(MPI_Imrecv(scrap.data(), size, MPI_BYTE, &message, next_request()));
      return true;
    }
    std::vector<std::span<std::byte>> part;
    for (std::size_t left = bytes; left > 0;) {
      const std::span<std::byte> rest = spans_[span_].subspan(offset_);
      const std::span<std::byte> front = rest.first(std::min(rest.size(), left));
      if (!front.empty()) {
        part.push_back(front);
      }
      left -= front.size();
      offset_ += front.size();
      if (front.size() == rest.size()) {
        ++span_;
        offset_ = 0;
      }
    }
    with_mpi_type(part, [&](void* to, int count, MPI_Datatype type) {
      begun(MPI_Imrecv(to, count, type, &message, next_request()));
    });
    return true;
  }

  /// Returns another operation that discards the rest of the body. This one fails as soon as its matched parts have
  /// arrived.
  [[nodiscard]] std::shared_ptr<Operation> cut() {
    auto rest = receive(peer, channel, std::exchange(unmatched, 0));
    rest->discards = true;
    fails_ = true;
    acknowledges = false;
    (void)test();
    return rest;
  }
  /// Settles the operation if MPI no longer uses its memory. True if it is settled.
  bool test() {
    if (state == TicketState::pending && unmatched == 0) {
      int done = 0;
      const int result = MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
      fails_ = fails_ || result != MPI_SUCCESS;
      if (done != 0) {
        state = fails_ ? TicketState::failed : TicketState::done;
      }
    }
    return state != TicketState::pending;
  }

 private:
  [[nodiscard]] MPI_Request* next_request() { return &requests_.emplace_back(MPI_REQUEST_NULL); }
  /// A call that MPI refused fails the operation, once its other requests are complete.
  void begun(int result) noexcept { fails_ = fails_ || result != MPI_SUCCESS; }

  std::vector<MPI_Request> requests_;
  std::vector<std::byte> head_;
  std::vector<std::span<std::byte>> spans_;
  std::size_t span_ = 0;    // where the next part begins
  std::size_t offset_ = 0;  // in that span
  std::vector<std::vector<std::byte>> scrap_;
  bool fails_ = false;
};

}  // namespace detail
}  // namespace transport
}  // namespace v0
}  // namespace kvc
