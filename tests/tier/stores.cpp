// The contract of BlockStore: a minimal model and HostStore keep it, and the suite rejects wrong stores.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "catch.hpp"
#include "kvc/testing/block_store_conformance.hpp"
#include "kvc/testing/faulty_store.hpp"
#include "kvc/tier/host_store.hpp"
#include "minimal_store.hpp"

namespace {
using namespace kvc;
using namespace kvc::tier;
using kvc_test::contains;
using kvc_test::MinimalStore;
using testing::block_store_conformance;

// Stores that compile and are wrong: each forgets one sentence of the contract.

/// Calls on to a MinimalStore; what is wrong is written over it.
struct OtherStore : MinimalStore {
  OtherStore() : MinimalStore(64 << 10) {}
};
/// Believes the key.
struct Trusting : OtherStore {
  Ticket read(const RecordInfo& block, std::span<const io::ByteSpan> spans, PartRange parts = {}) {
    const auto found = blocks.find(block.key);
    if (found == blocks.end()) {
      return MinimalStore::read(block, spans, parts);
    }
    RecordInfo stored = found->second.first;
    stored.tokens = found->second.second;
    (void)tier::detail::payload_of_read(block, io::total_bytes(spans), parts);
    return MinimalStore::read(stored, spans, parts);
  }
  Ticket write(const RecordInfo& block, std::span<const io::ConstByteSpan> spans) {
    const Ticket ticket = MinimalStore::write(block, spans);
    blocks.insert_or_assign(block.key, std::pair(block, std::vector<Token>(block.tokens.begin(), block.tokens.end())));
    return ticket;
  }
  std::unordered_map<BlockKey, std::pair<RecordInfo, std::vector<Token>>, BlockKeyHash> blocks;
};
/// Refuses without a reason.
struct Tongueless : OtherStore {
  std::optional<Completion> poll() {
    auto ended = MinimalStore::poll();
    if (ended) {
      ended->refusal = Refusal::none;
    }
    return ended;
  }
};
/// Returns a completion again after a cancel.
struct Uncancelled : OtherStore {
  bool cancel(Ticket ticket) { return ticket > 0 && ticket < 1000; }
};
/// Has room for everything.
struct Overfull : MinimalStore {
  [[nodiscard]] std::uint64_t capacity() const { return 64 << 10; }
};
/// Takes the first parts, whichever are asked for.
struct FirstParts : OtherStore {
  Ticket read(const RecordInfo& block, std::span<const io::ByteSpan> spans, PartRange parts = {}) {
    return MinimalStore::read(block, spans, {parts.first < block.parts ? 0 : parts.first, parts.count});
  }
};
/// Keeps the first record of a key.
struct FirstWins : OtherStore {
  Ticket write(const RecordInfo& block, std::span<const io::ConstByteSpan> spans) {
    RecordInfo elsewhere = block;
    if (!keys.insert(block.key).second) {
      elsewhere.key.bytes[31] ^= std::byte{0xff};
    }
    return MinimalStore::write(elsewhere, spans);
  }
  Ticket erase(const BlockKey& key) {
    keys.erase(key);
    return MinimalStore::erase(key);
  }
  std::set<BlockKey> keys;
};
/// Loses a completion now and then.
struct Forgetful : OtherStore {
  std::optional<Completion> poll() {
    auto ended = MinimalStore::poll();
    return ended && ended->ticket % 16 == 15 ? MinimalStore::poll() : ended;
  }
};
/// Does not check its arguments.
struct Careless : OtherStore {
  Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
    return MinimalStore::lookup(keys.first(std::min(keys.size(), found.size())), found);
  }
};
/// Says "done" at once, and counts bytes that it did not write.
struct Miscounting : OtherStore {
  [[nodiscard]] StoreStats stats() const {
    StoreStats now = MinimalStore::stats();
    now.bytes_written += now.writes;
    return now;
  }
};
struct WithoutCancel {
  static constexpr bool persistent = false;
  Ticket lookup(std::span<const BlockKey>, std::span<std::uint8_t>);
  std::optional<Completion> poll();
};
static_assert(!BlockStore<WithoutCancel>);

template <class S>
void check_store() {
  block_store_conformance([] { return S(); });
}

constexpr HostStore<>::Config small_host{.bytes = 48 << 10, .chunk_bytes = 64};

/// A block of a chain: its number, its parent's, and bytes.
struct ChainBlock {
  ChainBlock(int number, int parent, std::size_t size) : bytes(size, static_cast<std::byte>(number)) {
    tokens.assign(2, number);
    info.key.bytes[0] = static_cast<std::byte>(number);
    info.parent.bytes[0] = static_cast<std::byte>(parent);
    info.tokens = tokens;
  }
  ChainBlock(const ChainBlock&) = delete;
  std::vector<Token> tokens;
  RecordInfo info;
  std::vector<std::byte> bytes;
};

