// A Redis server that a test starts on loopback.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <initializer_list>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "../temp_files.hpp"
#include "catch.hpp"
#include "kvc/tier/detail/redis_connection.hpp"

namespace kvc_test {

/// The path of a program, or nothing.
inline std::string program_path(const std::string& name) {
  std::istringstream folders(std::getenv("PATH") != nullptr ? std::getenv("PATH") : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (::access((folder + "/" + name).c_str(), X_OK) == 0) {
      return folder + "/" + name;
    }
  }
  return {};
}

/// A socket at a port of loopback that the system chose, and the port.
inline std::pair<int, int> bound_to_loopback() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  REQUIRE(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  return {fd, ntohs(address.sin_port)};
}

/// A port of loopback that nobody has now.
inline int free_port() {
  const auto [fd, port] = bound_to_loopback();
  (void)::close(fd);
  return port;
}

/// The reply of a server to one command.
inline kvc::tier::detail::RedisReply redis_reply(int port, std::initializer_list<std::string_view> words) {
  kvc::tier::detail::RedisConnection connection("127.0.0.1", port, std::chrono::milliseconds(5000));
  REQUIRE(connection.connect());
  connection.add(words);
  REQUIRE(connection.flush());
  kvc::tier::detail::RedisReply reply = connection.reply();
  REQUIRE(reply != nullptr);
  return reply;
}

/// A running server, or a test that is skipped.
class RedisProcess {
 public:
  explicit RedisProcess(const std::vector<std::string>& options = {}, int port = free_port()) : port_(port) {
    const std::string program = program_path("redis-server");
    if (program.empty()) {
      KVC_SKIP("redis-server is not on the PATH (Debian: redis-server)");
    }
    std::vector<std::string> words{program,        "--port",    std::to_string(port_), "--bind", "127.0.0.1",
                                   "--save",       "",          "--appendonly",        "no",     "--dir",
                                   folder_.path(), "--logfile", folder_.file("log")};
    words.insert(words.end(), options.begin(), options.end());
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      std::vector<char*> arguments;
      for (std::string& word : words) {
        arguments.push_back(word.data());
      }
      arguments.push_back(nullptr);
      (void)::execv(program.c_str(), arguments.data());
      ::_exit(127);
    }
    for (int i = 0; i < 2000; ++i) {
      if (kvc::tier::detail::RedisConnection connection("127.0.0.1", port_, std::chrono::milliseconds(1000));
          connection.connect()) {
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    FAIL("redis-server does not start: " << file_text(folder_ / "log"));
  }
  ~RedisProcess() {
    signal(SIGCONT);
    stop();
  }
  RedisProcess(const RedisProcess&) = delete;
  [[nodiscard]] int port() const { return port_; }
  void signal(int number) const {
    if (pid_ > 0) {
      (void)::kill(pid_, number);
    }
  }
  void stop() {
    if (pid_ > 0) {
      signal(SIGKILL);
      (void)::waitpid(pid_, nullptr, 0);
      pid_ = -1;
    }
  }

 private:
  TempFolder folder_;
  int port_;
  pid_t pid_ = -1;
};

}  // namespace kvc_test
