// A peer that violates the protocol: rank 1 calls MPI itself, on the communicator of the transport of rank 0.
#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checks.hpp"
#include "kvc/transport/mpi.hpp"

namespace {
using namespace kvc;
using kvc::transport::detail::ControlMessage;
using kvc_test::Checks;

constexpr int window = 6;
constexpr int control = 0, heads = 1, bodies = 2;  // tags of channel 0
constexpr std::byte untouched{0x5a};
constexpr std::size_t large = 4 << 20;

/// Rank 1: starts as a transport does, and then does what the case wants.
class Liar {
 public:
  Liar() {
    MPI_Comm_dup(MPI_COMM_WORLD, &comm_);
    (void)kvc::transport::detail::meet_processes(comm_);
  }
  /// Sends a message, which may never be received.
  void send(int tag, std::vector<std::byte> bytes) {
    static std::list<std::vector<std::byte>> sent;  // MPI may read it as long as it runs
    const std::vector<std::byte>& kept = sent.emplace_back(std::move(bytes));
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Isend(kept.data(), static_cast<int>(kept.size()), MPI_BYTE, 0, tag, comm_, &request);
    MPI_Request_free(&request);
  }
  void head(std::uint64_t body_bytes, std::size_t size) {
    std::vector<std::byte> wire(sizeof body_bytes + size);
    std::memcpy(wire.data(), &body_bytes, sizeof body_bytes);
    send(heads, std::move(wire));
  }
  void body(std::size_t size) { send(bodies, std::vector<std::byte>(size)); }
  void control_message(std::int32_t channel, std::int32_t messages) {
    const ControlMessage message{channel, messages};
    std::vector<std::byte> wire(sizeof message);
    std::memcpy(wire.data(), &message, sizeof message);
    send(control, std::move(wire));
  }
  void close() { control_message(ControlMessage::closing, 0); }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

/// Rank 0.
class Victim {
 public:
  explicit Victim(Checks& checks) : checks_(checks) {}

  transport::Mpi& transport() { return transport_; }
  void expect(bool ok, const std::string& what) { checks_.expect(ok, what); }
  template <class F>
  void until(const std::string& what, F&& condition) {
    expect(transport::wait_for(transport_, std::chrono::steady_clock::now() + std::chrono::seconds(60), condition),
           "in time: " + what);
  }
  void until_lost() {
    until("the peer is lost", [&] {
      (void)transport_.poll(0);
      return transport_.is_lost(1);
    });
  }
  /// Receives a body of 100 bytes to two spans of a larger memory.
  void body(transport::TicketState expected) {
    std::optional<transport::Mpi::Arrival> arrival;
    until("a head", [&] { return (arrival = transport_.poll(0)).has_value(); });
    if (!arrival) {
      return;
    }
    std::vector<std::byte> memory(400, untouched);
    const std::array<std::span<std::byte>, 2> spans = {std::span(memory).subspan(100, 30),
                                                       std::span(memory).subspan(130, 70)};
    const transport::Mpi::Ticket ticket = transport_.accept(std::move(*arrival), spans);
    until("the ticket settles", [&] { return transport_.state(ticket) != transport::TicketState::pending; });
    expect(transport_.state(ticket) == expected, "the body comes, or fails, as expected");
    const auto is_touched = [](std::byte b) { return b != untouched; };
    expect(std::none_of(memory.begin(), memory.begin() + 100, is_touched) &&
               std::none_of(memory.begin() + 200, memory.end(), is_touched),
           "nothing is written but the body");
  }
  void until_head(std::size_t size) {
    until("a head of " + std::to_string(size), [&] {
      const auto arrival = transport_.poll(0);
      return arrival.has_value() && arrival->head().size() == size;
    });
  }

 private:
  transport::Mpi transport_{MPI_COMM_WORLD, {.channels = 1, .window_messages = window}};
  Checks& checks_;
};

struct Case {
  const char* name;
  bool closes;  // in the end; otherwise its messages make rank 0 lose it
  void (*lie)(Liar&);
  void (*stand)(Victim&);
};

const Case cases[] = {
    {"a body as it should be", true,
     [](Liar& liar) {
       liar.head(100, 1);
       liar.body(60);
       liar.body(40);
     },
     [](Victim& victim) { victim.body(transport::TicketState::done); }},
    {"control messages for channels that do not exist, and for messages that were never sent", true,
     [](Liar& liar) {
       liar.control_message(1, 3);
       liar.control_message(-5, 3);
       liar.control_message(0, -1000);
       liar.control_message(0, 1 << 30);
       liar.head(0, 4);
     },
     [](Victim& victim) {
       victim.until_head(4);
       int sent = 0;
       while (sent < 100 && victim.transport().try_send(1, 0, {})) {
         ++sent;
       }
       victim.expect(sent == window, "the window is as large as it was");
     }},
    {"a part larger than its body", false,
     [](Liar& liar) {
       liar.head(100, 1);
       liar.body(200);
     },
     [](Victim& victim) { victim.body(transport::TicketState::failed); }},
    {"a large part that ends beyond its body", false,
     [](Liar& liar) {
       liar.head(100, 1);
       liar.body(60);
       liar.body(large);
     },
     [](Victim& victim) { victim.body(transport::TicketState::failed); }},
};
/// Cases that only make rank 0 lose the peer.
const std::pair<const char*, void (*)(Liar&)> losing[] = {
    {"an empty head", [](Liar& liar) { liar.send(heads, {}); }},
    {"a short head", [](Liar& liar) { liar.send(heads, std::vector<std::byte>(7)); }},
    {"a head that is too long", [](Liar& liar) { liar.head(0, transport::max_message_head + 1); }},
    {"a head that is much too long", [](Liar& liar) { liar.head(0, large); }},
    {"a short control message", [](Liar& liar) { liar.send(control, std::vector<std::byte>(7)); }},
    {"a long control message", [](Liar& liar) { liar.send(control, std::vector<std::byte>(large)); }},
};

/// Both ranks, one case after the other.
template <class Lie, class Stand>
void run(int rank, const char* name, bool closes, Lie lie, Stand stand) {
  if (rank == 0) {
    Checks checks(rank);
    Victim victim(checks);
    stand(victim);
    MPI_Barrier(MPI_COMM_WORLD);
    victim.until_lost();
    if (!checks.wrong().empty()) {
      std::cerr << name << "\n";
      MPI_Abort(MPI_COMM_WORLD, 1);  // the other rank may wait for a message that never comes
    }
  } else {
    Liar liar;
    lie(liar);
    MPI_Barrier(MPI_COMM_WORLD);
    if (closes) {
      liar.close();
    }
  }
  MPI_Barrier(MPI_COMM_WORLD);
}
}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  for (const Case& one : cases) {
    run(rank, one.name, one.closes, one.lie, one.stand);
  }
  for (const auto& [name, lie] : losing) {
    run(rank, name, false, lie, [](Victim&) {});
  }
  std::cout << "ok\n" << std::flush;
  MPI_Finalize();
  return 0;
}
