// FileStore: a BlockStore in the files of a directory, on a local or a shared disk. POSIX; needs xxHash.
#pragma once

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/detail/operation_queue.hpp"
#include "kvc/tier/detail/queued_store.hpp"
#include "kvc/tier/detail/record_io.hpp"
#include "kvc/tier/detail/segment_directory.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// What the completion of a write promises.
enum class Durability : std::uint8_t {
  process,  ///< the record is there after the process was killed; after the machine stopped, it may be missing
  machine   ///< it is there after the machine has stopped: costs two syncs of the file per write
};

/// How the bytes of files are moved.
enum class FileCalls : std::uint8_t {
  plain,    ///< preadv and pwritev, one call after the other in each thread
  io_uring  ///< several requests of a record at once, where KVC_HAVE_LIBURING is defined and the kernel allows it
};

/// Keeps blocks in segments, files of a directory that take one record after the other, and an index of them in memory,
/// which is read from the tables of the segments when the store is made. Threads of its own read and write with preadv
/// and pwritev, straight from and to the caller's memory, and compute the checksums.
///
///   whenever the process is killed      a record is there, whole, or is not there. A reader never gets anything else:
///                                       it compares head, tokens and checksums
///   the disk or the limit is full       the least recently used records whose children are gone are evicted, or the
///                                       write is `full` (Config::when_full). The limit is one on bytes that the files
///                                       take on the disk, with tables and padding; other processes' files count
///   erased records                      their bytes go back to the file system at once, where it can make holes in
///                                       files; sparse segments are joined by the threads
///   several processes, one directory    each writes segments of its own, and reads all. New records of others are
///                                       found Config::refresh after the last look. Segments of a process that is gone
///                                       belong to the next that looks
///   read-only directory, no disk        what is there is found; writes are `failed`. last_error() says why
///
/// An order of events, for the rule that a parent is durable before its child: begin the write of the child after that
/// of the parent has ended. What it fulfils: BlockStore.
class FileStore : public detail::QueuedStore {
 public:
  /// The settings.
  struct Config {
    std::filesystem::path folder;                 ///< made if it is not there
    std::uint64_t bytes = unlimited;              ///< that all files of the folder may take on the disk
    std::uint64_t segment_bytes = 0;              ///< of a file; 0: 256 MiB, or 1/8 of `bytes` if that is less
    std::size_t threads = 4;                      ///< at most so many operations take place at once
    WhenFull when_full = WhenFull::evict;         ///< what a write does when there is no room
    Durability durability = Durability::process;  ///< what the completion of a write promises
    std::chrono::milliseconds refresh{1000};      ///< least time between two looks for records of other processes
    FileCalls calls = FileCalls::plain;           ///< how bytes are moved
    std::size_t depth = 4;  ///< of io_uring: requests of 256 KiB that a thread has under way at most
    /// Bytes go around the page cache (O_DIRECT) where the file system takes that, and their place in memory is a
    /// multiple of 4096, and their number is. For files that are larger than the memory.
    bool direct = false;
  };
  static constexpr bool persistent = true;

  /// Opens the directory, and reads the tables of its segments. Throws std::invalid_argument; std::system_error if the
  /// directory is not there and cannot be made, or cannot be read. O(records).
  explicit FileStore(const Config& config)
      : config_(checked(config)),
        directory_({config_.folder, config_.bytes, config_.segment_bytes, config_.when_full, config_.refresh,
                    config_.direct}) {
    threads_.reserve(config_.threads);
    kvc::detail::ScopeGuard join([this] { end(); });
    for (std::size_t i = 0; i < config_.threads; ++i) {
      files_.push_back(std::make_unique<detail::RecordIo>(
          config_.calls == FileCalls::io_uring ? static_cast<unsigned>(config_.depth) : 0U, config_.direct));
      threads_.emplace_back([this, files = files_.back().get()] { work(*files); });
    }
    join.dismiss();
  }
  ~FileStore() { end(); }

