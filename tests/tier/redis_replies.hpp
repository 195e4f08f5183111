// What a server may answer: right replies, and the check of what is made of any bytes. One body for the fuzz target
// redis_reply and for the test with a fixed seed.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/testing/block_store_conformance.hpp"
#include "kvc/tier/detail/redis_commands.hpp"
#include "kvc/tier/detail/redis_slots.hpp"

namespace kvc_test {

/// What is asked for: the first byte of an input.
enum class RedisAsked : std::uint8_t { lookup, read, read_part, write, erase, slots };
inline constexpr std::uint8_t redis_asked_kinds = 6;

/// The block that is asked for.
inline const kvc::testing::detail::StoredBlock& redis_block() {
  static const kvc::testing::detail::StoredBlock block(1, 300, 3);
  return block;
}

/// Right replies, and the errors of servers, behind what was asked for.
inline std::vector<std::string> redis_replies() {
  const auto& block = redis_block();
  const kvc::io::ConstByteSpan payload = block.bytes;
  std::vector<std::byte> head(kvc::tier::record_head_bytes(block.record()));
  kvc::tier::write_record_head(block.record(), std::span(&payload, 1), head);
  const auto text = [](kvc::io::ConstByteSpan bytes) {
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  const auto bulk = [](const std::string& bytes) {
    return "$" + std::to_string(bytes.size()) + "\r\n" + bytes + "\r\n";
  };
  const auto of = [](RedisAsked asked, const std::string& reply) { return static_cast<char>(asked) + reply; };
  const std::string whole = bulk(text(head) + text(payload));
  return {of(RedisAsked::lookup, ":1\r\n:0\r\n:1\r\n"),
          of(RedisAsked::lookup, ":1\r\n-MOVED 3999 127.0.0.1:6381\r\n-LOADING\r\n"),
          of(RedisAsked::read, whole + "$-1\r\n" + whole + "-ASK 12 :6381\r\n" + whole),
          of(RedisAsked::read_part, bulk(text(head)) + bulk(text(payload.subspan(100, 100))) + "$0\r\n\r\n$0\r\n\r\n"),
          of(RedisAsked::write, "+OK\r\n-OOM command not allowed\r\n-MOVED 16383 ::1:6381\r\n"),
          of(RedisAsked::erase, ":1\r\n:0\r\n-WRONGTYPE Operation\r\n"),
          of(RedisAsked::slots,
             "*2\r\n*4\r\n:0\r\n:8191\r\n*3\r\n$9\r\n127.0.0.1\r\n:7000\r\n$2\r\nid\r\n*2\r\n$-1\r\n:7001\r\n"
             "*3\r\n:8192\r\n:16383\r\n*2\r\n$0\r\n\r\n:7002\r\n")};
}

/// Gives the bytes to a connection, as those of a server, and asks until it is closed, or eight times. expect(ok, what)
/// is told what must be so whatever the bytes are. The largest input is 65536 bytes.
template <class F>
void check_redis_replies(std::string_view input, F&& expect) {
  using namespace kvc::tier;
  if (input.empty() || input.size() > 65536) {
    return;
  }
  const auto asked = static_cast<RedisAsked>(static_cast<std::uint8_t>(input[0]) % redis_asked_kinds);
  int ends[2];
  expect(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "a pair of sockets");
  const auto sent = ::send(ends[1], input.data() + 1, input.size() - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  expect(sent == static_cast<std::int64_t>(input.size()) - 1, "a socket takes 64 KiB");
  (void)::shutdown(ends[1], SHUT_WR);
  {
    kvc::tier::detail::RedisConnection connection("a server", 1, std::chrono::milliseconds(5000));
    expect(connection.adopt(ends[0]), "a connection over a socket");
    const auto& block = redis_block();
    std::vector<std::byte> to(block.bytes.size());
    const RedisServer server{"a server", 1};
    kvc::tier::detail::RedisSlots slots({server});
    const auto is_right = [&](const kvc::tier::detail::RedisAnswer& answer) {
      const auto redirect = kvc::tier::detail::RedisRedirect::of(answer.error, server);
      expect(!redirect || (redirect->slot < 16384 && redirect->to.port >= 1 && redirect->to.port <= 65535 &&
                           !redirect->to.host.empty()),
             "a redirect names a place");
      expect(answer.error.empty() || answer.how.outcome == StoreOutcome::failed, "an error is a failure");
    };
    for (int i = 0; i < 8 && connection.is_open(); ++i) {
      std::fill(to.begin(), to.end(), std::byte{0});
      kvc::io::ByteSpan span = to;
      using Operation = kvc::tier::detail::Operation;
      std::optional<kvc::tier::detail::RedisAnswer> answer;
      switch (asked) {
        case RedisAsked::lookup:
          answer = kvc::tier::detail::RedisCommands::receive_lookup(connection);
          expect(!answer || answer->how.count <= 1, "a key is there or not");
          break;
        case RedisAsked::read: {
          answer = kvc::tier::detail::RedisCommands::receive(connection,
                                                             Operation::read(block.record(), std::span(&span, 1), {}));
          expect(!answer || answer->how.outcome != StoreOutcome::done || to == block.bytes,
                 "a read that is done is right");
          break;
        }
        case RedisAsked::read_part: {
          span = span.first(100);
          answer = kvc::tier::detail::RedisCommands::receive(
              connection, Operation::read(block.record(), std::span(&span, 1), {1, 1}));
          expect(!answer || answer->how.outcome != StoreOutcome::done ||
                     std::equal(span.begin(), span.end(), block.bytes.begin() + 100),
                 "a read of a part that is done is right");
          break;
        }
        case RedisAsked::write: {
          const kvc::io::ConstByteSpan from = block.bytes;
          answer = kvc::tier::detail::RedisCommands::receive(connection,
                                                             Operation::write(block.record(), std::span(&from, 1)));
          break;
        }
        case RedisAsked::erase:
          answer = kvc::tier::detail::RedisCommands::receive(connection, Operation::erase(block.info.key));
          break;
        case RedisAsked::slots:
          if (const auto reply = connection.reply()) {
            answer.emplace();
            (void)slots.take(*reply, server);
            for (std::size_t slot = 0; slot < kvc::tier::detail::redis_slots; slot += 97) {
              const std::size_t node = slots.node_of(slot);
              expect(node == kvc::tier::detail::RedisSlots::none || node < slots.nodes(), "a slot has a node, or none");
            }
          }
          break;
      }
      expect(answer.has_value() == connection.is_open(), "an answer, or the connection is closed");
      if (answer) {
        is_right(*answer);
      }
    }
  }
  (void)::close(ends[1]);
}

}  // namespace kvc_test
