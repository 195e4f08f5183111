// RedisSlots: which node of a Redis cluster has which keys, and what the nodes say of it. Needs hiredis. POSIX.
#pragma once

#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "kvc/tier/detail/redis_connection.hpp"
#include "kvc/tier/redis_server.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

inline constexpr std::size_t redis_slots = 16384;  // of every cluster

/// CRC-16 with the polynomial x^16 + x^12 + x^5 + 1, from 0 on, as XMODEM has it.
[[nodiscard]] constexpr std::uint16_t crc16(std::string_view bytes) noexcept {
  unsigned sum = 0;
  for (const char byte : bytes) {
    sum ^= static_cast<unsigned>(static_cast<unsigned char>(byte)) << 8;
    for (int bit = 0; bit < 8; ++bit) {
      sum = (sum << 1) ^ ((sum & 0x8000U) != 0 ? 0x1021U : 0U);
    }
    sum &= 0xffffU;
  }
  return static_cast<std::uint16_t>(sum);
}
static_assert(crc16("123456789") == 0x31c3);

/// The slot of a key. Of a key with {...}, only what stands between the first pair counts, unless that is nothing.
[[nodiscard]] constexpr std::size_t redis_slot(std::string_view key) noexcept {
  if (const std::size_t open = key.find('{'); open != std::string_view::npos) {
    const std::size_t close = key.find('}', open + 1);
    if (close != std::string_view::npos && close > open + 1) {
      key = key.substr(open + 1, close - open - 1);
    }
  }
  return crc16(key) % redis_slots;
}

/// The words of a node that does not serve a slot: `MOVED SLOT HOST:PORT` for good, `ASK SLOT HOST:PORT` for one
/// command.
struct RedisRedirect {
  bool is_ask = false;
  std::size_t slot = 0;
  RedisServer to;

  /// Of an error that the node `by` answered with. Empty: it is none, or names no place.
  [[nodiscard]] static std::optional<RedisRedirect> of(std::string_view error, const RedisServer& by) {
    RedisRedirect redirect;
    if (error.starts_with("ASK ")) {
      redirect.is_ask = true;
    } else if (!error.starts_with("MOVED ")) {
      return std::nullopt;
    }
    error.remove_prefix(error.find(' ') + 1);
    const std::size_t space = error.find(' '), colon = error.rfind(':');  // a host may have colons
    if (space == std::string_view::npos || colon == std::string_view::npos || colon < space) {
      return std::nullopt;
    }
    redirect.to.host = error.substr(space + 1, colon - space - 1);
    if (redirect.to.host.empty()) {
      redirect.to.host = by.host;  // a node that does not know its address
    }
    if (!number_of(error.substr(0, space), redis_slots - 1, redirect.slot) || redirect.to.host == "?") {
      return std::nullopt;
    }
    std::size_t port = 0;
    if (!number_of(error.substr(colon + 1), 65535, port) || port == 0) {
      return std::nullopt;
    }
    redirect.to.port = static_cast<int>(port);
    return redirect;
  }

 private:
  [[nodiscard]] static bool number_of(std::string_view digits, std::size_t most, std::size_t& value) noexcept {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc() && end == digits.data() + digits.size() && value <= most;
  }
};

/// The nodes of a cluster that are known, by number, and for each slot the number of its node. Any thread may call it.
class RedisSlots {
 public:
  static constexpr std::size_t none = std::numeric_limits<std::uint16_t>::max();
  static constexpr std::size_t max_nodes = 4096;  // a cluster has 1000; others that are named are left out

  explicit RedisSlots(const std::vector<RedisServer>& seeds) : nodes_(seeds) { owner_.fill(none); }

  /// The number of the node of a slot, or `none`.
  [[nodiscard]] std::size_t node_of(std::size_t slot) const {
    const std::lock_guard lock(mutex_);
    return owner_[slot];
  }
  [[nodiscard]] std::size_t nodes() const {
    const std::lock_guard lock(mutex_);
    return nodes_.size();
  }
  [[nodiscard]] RedisServer node(std::size_t number) const {
    const std::lock_guard lock(mutex_);
    return nodes_.at(number);
  }
  /// The number of a node, new or known; `none` if there are too many. O(nodes).
  [[nodiscard]] std::size_t number_of(const RedisServer& node) {
    const std::lock_guard lock(mutex_);
    return number_of_locked(node);
  }
  /// From now on this node has the slot.
  void move(std::size_t slot, std::size_t node) {
    const std::lock_guard lock(mutex_);
    owner_[slot] = static_cast<std::uint16_t>(node);
  }
  /// Takes the reply of a node to CLUSTER SLOTS: a list of ranges, each of first and last slot and nodes, of which the
  /// first is the master, each of host and port. Slots in no range have no node. False, and nothing has changed, if it
  /// is anything else.
  bool take(const redisReply& reply, const RedisServer& by) {
    if (reply.type != REDIS_REPLY_ARRAY) {
      return false;
    }
    std::array<std::uint16_t, redis_slots> owner{};
    owner.fill(none);
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < reply.elements; ++i) {
      const redisReply& range = *reply.element[i];
      if (range.type != REDIS_REPLY_ARRAY || range.elements < 3 || !is_slot(*range.element[0]) ||
          !is_slot(*range.element[1]) || range.element[2]->type != REDIS_REPLY_ARRAY ||
          range.element[2]->elements < 2) {
        return false;
      }
      const redisReply &host = *range.element[2]->element[0], &port = *range.element[2]->element[1];
      if (port.type != REDIS_REPLY_INTEGER || port.integer < 1 || port.integer > 65535) {
        return false;
      }
      RedisServer node{by.host, static_cast<int>(port.integer)};
      if (host.type == REDIS_REPLY_STRING && host.len > 0) {  // else: where it was asked
        node.host.assign(host.str, host.len);
      }
      const std::size_t number = node.host == "?" ? none : number_of_locked(node);
      for (long long slot = range.element[0]->integer; slot <= range.element[1]->integer; ++slot) {
        owner[static_cast<std::size_t>(slot)] = static_cast<std::uint16_t>(number);
      }
    }
    owner_ = owner;
    return true;
  }

 private:
  [[nodiscard]] static bool is_slot(const redisReply& reply) noexcept {
    return reply.type == REDIS_REPLY_INTEGER && reply.integer >= 0 &&
           reply.integer < static_cast<long long>(redis_slots);
  }
  [[nodiscard]] std::size_t number_of_locked(const RedisServer& node) {
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      if (nodes_[i] == node) {
        return i;
      }
    }
    if (nodes_.size() >= max_nodes) {
      return none;
    }
    nodes_.push_back(node);
    return nodes_.size() - 1;
  }

  mutable std::mutex mutex_;
  std::vector<RedisServer> nodes_;
  std::array<std::uint16_t, redis_slots> owner_{};
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
