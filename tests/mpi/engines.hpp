// Engines of the tests that mpirun runs: sequences whose rows follow from their request, and processes that can be
// stopped, continued and killed.
#pragma once

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "checks.hpp"
#include "kvc/kvc.hpp"
#include "kvc/transfer/receiver.hpp"
#include "kvc/transfer/sender.hpp"
#include "kvc/transport/mpi.hpp"

namespace kvc_mpi_test {
using namespace kvc;
using kvc_test::Checks;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

inline constexpr Shape shape{.layers = 4, .kv_heads = 2, .key_dim = 64};
inline constexpr Index columns = 2 * 64;
inline constexpr int requests = 12;
inline constexpr std::chrono::seconds patience(100);  // a longer wait never ends: the test fails

inline transport::TimePoint now() { return std::chrono::steady_clock::now(); }

inline Pos length_of(std::uint64_t request) { return static_cast<Pos>(200 + 97 * (request % requests)); }
inline Matrix rows(std::uint64_t request, Index layer, bool keys) {
  Matrix m(length_of(request), columns);
  for (Index i = 0; i < m.size(); ++i) {
    m.data()[i] = static_cast<float>(i) + 1000.0F * static_cast<float>(request) + (keys ? 0.25F : 0.5F) +
                  10000.0F * static_cast<float>(layer);
  }
  return m;
}
template <class Cache>
bool has_rows(const Cache& cache, const transfer::Received& got) {
  bool same = got.outcome == transfer::Outcome::complete && got.length == length_of(got.request);
  for (Index layer = 0; same && layer < shape.layers; ++layer) {
    Matrix k(got.length, columns);
    Matrix v(got.length, columns);
    cache.gather(layer, got.seq, {0, got.length}, k, v);
    same = k == rows(got.request, layer, true) && v == rows(got.request, layer, false);
  }
  return same;
}

/// Polls until `condition()` is true; some conditions depend on time, which no transport reports.
template <class F>
bool run_until(transport::Mpi& transport, F&& condition) {
  const transport::TimePoint deadline = now() + patience;
  while (now() < deadline) {
    if (transport::wait_for(transport, now() + std::chrono::milliseconds(20), condition)) {
      return true;
    }
  }
  return false;
}

/// The process numbers of all ranks. Collective.
inline std::vector<pid_t> processes() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const auto own = static_cast<std::int64_t>(getpid());
  std::vector<std::int64_t> all(static_cast<std::size_t>(size));
  MPI_Allgather(&own, sizeof own, MPI_BYTE, all.data(), sizeof own, MPI_BYTE, MPI_COMM_WORLD);
  return {all.begin(), all.end()};
}

}  // namespace kvc_mpi_test