  /// See BlockStore.
  [[nodiscard]] Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
    return queue_.add(detail::Operation::lookup(keys, found));
  }
  /// See BlockStore.
  [[nodiscard]] Ticket read(const RecordInfo& block, std::span<const io::ByteSpan> spans, PartRange parts = {}) {
    return queue_.add(detail::Operation::read(block, spans, parts));
  }
  /// See BlockStore.
  [[nodiscard]] Ticket write(const RecordInfo& block, std::span<const io::ConstByteSpan> spans) {
    return queue_.add(detail::Operation::write(block, spans));
  }
  /// See BlockStore.
  [[nodiscard]] Ticket erase(const BlockKey& key) { return queue_.add(detail::Operation::erase(key)); }
  /// Config::bytes.
  [[nodiscard]] std::uint64_t capacity() const noexcept { return config_.bytes; }
  /// See BlockStore. `records` and `bytes` are those of the directory, as this process knows it.
  [[nodiscard]] StoreStats stats() const {
    StoreStats now = queue_.stats();
    now.records = directory_.records();
    now.bytes = directory_.physical_bytes();
    now.evicted = directory_.evicted();
    return now;
  }
  /// By which calls bytes are moved, in words: whether io_uring is used, and why not if it was asked for.
  [[nodiscard]] std::string calls() const {
    if (config_.calls == FileCalls::plain) {
      return "preadv and pwritev";
    }
    for (const std::unique_ptr<detail::RecordIo>& each : files_) {
      if (!each->requests().why_not().empty()) {
        return kvc::detail::concat({"preadv and pwritev: ", each->requests().why_not()});
      }
    }
    return kvc::detail::concat({"io_uring, ", std::to_string(config_.depth), " requests of 256 KiB per thread"});
  }
  /// Number of files that this process knows.
  [[nodiscard]] std::size_t segments() const { return directory_.segments(); }

 private:
  static Config checked(Config config) {
    require(config.threads >= 1 && config.threads <= 1024, "threads", config.threads, "between 1 and 1024");
    require(config.depth >= 1 && config.depth <= 1024, "depth", config.depth, "between 1 and 1024");
    require(!config.folder.empty(), "folder", config.folder.string(), "the name of a directory");
    if (config.segment_bytes == 0) {
      config.segment_bytes = std::clamp(config.bytes / 8, std::uint64_t{256} << 10, std::uint64_t{256} << 20);
    }
    require(config.segment_bytes >= detail::segment_page, "segment_bytes", config.segment_bytes, "at least 4096");
    return config;
  }

  void end() {
    queue_.stop();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }
  void work(detail::RecordIo& files) {
    while (const std::optional<detail::Operation> taken = queue_.take()) {
      const detail::Operation& operation = *taken;
      detail::Outcome how;
#if KVC_HAS_EXCEPTIONS
      try {
        how = perform(operation, files);
      } catch (const std::exception& error) {  // no memory
        set_error(error.what());
      }
#else
      how = perform(operation, files);
#endif
      queue_.end(operation, how);
      if (operation.kind == StoreOperation::write || operation.kind == StoreOperation::erase) {
        compact();
      }
    }
  }

  detail::Outcome perform(const detail::Operation& operation, detail::RecordIo& files) {
    switch (operation.kind) {
      case StoreOperation::lookup:
        return {StoreOutcome::done, {}, directory_.lookup(operation.keys, operation.found)};
      case StoreOperation::read:
        return read(operation, files);
      case StoreOperation::write:
        return write(operation, files);
      case StoreOperation::erase:
        break;
    }
    return {directory_.erase(operation.block.key) ? StoreOutcome::done : StoreOutcome::missing, {}, 0};
  }

  detail::Outcome read(const detail::Operation& operation, detail::RecordIo& files) {
    for (int attempts = 0; attempts < 3; ++attempts) {
      const auto found = directory_.find(operation.block.key);
      if (!found) {
        return {StoreOutcome::missing, {}, 0};
      }
      int error = 0;
      const Refusal refusal = files.read(*found, operation, error);
      if (error == 0 && refusal == Refusal::none) {
        return {StoreOutcome::done, {}, operation.bytes};
      }
      if (!directory_.is_at(operation.block.key, *found)) {
        continue;  // it was erased or moved meanwhile
      }
      if (error != 0) {
        return failed("read", *found, error);
      }
      if (is_damage(refusal)) {
        (void)directory_.erase(operation.block.key, &found->place);
      }
      return {StoreOutcome::refused, refusal, 0};
    }
    return {StoreOutcome::missing, {}, 0};
  }
  /// Whether nobody will be able to read the record.
  [[nodiscard]] static bool is_damage(Refusal refusal) noexcept {
    return refusal == Refusal::truncated || refusal == Refusal::no_record || refusal == Refusal::head_checksum ||
           refusal == Refusal::payload_checksum;
  }
  detail::Outcome write(const detail::Operation& operation, detail::RecordIo& files) {
    const RecordInfo& block = operation.block;
    if (const auto old = directory_.find(block.key);
        old && old->place.payload_bytes == operation.payload && files.is_of(*old, operation)) {
      return {StoreOutcome::done, {}, operation.bytes};  // it is there
    }
    int error = 0;
    const auto place =
        directory_.allocate(static_cast<std::uint32_t>(record_head_bytes(block)), operation.payload, true, error);
    if (!place) {
      return error == 0 || is_full(error) ? detail::Outcome{StoreOutcome::full, {}, 0}
                                          : failed("make a segment in", config_.folder.string(), error);
    }
    kvc::detail::ScopeGuard abandon([&] { directory_.abandon(*place); });
    error = files.write(*place, operation);
    if (error == 0 && config_.durability == Durability::machine) {
      error = place->segment->sync();
    }
    if (error == 0) {
      abandon.dismiss();
      error = directory_.commit(*place, block.key, block.parent);
    }
    if (error == 0 && config_.durability == Durability::machine) {
      error = place->segment->sync();
    }
    return error == 0       ? detail::Outcome{StoreOutcome::done, {}, operation.bytes}
           : is_full(error) ? detail::Outcome{StoreOutcome::full, {}, 0}
                            : failed("write", *place, error);
  }
  [[nodiscard]] static bool is_full(int error) noexcept { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

  /// Moves the records of one sparse segment, if there is one, to the current segment.
  void compact() {
#if KVC_HAS_EXCEPTIONS
    try {
#endif
      std::vector<std::byte> bytes;
      for (const auto& [key, from] : directory_.to_compact()) {
        int error = 0;
        const auto to = queue_.is_stopped()
                            ? std::nullopt
                            : directory_.allocate(from.place.head_bytes, from.place.payload_bytes, false, error);
        if (!to) {
          return;
        }
        bytes.resize(detail::payload_at(from.place.head_bytes, from.place.payload_bytes) + from.place.payload_bytes);
        const io::ByteSpan span = bytes;
        const io::ConstByteSpan same = bytes;
        std::size_t done = 0;
        if (from.segment->read_at(from.place.offset, std::span(&span, 1), done) != 0 || done != bytes.size() ||
            to->segment->write_at(to->place.offset, std::span(&same, 1)) != 0 ||
            (config_.durability == Durability::machine && to->segment->sync() != 0)) {
          directory_.abandon(*to);
          continue;
        }
        directory_.move_record(key, from, *to);
      }
#if KVC_HAS_EXCEPTIONS
    } catch (const std::exception& error) {  // no memory: later
      set_error(error.what());
    }
#endif
  }

  detail::Outcome failed(std::string_view what, const detail::SegmentDirectory::Found& found, int error) {
    return failed(what, found.segment->path(), error);
  }
  detail::Outcome failed(std::string_view what, std::string_view path, int error) {
    set_error(kvc::detail::concat({"cannot ", what, " ", path, ": ", std::generic_category().message(error)}));
    return {};
  }

  Config config_;
  detail::SegmentDirectory directory_;
  std::vector<std::unique_ptr<detail::RecordIo>> files_;  // one for each thread
  std::vector<std::thread> threads_;
};
static_assert(BlockStore<FileStore>);

}  // namespace tier
}  // namespace v0
}  // namespace kvc
