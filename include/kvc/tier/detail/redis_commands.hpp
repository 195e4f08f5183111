// RedisCommands: what a store asks a server for an operation, and what the replies mean. Needs hiredis and xxHash.
// POSIX.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/io/byte_spans.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/detail/operation_queue.hpp"
#include "kvc/tier/detail/redis_connection.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// The answer of a server.
struct RedisAnswer {
  Outcome how;
  std::string error;  ///< in the server's words; empty unless it answered with an error. `how` is `failed` then
};

/// A record is one value, head and payload, under the key PREFIX + 64 hexadecimal digits.
class RedisCommands {
 public:
  explicit RedisCommands(std::string prefix) : prefix_(std::move(prefix)) {}

  [[nodiscard]] std::string key_of(const BlockKey& key) const { return prefix_ + key.hex(); }

  /// Asks whether there is a record under a key.
  void add_lookup(RedisConnection& to, const BlockKey& key) const { to.add({"EXISTS", key_of(key)}); }
  /// Empty: the connection is closed.
  [[nodiscard]] static std::optional<RedisAnswer> receive_lookup(RedisConnection& from) {
    const RedisReply reply = from.reply();
    if (reply == nullptr) {
      return std::nullopt;
    }
    if (reply->type == REDIS_REPLY_ERROR) {
      return RedisAnswer{{}, text_of(*reply)};
    }
    return RedisAnswer{{StoreOutcome::done, {}, is_one(*reply) ? std::uint64_t{1} : 0}, {}};
  }

  /// Adds the commands of a read, a write or an erase. `head` gets the head of the record that is written; it must stay
  /// until they are flushed. `before(to)` is called before each command.
  template <class F>
  void add(RedisConnection& to, const Operation& operation, std::vector<std::byte>& head, F&& before) const {
    const RecordInfo& block = operation.block;
    const std::string key = key_of(block.key);
    before(to);
    if (operation.kind == StoreOperation::write) {
      head.resize(record_head_bytes(block));
      write_record_head(block, operation.from, head);
      std::vector<io::ConstByteSpan> spans{head};
      spans.insert(spans.end(), operation.from.begin(), operation.from.end());
      to.add({"SET", key, ""}, spans);
    } else if (operation.kind == StoreOperation::erase) {
      to.add({"DEL", key});
    } else if (!reads_parts(operation)) {
      to.add({"GET", key});
    } else {
      const std::uint64_t head_bytes = record_head_bytes(block);
      const std::uint64_t first = head_bytes + operation.payload / block.parts * operation.parts.first;
      to.add({"GETRANGE", key, "0", std::to_string(head_bytes - 1)});
      before(to);
      to.add({"GETRANGE", key, std::to_string(first),
              std::to_string(first + std::max<std::uint64_t>(operation.bytes, 1) - 1)});
    }
  }
  void add(RedisConnection& to, const Operation& operation, std::vector<std::byte>& head) const {
    add(to, operation, head, [](RedisConnection&) {});
  }
  /// Takes the replies to the commands of `add`. `before(from)` takes the reply to what came before each; false: the
  /// connection is closed. Empty: the same.
  template <class F>
  [[nodiscard]] static std::optional<RedisAnswer> receive(RedisConnection& from, const Operation& operation,
                                                          F&& before) {
    if (!before(from)) {
      return std::nullopt;
    }
    RedisAnswer answer;
    if (operation.kind == StoreOperation::read && !reads_parts(operation)) {
      answer.how.outcome = StoreOutcome::missing;
      const RedisReply reply = from.reply([&](io::ConstByteSpan bytes) noexcept {
        const std::size_t head = std::min(bytes.size(), record_head_bytes(operation.block));
        answer.how = read_record(operation, bytes, bytes.subspan(head));
      });
      return reply == nullptr ? std::nullopt : std::optional(with_error(std::move(answer), *reply));
    }
    const RedisReply reply = from.reply();
    if (reply == nullptr) {
      return std::nullopt;
    }
    if (operation.kind == StoreOperation::write) {
      answer.how = {StoreOutcome::done, {}, operation.bytes};
    } else if (operation.kind == StoreOperation::erase) {
      answer.how.outcome = is_one(*reply) ? StoreOutcome::done : StoreOutcome::missing;
    } else {
      if (!before(from)) {
        return std::nullopt;
      }
      answer.how.outcome = StoreOutcome::missing;
      const RedisReply second = from.reply([&](io::ConstByteSpan bytes) noexcept {
        if (reply->type == REDIS_REPLY_STRING) {
          answer.how = read_record(operation, std::as_bytes(std::span(reply->str, reply->len)), bytes);
        }
      });
      if (second == nullptr) {
        return std::nullopt;
      }
      answer = with_error(std::move(answer), *second);
    }
    return with_error(std::move(answer), *reply);
  }
  [[nodiscard]] static std::optional<RedisAnswer> receive(RedisConnection& from, const Operation& operation) {
    return receive(from, operation, [](RedisConnection&) { return true; });
  }

 private:
  /// Whether a read is of some parts alone: two commands.
  [[nodiscard]] static bool reads_parts(const Operation& operation) noexcept {
    return operation.parts != PartRange{0, operation.block.parts};
  }
  [[nodiscard]] static bool is_one(const redisReply& reply) noexcept {
    return reply.type == REDIS_REPLY_INTEGER && reply.integer == 1;
  }
  [[nodiscard]] static RedisAnswer with_error(RedisAnswer answer, const redisReply& reply) {
    if (reply.type == REDIS_REPLY_ERROR) {
      answer = {{}, text_of(reply)};
    }
    return answer;
  }
  /// Not empty.
  [[nodiscard]] static std::string text_of(const redisReply& error) {
    return error.len == 0 ? std::string("an error without words") : std::string(error.str, error.len);
  }
  /// The bytes of a head, which others may follow, and of the parts. A range of nothing is an empty string to the
  /// server.
  [[nodiscard]] static Outcome read_record(const Operation& operation, io::ConstByteSpan head,
                                           io::ConstByteSpan payload) noexcept {
    if (head.empty()) {
      return {StoreOutcome::missing, {}, 0};
    }
    Refusal refusal = check_record_head(head, operation.block, operation.payload);
    if (refusal == Refusal::none) {
      refusal = place_payload(operation, head, payload);
    }
    return refusal == Refusal::none ? Outcome{StoreOutcome::done, {}, operation.bytes}
                                    : Outcome{StoreOutcome::refused, refusal, 0};
  }
  /// Copies parts to their memory, and compares their checksums with those of the head, which has passed.
  [[nodiscard]] static Refusal place_payload(const Operation& operation, io::ConstByteSpan head,
                                             io::ConstByteSpan payload) noexcept {
    constexpr std::size_t most = 64 << 10;  // is still in the processor's cache when its checksum is computed
    if (payload.size() < operation.bytes) {
      return Refusal::truncated;
    }
    ExpectedSums expected(head, operation.block, operation.parts.first);
    PartSums sums(operation.payload / operation.block.parts, [&](std::uint64_t sum) { expected(sum); });
    for (io::ByteSpan to : operation.to) {
      while (!to.empty()) {
        const io::ByteSpan next = to.first(std::min(most, to.size()));
        std::memcpy(next.data(), payload.data(), next.size());
        sums.add(next);
        payload = payload.subspan(next.size());
        to = to.subspan(next.size());
      }
    }
    return expected.are_equal ? Refusal::none : Refusal::payload_checksum;
  }

  std::string prefix_;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