template <class S>
StoreOutcome put(S& store, int number, int parent = 0, std::size_t size = 64) {
  const ChainBlock block(number, parent, size);
  const io::ConstByteSpan span = block.bytes;
  (void)store.write(block.info, std::span(&span, 1));
  return store.poll()->outcome;
}
template <class S>
StoreOutcome get(S& store, int number, int parent = 0, std::size_t size = 64) {
  const ChainBlock block(number, parent, size);
  std::vector<std::byte> to(size);
  const io::ByteSpan span = to;
  (void)store.read(block.info, std::span(&span, 1));
  const StoreOutcome outcome = store.poll()->outcome;
  if (outcome == StoreOutcome::done) {
    REQUIRE(to == block.bytes);
  }
  return outcome;
}
template <class S>
std::string records_of(S& store) {
  std::string text;
  for (int number = 1; number < 10; ++number) {
    BlockKey key;
    key.bytes[0] = static_cast<std::byte>(number);
    std::uint8_t found = 0;
    (void)store.lookup(std::span(&key, 1), std::span(&found, 1));
    (void)store.poll();
    text += found != 0 ? std::to_string(number) : "";
  }
  return text;
}
}  // namespace

TEST_CASE("A store of blocks keeps the contract", "[tier][contract]") {
  check_store<MinimalStore>();
  check_store<OtherStore>();
  block_store_conformance([] { return HostStore<>(small_host); });
  block_store_conformance(
      [] { return HostStore<>({.bytes = 48 << 10, .chunk_bytes = 4096, .when_full = WhenFull::refuse}); });
}

TEST_CASE("A store of blocks that breaks the contract is found", "[tier][contract]") {
  REQUIRE_THROWS_WITH(check_store<Trusting>(), contains("the store breaks its contract") &&
                                                   contains("done although the block has another format"));
  REQUIRE_THROWS_WITH(check_store<Tongueless>(), contains("not refused with the reason"));
  REQUIRE_THROWS_WITH(check_store<Uncancelled>(), contains("cancel() of"));
  REQUIRE_THROWS_WITH(check_store<Overfull>(), contains("larger than the store is not `full`"));
  REQUIRE_THROWS_WITH(check_store<FirstParts>(), contains("a read of parts gives wrong bytes"));
  REQUIRE_THROWS_WITH(check_store<FirstWins>(), contains("a record is not replaced"));
  REQUIRE_THROWS_WITH(check_store<Forgetful>(), contains("does not end") || contains("lost"));
  REQUIRE_THROWS_WITH(check_store<Careless>(), contains("fewer answers than keys does not throw"));
  REQUIRE_THROWS_WITH(check_store<Miscounting>(), contains("stats() counts other operations"));
}

TEST_CASE("A full host store evicts the least recently used record, and children before their parents",
          "[tier][host]") {
  HostStore<> store({.bytes = 4 * 64, .chunk_bytes = 64, .reports_evictions = true});
  // Two chains, 1 - 2 and 3 - 4.
  REQUIRE(put(store, 1) == StoreOutcome::done);
  REQUIRE(put(store, 2, 1) == StoreOutcome::done);
  REQUIRE(put(store, 3) == StoreOutcome::done);
  REQUIRE(put(store, 4, 3) == StoreOutcome::done);
  REQUIRE(records_of(store) == "1234");
  REQUIRE(get(store, 1) == StoreOutcome::done);  // the latest use, but it is 2 that could go
  REQUIRE(get(store, 2, 1) == StoreOutcome::done);
  REQUIRE(put(store, 5, 2) == StoreOutcome::done);  // evicts 4: 3 is older, and has a child
  REQUIRE(records_of(store) == "1235");
  REQUIRE(put(store, 6, 5) == StoreOutcome::done);
  REQUIRE(records_of(store) == "1256");
  REQUIRE(put(store, 7) == StoreOutcome::done);  // 6 is the only one without a child
  REQUIRE(records_of(store) == "1257");
  REQUIRE(put(store, 8) == StoreOutcome::done);  // 5 was used before 7
  REQUIRE(records_of(store) == "1278");
  std::string evicted;
  while (const auto key = store.poll_evicted()) {
    evicted += std::to_string(std::to_integer<int>(key->bytes[0]));
  }
  REQUIRE(evicted == "4365");
  REQUIRE(store.stats().evicted == 4);
  REQUIRE(store.stats().bytes == store.capacity());
}

