// What Mpi has under way: a message that is being sent, or a body that is being received, in parts.
//
// A body travels as its pieces lie. One that is large enough is an MPI message of its own, straight from memory; smaller
// ones go together, described by a derived datatype. The receiver takes each part to where it belongs, whatever the
// pieces there. Part of transport/mpi.hpp.
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
#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {
namespace detail {

/// Calls f(address, count, datatype) of pieces at absolute addresses, or of one piece.
template <class Pieces, class F>
void with_mpi_type(const Pieces& pieces, F&& f) {
  if (pieces.size() == 1) {
    f(const_cast<std::byte*>(pieces.front().data()), static_cast<int>(pieces.front().size()), MPI_BYTE);
    return;
  }
  std::vector<int> lengths;
  std::vector<MPI_Aint> places;
  lengths.reserve(pieces.size());
  places.reserve(pieces.size());
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

/// A message that is sent, or a body that is received. MPI may use the memory of both while `pending`.
class Operation {
 public:
  Operation(Peer with, Channel on) : peer(with), channel(on) {}

  const Peer peer;
  const Channel channel;
  TicketState state = TicketState::pending;

  std::uint64_t sends_bytes = 0;  // of a body

  // Of a body that is received:
  bool receives = false;
  bool acknowledges = false;    // once it is settled
  bool discards = false;        // it comes to nobody
  std::uint64_t unmatched = 0;  // bytes whose parts have not come

  /// A body of `bytes` that is to come.
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
  /// Whether MPI has begun all that was asked of it so far.
  [[nodiscard]] bool has_begun() const noexcept { return !fails_; }
  /// Sends pieces of at least `part_bytes` each by itself, the others together.
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
    for (std::span<const std::byte> piece : body) {
      while (!piece.empty()) {
        const auto front = piece.first(std::min(piece.size(), most));
        piece = piece.subspan(front.size());
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

  void receive_to(ReceiveSpans pieces) { pieces_.assign(pieces.begin(), pieces.end()); }
  /// Whether it is known where the body goes.
  [[nodiscard]] bool has_place() const noexcept { return discards || !pieces_.empty(); }
  /// Receives the next part of the body, which has been matched. False for one that is larger than what is left of the
  /// body, or than MPI can tell (negative): its sender does not keep to what the head said. It is not received, since
  /// Open MPI 4.1 may write past the end of memory that is too small.
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
      const std::span<std::byte> rest = pieces_[piece_].subspan(offset_);
      const std::span<std::byte> front = rest.first(std::min(rest.size(), left));
      if (!front.empty()) {
        part.push_back(front);
      }
      left -= front.size();
      offset_ += front.size();
      if (front.size() == rest.size()) {
        ++piece_;
        offset_ = 0;
      }
    }
    with_mpi_type(part, [&](void* to, int count, MPI_Datatype type) {
      begun(MPI_Imrecv(to, count, type, &message, next_request()));
    });
    return true;
  }

  /// The rest of the body does not come here: another operation, which is returned, discards it. This one fails as soon
  /// as what has been matched has come.
  [[nodiscard]] std::shared_ptr<Operation> cut() {
    auto rest = receive(peer, channel, std::exchange(unmatched, 0));
    rest->discards = true;
    fails_ = true;
    acknowledges = false;
    (void)test();
    return rest;
  }
  /// Settles it if MPI is done with its memory. True if it is settled.
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
  /// What MPI does not begin fails, once the rest is settled.
  void begun(int result) noexcept { fails_ = fails_ || result != MPI_SUCCESS; }

  std::vector<MPI_Request> requests_;
  std::vector<std::byte> head_;
  std::vector<std::span<std::byte>> pieces_;
  std::size_t piece_ = 0;   // that the next part begins in
  std::size_t offset_ = 0;  // in the piece
  std::vector<std::vector<std::byte>> scrap_;
  bool fails_ = false;
};

}  // namespace detail
}  // namespace transport
}  // namespace v0
}  // namespace kvc
