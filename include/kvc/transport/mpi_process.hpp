// The processes behind the ranks of a communicator: which of them run on this machine, and whether they have ended. MPI
// has no call for that. Part of transport/mpi.hpp.
#pragma once

#include <mpi.h>
#include <poll.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill is of POSIX
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvc {
inline namespace v0 {
namespace transport {
namespace detail {

/// A process of this machine. A default-constructed one is on another machine; nothing is known of it.
class PeerProcess {
 public:
  PeerProcess() = default;
  explicit PeerProcess(pid_t id) : id_(id) {
#ifdef SYS_pidfd_open
    handle_ = static_cast<int>(::syscall(SYS_pidfd_open, id, 0));
#endif
  }
  PeerProcess(PeerProcess&& other) noexcept
      : id_(std::exchange(other.id_, 0)), handle_(std::exchange(other.handle_, -1)) {}
  PeerProcess& operator=(PeerProcess&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~PeerProcess() {
    if (handle_ >= 0) {
      ::close(handle_);
    }
  }

  /// Whether it is known to have ended. It then uses no memory of this process any more.
  [[nodiscard]] bool has_ended() const noexcept {
    if (handle_ >= 0) {  // names this process, and no later one with the same pid
      pollfd watched{handle_, POLLIN, 0};
      return ::poll(&watched, 1, 0) > 0;
    }
    return id_ != 0 && ::kill(id_, 0) != 0 && errno == ESRCH;
  }

 private:
  pid_t id_ = 0;
  int handle_ = -1;
};

/// The processes of all ranks. Collective.
[[nodiscard]] inline std::vector<PeerProcess> meet_processes(MPI_Comm comm) {
  struct Card {
    std::array<char, 256> host;
    std::uint64_t pid_namespace;
    std::int64_t id;
  };
  Card own{};
  ::gethostname(own.host.data(), own.host.size() - 1);
  struct stat space{};
  own.pid_namespace = ::stat("/proc/self/ns/pid", &space) == 0 ? static_cast<std::uint64_t>(space.st_ino) : 0;
  own.id = ::getpid();
  int size = 0;
  MPI_Comm_size(comm, &size);
  std::vector<Card> all(static_cast<std::size_t>(size));
  MPI_Allgather(&own, sizeof own, MPI_BYTE, all.data(), sizeof own, MPI_BYTE, comm);
  std::vector<PeerProcess> processes(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].host == own.host && all[i].pid_namespace == own.pid_namespace && all[i].id != own.id) {
      processes[i] = PeerProcess(static_cast<pid_t>(all[i].id));
    }
  }
  return processes;
}

}  // namespace detail
}  // namespace transport
}  // namespace v0
}  // namespace kvc