TEST_CASE("A host store that may not evict says that it is full, and changes nothing", "[tier][host]") {
  HostStore<> store({.bytes = 4 * 64 + 63, .chunk_bytes = 64, .when_full = WhenFull::refuse});
  REQUIRE(store.capacity() == 4 * 64);
  REQUIRE(put(store, 1, 0, 65) == StoreOutcome::done);  // two chunks
  REQUIRE(put(store, 2, 1, 64) == StoreOutcome::done);
  REQUIRE(put(store, 3, 2, 65) == StoreOutcome::full);
  REQUIRE(records_of(store) == "12");
  REQUIRE(store.stats().bytes == 3 * 64);
  REQUIRE(put(store, 1, 9, 130) == StoreOutcome::done);  // another block under the same key: its chunks count as free
  REQUIRE(get(store, 1, 9, 130) == StoreOutcome::done);
  REQUIRE(get(store, 1, 0, 65) == StoreOutcome::refused);
  REQUIRE(put(store, 4, 2, 1) == StoreOutcome::full);
  REQUIRE(!store.poll_evicted());
}

TEST_CASE("The settings of a host store are checked", "[tier][host]") {
  REQUIRE_THROWS_WITH(HostStore<>({.bytes = 1 << 20, .chunk_bytes = 100}), contains("chunk_bytes is 100"));
  REQUIRE_THROWS_WITH(HostStore<>({.bytes = 1000}), contains("bytes is 1000, must be at least chunk_bytes"));
}

namespace {
/// A FaultyStore with the store behind it.
struct FaultyHost {
  explicit FaultyHost(const testing::Faults& faults) : faulty(host, faults) {}
  HostStore<> host{small_host};
  testing::FaultyStore<HostStore<>> faulty;
};
/// The same as one object that can be returned.
struct DelayingStore : private std::unique_ptr<FaultyHost> {
  DelayingStore() : std::unique_ptr<FaultyHost>(std::make_unique<FaultyHost>(testing::Faults{.delay = 5})) {}
  static constexpr bool persistent = false;
  Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
    return get()->faulty.lookup(keys, found);
  }
  Ticket read(const RecordInfo& block, std::span<const io::ByteSpan> spans, PartRange parts = {}) {
    return get()->faulty.read(block, spans, parts);
  }
  Ticket write(const RecordInfo& block, std::span<const io::ConstByteSpan> spans) {
    return get()->faulty.write(block, spans);
  }
  Ticket erase(const BlockKey& key) { return get()->faulty.erase(key); }
  std::optional<Completion> poll() { return get()->faulty.poll(); }
  bool cancel(Ticket ticket) { return get()->faulty.cancel(ticket); }
  bool wait(TimePoint until) { return get()->faulty.wait(until); }
  [[nodiscard]] std::size_t under_way() const { return get()->faulty.under_way(); }
  [[nodiscard]] std::uint64_t capacity() const { return get()->faulty.capacity(); }
  [[nodiscard]] StoreStats stats() const { return get()->faulty.stats(); }
};
}  // namespace

TEST_CASE("A faulty store without faults keeps the contract, late and out of order", "[tier][faults]") {
  check_store<DelayingStore>();
}

TEST_CASE("A faulty store fails, refuses, loses and is full as often as it is told, and never lies", "[tier][faults]") {
  FaultyHost both({.fails = 0.1, .full = 0.1, .loses = 0.1, .vanishes = 0.1, .corrupts = 0.1, .delay = 7});
  auto& store = both.faulty;
  const ChainBlock block(1, 0, 640);
  const io::ConstByteSpan from = block.bytes;
  std::vector<std::byte> to(640);
  const io::ByteSpan into = to;
  int ends[2][5] = {};
  for (int i = 0; i < 1000; ++i) {
    const bool writes = i % 2 == 0;
    const Ticket ticket =
        writes ? store.write(block.info, std::span(&from, 1)) : store.read(block.info, std::span(&into, 1));
    REQUIRE(tier::drain(store, TimePoint::max(), [&](const Completion& ended) {
      REQUIRE(ended.ticket == ticket);
      ++ends[writes ? 0 : 1][static_cast<int>(ended.outcome)];
      if (ended.outcome == StoreOutcome::done && !writes) {
        REQUIRE(to == block.bytes);
      }
    }));
    std::fill(to.begin(), to.end(), std::byte{});
  }
  for (const StoreOutcome outcome : {StoreOutcome::done, StoreOutcome::full, StoreOutcome::failed}) {
    CHECK(ends[0][static_cast<int>(outcome)] > 20);
  }
  for (const StoreOutcome outcome :
       {StoreOutcome::done, StoreOutcome::missing, StoreOutcome::refused, StoreOutcome::failed}) {
    CHECK(ends[1][static_cast<int>(outcome)] > 20);
  }
}
