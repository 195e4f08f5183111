// BlockStore: the contract of a slower tier for the bytes of blocks. Host memory is tier/host_store.hpp, files are
// tier/file_store.hpp, servers tier/redis_store.hpp; testing/block_store_conformance.hpp checks a store of your own.
// Standard library only.
#pragma once

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string_view>

#include "kvc/core/error.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// The number of an operation of a store: 1, 2, ... in the order of the calls. No two operations of a store share one.
using Ticket = std::uint64_t;
using TimePoint = std::chrono::steady_clock::time_point;  ///< of `wait`

/// The kinds of operations of a store.
enum class StoreOperation : std::uint8_t { lookup, read, write, erase };

/// How an operation ended. All but `failed` are expected in normal operation.
enum class StoreOutcome : std::uint8_t {
  done,     ///< lookup: the answers are there; read: all bytes are in place and checked; write: others can read it;
            ///< erase: there was a record, and it is gone
  missing,  ///< read, erase: there is no record under the key
  refused,  ///< read: there is a record, and it is foreign, truncated or damaged: Completion::refusal says how. To the
            ///< caller it is a miss, and it counts
  full,     ///< write: no room, and nothing was evicted to make it; or the record is larger than the store
  failed    ///< the store could not do it: disk, connection, time-out. Nothing is known of the record
};

/// What a write does when the store has no room.
enum class WhenFull : std::uint8_t {
  evict,  ///< evicts records, the least recently used first, but no record before those whose parent it is
  refuse  ///< ends as `full`: the owner of the store decides what to erase
};

/// Reports the end of an operation.
struct Completion {
  Ticket ticket = 0;
  StoreOperation operation = StoreOperation::lookup;
  StoreOutcome outcome = StoreOutcome::failed;
  Refusal refusal = Refusal::none;  ///< why, if the outcome is `refused`
  /// Bytes of the payload that were read or written; for lookups the number of keys that were found.
  std::uint64_t count = 0;
};

/// What a store has done since it was made, and what it holds.
struct StoreStats {
  std::uint64_t lookups = 0;        ///< keys that were looked up
  std::uint64_t lookups_found = 0;  ///< of them, keys with a record
  std::uint64_t reads = 0;          ///< reads that were done
  std::uint64_t bytes_read = 0;     ///< payload bytes of these
  std::uint64_t writes = 0;         ///< writes that were done
  std::uint64_t bytes_written = 0;  ///< payload bytes of these
  std::uint64_t erases = 0;         ///< erases that were done
  std::uint64_t missing = 0;        ///< reads and erases that found no record
  std::uint64_t refused = 0;        ///< reads that found a foreign, truncated or damaged record
  std::uint64_t full = 0;           ///< writes without room
  std::uint64_t failed = 0;         ///< operations that failed
  std::uint64_t cancelled = 0;      ///< operations that were cancelled
  std::uint64_t evicted = 0;        ///< records that the store evicted to make room
  std::uint64_t records = 0;        ///< records that it has now, as far as the store knows
  std::uint64_t bytes = 0;          ///< bytes used now of capacity(), with all overhead
  friend bool operator==(const StoreStats&, const StoreStats&) = default;
};

/// A capacity without limit.
inline constexpr std::uint64_t unlimited = std::numeric_limits<std::uint64_t>::max();

