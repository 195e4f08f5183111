// HostStore: a BlockStore in host memory, behind a pool in device memory, or behind a pool in host memory whose blocks
// it keeps for longer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/memory/space.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/detail/record_index.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record_info.hpp"
#include "kvc/transport/copy.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// Keeps copies of blocks in memory that it allocates once, when it is made. Every operation takes place during its
/// call, and only its completion waits for `poll`; a read and a write cost one copy of the bytes. Memory is handed out
/// in chunks of equal size, so blocks of different sizes do not fragment it, and a block wastes less than one chunk.
///
/// A store that is full evicts the least recently used record whose children are gone, or answers `full`
/// (Config::when_full): with `refuse`, the owner decides what to erase. No checksum is computed: the bytes do not leave
/// memory. Space: where the memory comes from; the CPU must be able to read it. What it fulfils: BlockStore,
/// ReportsEvictions.
template <Space S = HostSpace>
class HostStore {
  static_assert(S::host_accessible, "kvc: HostStore copies by the CPU: its space must be host_accessible");

 public:
  /// The settings.
  struct Config {
    std::uint64_t bytes = 0;               ///< of memory; the largest multiple of chunk_bytes is used
    std::uint64_t chunk_bytes = 64 << 10;  ///< a multiple of 64
    WhenFull when_full = WhenFull::evict;  ///< what a write does when there is no room
    bool reports_evictions = false;        ///< whether poll_evicted() is fed; whoever sets it must call it
  };
  static constexpr bool persistent = false;
  static constexpr bool copies_at_once = true;  ///< bytes that were passed to `write` may change once it returns

  /// Allocates the memory. Throws std::invalid_argument, std::bad_alloc.
  explicit HostStore(const Config& config, S space = S())
      : config_(checked(config)),
        chunks_(config.bytes / config.chunk_bytes),
        memory_(std::move(space), static_cast<std::size_t>(chunks_ * config.chunk_bytes)) {
    free_.reserve(static_cast<std::size_t>(chunks_));
    for (std::uint64_t i = chunks_; i > 0; --i) {
      free_.push_back(static_cast<std::uint32_t>(i - 1));
    }
  }

