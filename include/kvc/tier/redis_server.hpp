// RedisServer: where a server is. Standard library only.
#pragma once

#include <string>

namespace kvc {
inline namespace v0 {
namespace tier {

/// An address of a server.
struct RedisServer {
  std::string host = "127.0.0.1";
  int port = 6379;
  friend bool operator==(const RedisServer&, const RedisServer&) = default;
};

}  // namespace tier
}  // namespace v0
}  // namespace kvc