/// Keeps the bytes of blocks under their keys. Every operation is asynchronous: it returns a ticket at once, and `poll`
/// later returns its completion. Nothing blocks but `wait` and the destructor.
///
///   expression                  | requires             | returns, does                 | throws           | complexity
///   ----------------------------+----------------------+-------------------------------+------------------+---------
///   s.lookup(keys, found)       | found.size() ==      | Ticket. found[i] becomes 1 if | invalid_argument | O(keys)
///                               | keys.size(); both    | there is a record under       | bad_alloc        |
///                               | stay until the       | keys[i], 0 if not. An answer, |                  |
///                               | operation has ended  | not a promise: a read may     |                  |
///                               |                      | still miss                    |                  |
///   s.read(block, spans, parts) | spans hold the bytes | Ticket. Reads the parts of    | invalid_argument | O(spans),
///                               | of these parts (of   | the record of block.key to    | bad_alloc        | O(bytes)
///                               | all: the payload);   | the spans in order, if it is  |                  | in memory
///                               | nobody else touches  | a record of exactly this      |                  |
///                               | the bytes until the  | block. Their contents are     |                  |
///                               | operation has ended  | undefined unless it is `done` |                  |
///   s.write(block, spans)       | bytes of the spans   | Ticket. Stores the bytes of   | invalid_argument | as read
///                               | are a multiple of    | the spans in order; a record  | bad_alloc        |
///                               | block.parts; nobody  | that was under this key is    |                  |
///                               | changes them until   | replaced, or kept if it is of |                  |
///                               | the operation has    | the same block                |                  |
///                               | ended                |                               |                  |
///   s.erase(key)                |                      | Ticket. Removes the record    | bad_alloc        | O(1)
///   s.poll()                    |                      | optional<Completion>: of an   |                  | O(1)
///                               |                      | operation that has ended, in  |                  |
///                               |                      | any order, each once; empty   |                  |
///                               |                      | if there is none              |                  |
///   s.cancel(ticket)            |                      | bool. True: it is ended now,  |                  | O(under
///                               |                      | never returned by `poll`, and |                  | way)
///                               |                      | may have taken effect. False: |                  |
///                               |                      | it cannot be stopped now, was |                  |
///                               |                      | returned before, or is no     |                  |
///                               |                      | ticket of s                   |                  |
///   s.wait(until)               |                      | bool: true as soon as `poll`  |                  |
///                               |                      | has something to return;      |                  |
///                               |                      | false at `until`, or at once  |                  |
///                               |                      | if no operation is under way  |                  |
///   s.under_way()               |                      | size_t: operations that have  |                  | O(1)
///                               |                      | neither been polled nor       |                  |
///                               |                      | cancelled                     |                  |
///   s.capacity()                |                      | uint64_t: bytes that it may   |                  | O(1)
///                               |                      | use, or `unlimited`           |                  |
///   s.stats()                   |                      | StoreStats                    |                  | O(1)
///   S::persistent               |                      | bool constant: whether its    |                  |
///                               |                      | records outlive the store     |                  |
///
/// Arguments. The block, its tokens, and the lists of keys (for reads, writes and erases) and of spans are copied; the
/// bytes are not. `found` and `keys` of a lookup must stay in place until it has ended, as the bytes must.
/// Ended. An operation has ended when `poll` has returned it, or `cancel` has returned true, or the store is destroyed.
/// From then on the store touches neither bytes nor answers. The destructor cancels what can be cancelled, waits for
/// the rest, and does not fail.
/// Order. Operations under way may take effect in any order, also those on one key. An operation that depends on
/// another one is begun after that one has ended: a write is visible to reads and lookups that begin after its
/// completion.
/// Exact. A read is `done` only if the record is a record of this block: format, salt, group, parent, tokens, size
/// (tier/record.hpp) and, where the bytes have left memory, its checksums. Everything else is a miss. A record that was
/// refused may be removed by the store.
/// Room. A store that is full evicts, or answers `full`, as it is configured. A `full` write changes nothing.
/// Errors. std::invalid_argument for arguments that break a requirement; nothing has begun then. An error that occurs
/// later is an outcome, never an exception.
/// Threads. One thread at a time calls a store. Threads of the store itself are not visible.
template <class S>
concept BlockStore =
    requires(S s, const S c, std::span<const BlockKey> keys, std::span<std::uint8_t> found, const RecordInfo& block,
             std::span<const io::ByteSpan> to, PartRange parts, std::span<const io::ConstByteSpan> from,
             const BlockKey& key, Ticket ticket, TimePoint until) {
      { S::persistent } -> std::convertible_to<bool>;
      { s.lookup(keys, found) } -> std::same_as<Ticket>;
      { s.read(block, to, parts) } -> std::same_as<Ticket>;
      { s.read(block, to) } -> std::same_as<Ticket>;
      { s.write(block, from) } -> std::same_as<Ticket>;
      { s.erase(key) } -> std::same_as<Ticket>;
      { s.poll() } -> std::same_as<std::optional<Completion>>;
      { s.cancel(ticket) } -> std::same_as<bool>;
      { s.wait(until) } -> std::same_as<bool>;
      { c.under_way() } -> std::same_as<std::size_t>;
      { c.capacity() } -> std::same_as<std::uint64_t>;
      { c.stats() } -> std::same_as<StoreStats>;
    };

/// A store that evicts by itself and says what: poll_evicted() returns the key of a record that it evicted, in the
/// order of eviction, each once; empty if there is none. A record that is written anew later is not reported again for
/// the past. O(1).
template <class S>
concept ReportsEvictions = BlockStore<S> && requires(S s) {
  { s.poll_evicted() } -> std::same_as<std::optional<BlockKey>>;
};

namespace detail {

/// Throws std::invalid_argument unless the arguments of a lookup fit.
inline void require_lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
  require(found.size() == keys.size(), "found", found.size(), "as many as the keys");
}
/// The bytes of the whole payload, if these parts of it have so many. Throws std::invalid_argument unless the parts are
/// of equal size and parts of the block.
[[nodiscard]] inline std::uint64_t payload_of_read(const RecordInfo& block, std::uint64_t bytes, PartRange parts) {
  require_recordable(block, 0);
  const PartRange range = parts.within(block.parts);
  require(range.count > 0, "parts.first", parts.first, "below the number of parts, of a range that is not empty");
  require(bytes % range.count == 0, "bytes", bytes, "a multiple of the number of parts that are read");
  return bytes / range.count * block.parts;
}

}  // namespace detail

/// Runs until every operation under way has ended; passes each completion to `each`. False if some are under way at
/// `until`.
template <BlockStore S, class F>
bool drain(S& store, TimePoint until, F&& each) {
  for (;;) {
    while (const std::optional<Completion> ended = store.poll()) {
      each(*ended);
    }
    if (store.under_way() == 0) {
      return true;
    }
    if (!store.wait(until) && std::chrono::steady_clock::now() >= until) {
      return false;
    }
  }
}

}  // namespace tier
}  // namespace v0
}  // namespace kvc