  /// See BlockStore.
  [[nodiscard]] Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
    detail::require_lookup(keys, found);
    Completion& ended = begin(StoreOperation::lookup);
    index_.find_all(keys, [&](std::size_t i, bool is_there) {
      found[i] = is_there ? 1 : 0;
      ended.count += found[i];
    });
    ended.outcome = StoreOutcome::done;
    stats_.lookups += keys.size();
    stats_.lookups_found += ended.count;
    return ended.ticket;
  }

  /// See BlockStore. O(bytes).
  [[nodiscard]] Ticket read(const RecordInfo& block, std::span<const io::ByteSpan> spans, PartRange parts = {}) {
    const std::uint64_t bytes = io::total_bytes(spans);
    const std::uint64_t payload = detail::payload_of_read(block, bytes, parts);
    auto* const record = index_.find(block.key);
    if (record == nullptr) {
      Completion& ended = begin(StoreOperation::read);
      ended.outcome = StoreOutcome::missing;
      ++stats_.missing;
      return ended.ticket;
    }
    const Stored& stored = record->second.value;
    const Refusal refusal = compare(stored.described(), stored.bytes, block, payload);
    if (refusal != Refusal::none) {
      Completion& ended = begin(StoreOperation::read);
      ended.outcome = StoreOutcome::refused;
      ended.refusal = refusal;
      ++stats_.refused;
      return ended.ticket;
    }
    from_.clear();
    add_chunks(stored, payload / block.parts * parts.within(block.parts).first, bytes, from_);
    Completion& ended = begin(StoreOperation::read);
    transport::detail::copy_body(from_.spans(), spans);
    index_.touch(*record);
    ended.outcome = StoreOutcome::done;
    ended.count = bytes;
    ++stats_.reads;
    stats_.bytes_read += bytes;
    return ended.ticket;
  }

  /// See BlockStore. O(bytes), and O(1) for each record that is evicted.
  [[nodiscard]] Ticket write(const RecordInfo& block, std::span<const io::ConstByteSpan> spans) {
    const std::uint64_t bytes = io::total_bytes(spans);
    require_recordable(block, bytes);
    const std::uint64_t wanted = ceil_div(bytes, config_.chunk_bytes);
    auto* old = index_.find(block.key);
    if (old != nullptr &&
        compare(old->second.value.described(), old->second.value.bytes, block, bytes) == Refusal::none) {
      Completion& ended = begin(StoreOperation::write);
      index_.touch(*old);  // it is there: the bytes of a block do not change
      return written(ended, bytes);
    }
    const std::uint64_t replaced = old != nullptr ? old->second.value.chunks.size() : 0;
    if (wanted > chunks_ || (config_.when_full == WhenFull::refuse && wanted > free_.size() + replaced)) {
      Completion& ended = begin(StoreOperation::write);
      ended.outcome = StoreOutcome::full;
      ++stats_.full;
      return ended.ticket;
    }
    Stored stored;
    stored.info = block;
    stored.tokens.assign(block.tokens.begin(), block.tokens.end());
    stored.bytes = bytes;
    stored.chunks.reserve(static_cast<std::size_t>(wanted));
    to_.reserve(static_cast<std::size_t>(wanted));
    Completion& ended = begin(StoreOperation::write);
    kvc::detail::ScopeGuard no_completion([&] { take_back(); });
    if (old != nullptr) {
      remove(*old);
    }
    while (free_.size() < wanted) {
      evict();
    }
    for (std::uint64_t i = 0; i < wanted; ++i) {
      stored.chunks.push_back(free_[free_.size() - 1 - static_cast<std::size_t>(i)]);
    }
    to_.clear();
    add_chunks(stored, 0, bytes, to_);
    const auto* const record = index_.insert(block.key, block.parent, std::move(stored));
    free_.resize(free_.size() - static_cast<std::size_t>(wanted));
    transport::detail::copy_body(spans, to_.spans());
    (void)record;
    no_completion.dismiss();
    return written(ended, bytes);
  }

  /// See BlockStore.
  [[nodiscard]] Ticket erase(const BlockKey& key) {
    Completion& ended = begin(StoreOperation::erase);
    if (auto* const record = index_.find(key)) {
      remove(*record);
      ended.outcome = StoreOutcome::done;
      ++stats_.erases;
    } else {
      ended.outcome = StoreOutcome::missing;
      ++stats_.missing;
    }
    return ended.ticket;
  }

  /// See BlockStore: completions come in the order of the calls.
  [[nodiscard]] std::optional<Completion> poll() {
    if (ended_.empty()) {
      return std::nullopt;
    }
    const Completion ended = ended_.front();
    ended_.pop_front();
    return ended;
  }
  /// See BlockStore. Every operation has taken place: true for all that have not been polled.
  bool cancel(Ticket ticket) {
    const auto found =
        std::find_if(ended_.begin(), ended_.end(), [&](const Completion& each) { return each.ticket == ticket; });
    if (found == ended_.end()) {
      return false;
    }
    ended_.erase(found);
    ++stats_.cancelled;
    return true;
  }
  /// See BlockStore. Never waits.
  [[nodiscard]] bool wait(TimePoint) noexcept { return !ended_.empty(); }
  /// See ReportsEvictions. Always empty unless Config::reports_evictions.
  [[nodiscard]] std::optional<BlockKey> poll_evicted() {
    if (evicted_.empty()) {
      return std::nullopt;
    }
    const BlockKey key = evicted_.front();
    evicted_.pop_front();
    return key;
  }
  /// See BlockStore.
  [[nodiscard]] std::size_t under_way() const noexcept { return ended_.size(); }
  /// Bytes of memory.
  [[nodiscard]] std::uint64_t capacity() const noexcept { return chunks_ * config_.chunk_bytes; }
  /// See BlockStore. `bytes` are those of the chunks in use.
  [[nodiscard]] StoreStats stats() const noexcept {
    StoreStats now = stats_;
    now.records = index_.size();
    now.bytes = (chunks_ - free_.size()) * config_.chunk_bytes;
    return now;
  }

 private:
  struct Stored {
    RecordInfo info;  // without its tokens
    std::vector<Token> tokens;
    std::vector<std::uint32_t> chunks;
    std::uint64_t bytes = 0;

    [[nodiscard]] RecordInfo described() const noexcept {
      RecordInfo block = info;
      block.tokens = tokens;
      return block;
    }
  };

  static const Config& checked(const Config& config) {
    require(config.chunk_bytes > 0 && config.chunk_bytes % 64 == 0, "chunk_bytes", config.chunk_bytes,
            "a multiple of 64, and not 0");
    require(config.bytes >= config.chunk_bytes, "bytes", config.bytes, "at least chunk_bytes");
    require(config.bytes / config.chunk_bytes <= std::numeric_limits<std::uint32_t>::max(), "bytes", config.bytes,
            "less than 2^32 chunks");
    return config;
  }

  Completion& begin(StoreOperation operation) {
    Completion& ended = ended_.emplace_back();
    ended.ticket = ++last_;
    ended.operation = operation;
    return ended;
  }
  void take_back() noexcept {
    ended_.pop_back();
    --last_;
  }
  Ticket written(Completion& ended, std::uint64_t bytes) noexcept {
    ended.outcome = StoreOutcome::done;
    ended.count = bytes;
    ++stats_.writes;
    stats_.bytes_written += bytes;
    return ended.ticket;
  }

  void remove(typename detail::RecordIndex<Stored>::Record& record) noexcept {
    const std::vector<std::uint32_t>& chunks = record.second.value.chunks;
    free_.insert(free_.end(), chunks.rbegin(), chunks.rend());  // there is room: for all chunks
    index_.erase(record);
  }
  void evict() {
    auto* const victim = index_.victim();
    KVC_ASSERT(victim != nullptr);
    if (config_.reports_evictions) {
      evicted_.push_back(victim->first);
    }
    remove(*victim);
    ++stats_.evicted;
  }

  /// Bytes [first, first + bytes) of a record, as spans of the memory.
  template <class Byte>
  void add_chunks(const Stored& stored, std::uint64_t first, std::uint64_t bytes, io::SpanList<Byte>& to) {
    while (bytes > 0) {
      const std::uint64_t offset = first % config_.chunk_bytes;
      const std::uint64_t count = std::min(bytes, config_.chunk_bytes - offset);
      std::byte* const chunk = memory_.data() + stored.chunks[first / config_.chunk_bytes] * config_.chunk_bytes;
      to.add({chunk + offset, static_cast<std::size_t>(count)});
      first += count;
      bytes -= count;
    }
  }

  Config config_;
  std::uint64_t chunks_;
  Buffer<S> memory_;
  detail::RecordIndex<Stored> index_;
  std::vector<std::uint32_t> free_;
  std::deque<Completion> ended_;
  std::deque<BlockKey> evicted_;
  io::SpanList<const std::byte> from_;  // kept for their memory
  io::SpanList<std::byte> to_;
  StoreStats stats_;
  Ticket last_ = 0;
};
static_assert(ReportsEvictions<HostStore<>>);

}  // namespace tier
}  // namespace v0
}  // namespace kvc
