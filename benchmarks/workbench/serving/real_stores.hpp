// RealStores: host memory and files behind the pool of a real run. Needs libsodium and xxHash.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "kvc/tier/any_store.hpp"
#include "kvc/tier/file_store.hpp"
#include "kvc/tier/host_store.hpp"
#include "tier_spec.hpp"

namespace serving {

/// A new folder, which is removed with the object.
class ScratchFolder {
 public:
  ScratchFolder()
      : path_(std::filesystem::temp_directory_path() /
              ("serve-bench-" + std::to_string(::getpid()) + "-" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directory(path_);
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

 private:
  std::filesystem::path path_;
};

/// A BlockStore of either kind, so that a list of stores is of one type.
class RealStore {
 public:
  static constexpr bool persistent = false;
  template <class S>
  explicit RealStore(std::shared_ptr<S> store)
      : store_(*store), stats_([store] { return store->stats(); }), capacity_(store->capacity()) {}

  auto lookup(std::span<const kvc::tier::BlockKey> keys, std::span<std::uint8_t> found) {
    return store_.lookup(keys, found);
  }
  auto read(const kvc::tier::RecordInfo& block, std::span<const kvc::io::ByteSpan> to,
            kvc::tier::PartRange parts = {}) {
    return store_.read(block, to, parts);
  }
  auto write(const kvc::tier::RecordInfo& block, std::span<const kvc::io::ConstByteSpan> from) {
    return store_.write(block, from);
  }
  auto erase(const kvc::tier::BlockKey& key) { return store_.erase(key); }
  auto poll() { return store_.poll(); }
  auto poll_evicted() { return store_.poll_evicted(); }
  bool cancel(kvc::tier::Ticket ticket) { return store_.cancel(ticket); }
  bool wait(kvc::tier::TimePoint until) { return store_.wait(until); }
  [[nodiscard]] std::size_t under_way() const { return store_.under_way(); }
  [[nodiscard]] std::uint64_t capacity() const { return capacity_; }
  [[nodiscard]] kvc::tier::StoreStats stats() const { return stats_(); }

 private:
  kvc::tier::AnyStore store_;
  std::function<kvc::tier::StoreStats()> stats_;  // owns the store
  std::uint64_t capacity_;
};
static_assert(kvc::tier::ReportsEvictions<RealStore>);

/// Stores for the tiers of a set: "host" is host memory, "disk" files in a folder of their own, which is removed with
/// the object. Their speed is measured, not that of the spec.
class RealStores {
 public:
  /// A block has so many bytes. Throws std::runtime_error for a tier of another name.
  RealStores(const TierSet& set, std::size_t block_bytes) {
    for (const TierSpec& spec : set.tiers) {
      const std::uint64_t bytes = static_cast<std::uint64_t>(spec.blocks) * block_bytes;
      if (spec.name == "host") {
        using Host = kvc::tier::HostStore<>;
        Host::Config config;
        config.bytes = bytes;
        config.reports_evictions = true;
        stores_.emplace_back(std::make_shared<Host>(config));
      } else if (spec.name == "disk") {
        kvc::tier::FileStore::Config config;
        config.folder = folder_.path();
        config.bytes = bytes;
        stores_.emplace_back(std::make_shared<kvc::tier::FileStore>(config));
      } else {
        throw std::runtime_error("--tiers: \"" + spec.name +
                                 "\" must be host (host memory) or disk (files) with --mode real");
      }
    }
  }
  [[nodiscard]] std::vector<RealStore*> all() {
    std::vector<RealStore*> all;
    for (RealStore& store : stores_) {
      all.push_back(&store);
    }
    return all;
  }

 private:
  ScratchFolder folder_;
  std::deque<RealStore> stores_;
};

}  // namespace serving
