// The contract of a transport, for the one between processes.
#include <mpi.h>

#include <exception>
#include <iostream>
#include <optional>

#include "kvc/transport/mpi.hpp"
#include "transfer/transport_contract.hpp"

int main(int argc, char** argv) {
  using namespace kvc;
  using namespace kvc_test;
  MPI_Init(&argc, &argv);
  int self = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &self);
  int wrong = 0;
  using Suite = Contract<transport::Mpi>;
  // Parts as small as spans, parts of some spans, and one part of all.
  for (const std::size_t part_bytes : {1U, 200U, 100000U}) {
    for (const Suite::Case& one : Suite::cases()) {
      Checks checks(self);
      std::optional<transport::Mpi> transport(std::in_place, MPI_COMM_WORLD,
                                              transport::Mpi::Config{.channels = contract_channels,
                                                                     .window_messages = contract_window_messages,
                                                                     .window_bytes = contract_window_bytes,
                                                                     .part_bytes = part_bytes});
      try {
        Suite suite(transport, checks);
        (suite.*one.run)();
      } catch (const std::exception& error) {
        std::cerr << "peer " << self << ": " << one.name << ": " << error.what() << std::endl;
        MPI_Abort(MPI_COMM_WORLD, 1);
      }
      transport.reset();
      if (!checks.wrong().empty()) {
        std::cerr << "peer " << self << ": wrong: " << one.name << std::endl;
        ++wrong;
      }
    }
  }
  std::cout << (wrong == 0 ? "ok\n" : "wrong\n");
  MPI_Finalize();
  return wrong == 0 ? 0 : 1;
}
