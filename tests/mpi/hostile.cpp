// A peer that does not keep to the protocol: rank 1 speaks MPI itself, on the communicator that rank 0's transport made.
#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checks.hpp"
#include "kvc/transport/mpi.hpp"

namespace {
using namespace kvc;
using kvc_test::Checks;

constexpr int window = 6;
constexpr int notes = 0, heads = 1, bodies = 2;  // tags of channel 0
constexpr std::byte untouched{0x5a};

/// Rank 1: what a transport would do to begin with, and then what none would.
void misbehave() {
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  (void)kvc::detail::meet_processes(comm);
  const auto send = [&](int tag, const std::vector<std::byte>& bytes) {
    MPI_Send(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, 0, tag, comm);
  };
  const auto head = [&](std::uint64_t body_bytes, std::size_t size) {
    std::vector<std::byte> wire(sizeof body_bytes + size);
    std::memcpy(wire.data(), &body_bytes, sizeof body_bytes);
    send(heads, wire);
  };
  const auto note = [&](std::int32_t channel, std::int32_t messages, std::size_t size) {
    std::vector<std::byte> wire(std::max(size, std::size_t{8}));
    std::memcpy(wire.data(), &channel, sizeof channel);
    std::memcpy(wire.data() + sizeof channel, &messages, sizeof messages);
    wire.resize(size);
    send(notes, wire);
  };

  // Heads that are none.
  send(heads, {});
  send(heads, std::vector<std::byte>(7));
  head(0, max_message_head + 1);
  // A part larger than the body, one that ends beyond it, and a body as it should be.
  head(100, 1);
  send(bodies, std::vector<std::byte>(200));
  head(100, 2);
  send(bodies, std::vector<std::byte>(60));
  send(bodies, std::vector<std::byte>(41));
  head(100, 3);
  send(bodies, std::vector<std::byte>(60));
  send(bodies, std::vector<std::byte>(40));
  // Notes of channels that are not, and of messages that were never sent.
  note(1, 3, 8);
  note(-5, 3, 8);
  note(0, -1000, 8);
  note(0, 1 << 30, 8);
  head(0, 4);
  std::array<std::byte, sizeof(std::uint64_t) + max_message_head> last{};
  for (int i = 0; i < window; ++i) {
    MPI_Recv(last.data(), static_cast<int>(last.size()), MPI_BYTE, 0, heads, comm, MPI_STATUS_IGNORE);
  }
  // Notes of the wrong size, while the window of rank 0 is full; when it has seen that, as a transport would, farewell.
  note(0, 3, 7);
  note(0, 3, 100);
  head(0, 5);
  MPI_Barrier(MPI_COMM_WORLD);
  note(kvc::detail::MpiNote::closing, 0, 8);
}

/// Rank 0.
void stand(Checks& checks) {
  MpiTransport transport(MPI_COMM_WORLD, {.channels = 1, .window_messages = window});
  const auto until = [&](const std::string& what, const auto& condition) {
    const bool ok = wait_for(transport, std::chrono::steady_clock::now() + std::chrono::seconds(60), condition);
    checks.expect(ok, "in time: " + what);
    return ok;
  };
  for (const std::size_t which : {1U, 2U, 3U}) {
    std::optional<MpiTransport::Arrival> arrival;
    if (!until("a head", [&] { return (arrival = transport.poll(0)).has_value(); })) {
      return;
    }
    checks.expect(arrival->head().size() == which, "the head is that of body " + std::to_string(which));
    std::vector<std::byte> memory(400, untouched);
    const std::array<std::span<std::byte>, 2> pieces = {std::span(memory).subspan(100, 30),
                                                        std::span(memory).subspan(130, 70)};
    const MpiTransport::Ticket ticket = transport.accept(std::move(*arrival), pieces);
    (void)until("the ticket settles", [&] { return transport.state(ticket) != TicketState::pending; });
    checks.expect(transport.state(ticket) == (which == 3 ? TicketState::done : TicketState::failed),
                  "body " + std::to_string(which) + (which == 3 ? " is done" : " fails"));
    const auto is_touched = [](std::byte b) { return b != untouched; };
    checks.expect(std::none_of(memory.begin(), memory.begin() + 100, is_touched) &&
                      std::none_of(memory.begin() + 200, memory.end(), is_touched),
                  "nothing is written but the body");
  }
  const auto head_of = [&](std::size_t size) {
    (void)until("the head after the notes", [&] {
      const auto arrival = transport.poll(0);
      return arrival.has_value() && arrival->head().size() == size;
    });
  };
  head_of(4);
  int sent = 0;
  while (sent < 100 && transport.try_send(1, 0, {})) {
    ++sent;
  }
  checks.expect(sent == window, "the window is as large as it was");
  head_of(5);
  checks.expect(!transport.try_send(1, 0, {}), "the window is as full as it was");
  MPI_Barrier(MPI_COMM_WORLD);
  (void)until("the peer closes", [&] { return transport.is_lost(1); });
}
}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  Checks checks(rank);
  rank == 0 ? stand(checks) : misbehave();
  const bool ok = checks.wrong().empty();
  std::cout << (ok ? "ok\n" : "wrong\n") << std::flush;
  if (!ok) {
    MPI_Abort(MPI_COMM_WORLD, 1);  // the other may wait for what does not come
  }
  MPI_Finalize();
  return ok ? 0 : 1;
}
