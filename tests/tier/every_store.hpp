// EveryStore: one of the stores of kvc, chosen at run time, so that a test of Tiers runs over each of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "../temp_files.hpp"
#include "catch.hpp"
#include "kvc/testing/faulty_store.hpp"
#include "kvc/tier/any_store.hpp"
#include "kvc/tier/file_store.hpp"
#include "kvc/tier/host_store.hpp"
#if defined(KVC_HAVE_HIREDIS)
#include "kvc/tier/redis_cluster_store.hpp"
#include "kvc/tier/redis_store.hpp"
#include "redis_cluster.hpp"
#include "redis_process.hpp"
#endif

namespace kvc_test {

enum class StoreKind { host, files, files_by_uring, redis, redis_cluster, late };

/// Those that can run here. Redis tests, and those of io_uring, say why theirs cannot.
inline std::vector<StoreKind> store_kinds() {
  std::vector<StoreKind> kinds{StoreKind::host, StoreKind::files, StoreKind::late};
#if defined(KVC_HAVE_LIBURING)
  kinds.push_back(StoreKind::files_by_uring);
#endif
#if defined(KVC_HAVE_HIREDIS)
  if (!program_path("redis-server").empty()) {
    kinds.push_back(StoreKind::redis);
    kinds.push_back(StoreKind::redis_cluster);
  }
#endif
  return kinds;
}

/// Counts the records itself, since not every store can.
class EveryStore {
 public:
  using BlockKey = kvc::tier::BlockKey;
  using Completion = kvc::tier::Completion;
  using RecordInfo = kvc::tier::RecordInfo;
  using Ticket = kvc::tier::Ticket;
  static constexpr bool persistent = false;

  explicit EveryStore(StoreKind kind, std::uint64_t bytes = 1 << 20)
      : host_(std::make_unique<kvc::tier::HostStore<>>(
            kvc::tier::HostStore<>::Config{.bytes = bytes, .chunk_bytes = 256, .reports_evictions = true})) {
    switch (kind) {
      case StoreKind::host:
        use(*host_);
        break;
      case StoreKind::files:
      case StoreKind::files_by_uring: {
        kvc::tier::FileStore::Config config{.folder = folder_.path(), .bytes = 8 << 20, .threads = 1};
        config.calls = kind == StoreKind::files ? kvc::tier::FileCalls::plain : kvc::tier::FileCalls::io_uring;
        files_ = std::make_unique<kvc::tier::FileStore>(config);
        use(*files_);
        break;
      }
      case StoreKind::late:
        late_ = std::make_unique<Late>(*host_, kvc::testing::Faults{.delay = 4});
        use(*late_);
        break;
      case StoreKind::redis:
#if defined(KVC_HAVE_HIREDIS)
        static RedisProcess server;
        redis_ = std::make_unique<kvc::tier::RedisStore>(
            kvc::tier::RedisStore::Config{.servers = {{"127.0.0.1", server.port()}},
                                          .prefix = new_prefix(),
                                          .timeout = std::chrono::milliseconds(5000)});
        use(*redis_);
#endif
        break;
      case StoreKind::redis_cluster:
#if defined(KVC_HAVE_HIREDIS)
        static RedisCluster cluster(1);
        redis_cluster_ = std::make_unique<kvc::tier::RedisClusterStore>(
            kvc::tier::RedisClusterStore::Config{.servers = {{"127.0.0.1", cluster.port(0)}},
                                                 .prefix = new_prefix(),
                                                 .timeout = std::chrono::milliseconds(5000)});
        use(*redis_cluster_);
#endif
        break;
    }
  }

  Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) { return store_->lookup(keys, found); }
  Ticket read(const RecordInfo& block, std::span<const kvc::io::ByteSpan> to, kvc::tier::PartRange parts = {}) {
    return store_->read(block, to, parts);
  }
  Ticket write(const RecordInfo& block, std::span<const kvc::io::ConstByteSpan> from) {
    const Ticket ticket = store_->write(block, from);
    changes_[ticket] = block.key;
    return ticket;
  }
  Ticket erase(const BlockKey& key) {
    const Ticket ticket = store_->erase(key);
    changes_[ticket] = key;
    return ticket;
  }
  std::optional<Completion> poll() {
    const std::optional<Completion> ended = store_->poll();
    if (ended && ended->outcome == kvc::tier::StoreOutcome::done) {
      if (ended->operation == kvc::tier::StoreOperation::write) {
        records_.insert(changes_[ended->ticket]);
      } else if (ended->operation == kvc::tier::StoreOperation::erase) {
        records_.erase(changes_[ended->ticket]);
      }
    }
    return ended;
  }
  std::optional<BlockKey> poll_evicted() {
    const std::optional<BlockKey> evicted = store_->poll_evicted();
    if (evicted) {
      records_.erase(*evicted);
    }
    return evicted;
  }
  bool cancel(Ticket ticket) { return store_->cancel(ticket); }
  bool wait(kvc::tier::TimePoint until) { return store_->wait(until); }
  [[nodiscard]] std::size_t under_way() const { return store_->under_way(); }
  [[nodiscard]] std::uint64_t capacity() const { return kvc::tier::unlimited; }
  [[nodiscard]] kvc::tier::StoreStats stats() const {
    kvc::tier::StoreStats stats = stats_();
    stats.records = records_.size();
    return stats;
  }

 private:
  using Late = kvc::testing::FaultyStore<kvc::tier::HostStore<>>;
  /// Of the keys of one store on a server.
  static std::string new_prefix() {
    static int number = 0;
    return "t" + std::to_string(++number) + ":";
  }
  template <class S>
  void use(S& store) {
    store_.emplace(store);
    stats_ = [&store] { return store.stats(); };
  }

  TempFolder folder_;
  std::unique_ptr<kvc::tier::HostStore<>> host_;
  std::unique_ptr<Late> late_;
  std::unique_ptr<kvc::tier::FileStore> files_;
#if defined(KVC_HAVE_HIREDIS)
  std::unique_ptr<kvc::tier::RedisStore> redis_;
  std::unique_ptr<kvc::tier::RedisClusterStore> redis_cluster_;
#endif
  std::optional<kvc::tier::AnyStore> store_;
  std::function<kvc::tier::StoreStats()> stats_;
  std::map<Ticket, BlockKey> changes_;
  std::set<BlockKey> records_;
};
static_assert(kvc::tier::ReportsEvictions<EveryStore>);

/// The kind of store of the test that runs.
inline StoreKind& present_kind() {
  static StoreKind kind = StoreKind::host;
  return kind;
}
/// In a test: `const OverEveryStore each(GENERATE(from_range(store_kinds())));`
class OverEveryStore {
 public:
  explicit OverEveryStore(StoreKind kind) { present_kind() = kind; }
  ~OverEveryStore() { present_kind() = StoreKind::host; }
  OverEveryStore(const OverEveryStore&) = delete;
};

}  // namespace kvc_test
