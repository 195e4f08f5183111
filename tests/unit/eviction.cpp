// The eviction policies: which block each evicts first, and what all of them promise to the cache.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "catch.hpp"
#include "kvc/policy/detail/frequency_sketch.hpp"
#include "kvc/policy/eviction/block_heap.hpp"
#include "kvc/policy/eviction/block_value.hpp"
#include "kvc/policy/eviction/cost_aware.hpp"
#include "kvc/policy/eviction/fifo.hpp"
#include "kvc/policy/eviction/lfu.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/eviction/priority.hpp"
#include "kvc/policy/eviction/reuse_hazard.hpp"
#include "kvc/policy/eviction/s3_fifo.hpp"
#include "kvc/policy/eviction/tiny_lfu.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "random_source.hpp"
#include "serve.hpp"

namespace {
using namespace kvc;
using kvc_test::serve_and_close;
using Ids = std::vector<int>;

constexpr std::uint64_t hash_of(std::uint64_t name) {
  std::uint64_t v = (name + 1) * 0x9e3779b97f4a7c15U;
  v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9U;
  return v ^ v >> 27;
}

/// Calls a policy as a cache does whose prefixes are one block long each. Every operation is at a time of its own.
template <class E>
struct Drive {
  E policy;
  std::uint64_t now = 0;

  template <class... Args>
  explicit Drive(Index blocks, Args... args) : policy(blocks, args...) {}

  using SequenceContext = typename E::SequenceContext;

  SequenceContext open(const Ids& found, const Retention& retention = {}) {
    SequenceContext context{};
    std::vector<BlockId> blocks;
    for (const int block : found) {
      blocks.push_back(BlockId{block});
    }
    policy.on_open(context, blocks, retention, ++now);
    return context;
  }
  /// A sequence finds a block that nothing references.
  SequenceContext acquire(int block) {
    const SequenceContext context = open({block});
    policy.on_acquired(BlockId{block});
    return context;
  }
  void release(SequenceContext context, int block) {
    const BlockId id{block};
    policy.on_close(context, std::span(&id, 1), ++now);
    policy.on_evictable(context, id, now);
  }
  void use(int block) { release(acquire(block), block); }

  /// A sequence computes a block, and is closed. A name stands for what is in the block.
  void add(int block, int name, Pos depth = 0, const Retention& retention = {}) {
    SequenceContext context = open({}, retention);
    policy.on_cached(context, {BlockId{block}, hash_of(static_cast<std::uint64_t>(name)), depth}, ++now);
    release(context, block);
  }
  void add(const Ids& blocks) {
    for (const int block : blocks) {
      add(block, block);
    }
  }

  int evict() {
    const BlockId victim = policy.victim(now);
    policy.on_acquired(victim);
    policy.on_uncached(victim);
    return static_cast<int>(victim);
  }
  Ids evict(int count) {
    Ids order;
    for (; count > 0; --count) {
      order.push_back(evict());
    }
    return order;
  }
  Ids evict_all() { return evict(static_cast<int>(policy.size())); }
};

Ids range(int first, int last) {
  Ids ids(static_cast<std::size_t>(last - first));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

/// f.operator()<E>() for each policy.
template <class F>
void for_each_policy(F&& f) {
  const auto run = [&]<class E>() {
    INFO(E::name);
    f.template operator()<E>();
  };
  run.template operator()<CostAware>();
  run.template operator()<Fifo>();
  run.template operator()<Lfu>();
  run.template operator()<Lru>();
  run.template operator()<Priority>();
  run.template operator()<ReuseHazard>();
  run.template operator()<S3Fifo>();
  run.template operator()<TinyLfu>();
}

/// How many blocks of the prompt are cached, in blocks of one token.
template <class P>
Pos cached(const P& policy, std::vector<Token> prompt) {
  prompt.push_back(-1);  // a match leaves one token over
  return policy.match_length(prompt);
}
}  // namespace

TEST_CASE("Fifo: what was cached first goes first, used or not", "[eviction]") {
  Drive<Fifo> drive(4);
  drive.add({0, 1, 2, 3});
  drive.use(0);
  drive.use(2);
  REQUIRE(drive.evict_all() == Ids{0, 1, 2, 3});
}

TEST_CASE("Fifo: a referenced block keeps its place, and is oldest if its turn came meanwhile", "[eviction]") {
  Drive<Fifo> drive(5);
  drive.add({0, 1, 2, 3, 4});
  const auto first = drive.acquire(0);
  const auto third = drive.acquire(2);
  REQUIRE(drive.evict() == 1);  // 0 is passed over, 2 is not reached
  drive.release(first, 0);
  drive.release(third, 2);
  REQUIRE(drive.evict_all() == Ids{0, 2, 3, 4});
}

TEST_CASE("Fifo: an old prefix goes with what was cached behind it later", "[eviction]") {
  PrefixShared<Fifo> policy({.blocks = 6, .block_tokens = 1});
  serve_and_close(policy, {1, 2});
  serve_and_close(policy, {8, 9});
  serve_and_close(policy, {1, 2, 3, 4});
  serve_and_close(policy, {5});
  REQUIRE(cached(policy, {1, 2, 3, 4}) == 3);
  serve_and_close(policy, {6, 7});
  REQUIRE(cached(policy, {1, 2, 3, 4}) == 1);
  serve_and_close(policy, {10, 11});
  REQUIRE(cached(policy, {1, 2, 3, 4}) == 0);
  REQUIRE(cached(policy, {8, 9}) == 1);
  REQUIRE(cached(policy, {5}) == 1);
}

TEST_CASE("Lfu: the least used goes first, of equally used ones the one released first", "[eviction]") {
  Drive<Lfu> drive(5);
  drive.add({0, 1, 2, 3, 4});
  drive.use(0);
  drive.use(0);
  drive.use(3);
  drive.use(1);
  REQUIRE(drive.evict_all() == Ids{2, 4, 3, 1, 0});
}

TEST_CASE("Lfu: what was popular once does not stay for ever", "[eviction]") {
  Drive<Lfu> drive(2);
  drive.add({0});
  for (int i = 0; i < 3; ++i) {
    drive.use(0);
  }
  for (int name = 1; name <= 3; ++name) {
    drive.add(1, name);
    REQUIRE(drive.evict() == 1);
  }
  drive.add(1, 4);
  REQUIRE(drive.evict() == 0);
}

TEST_CASE("Lfu: uses beyond the largest count are not lost, nor run over", "[eviction]") {
  Drive<Lfu> drive(3);
  drive.add({0, 1, 2});
  for (int i = 0; i < 1000; ++i) {
    drive.use(0);
    drive.use(1);
  }
  REQUIRE(drive.evict_all() == Ids{2, 0, 1});
}

TEST_CASE("S3Fifo: two uses in the small queue lead to the main queue", "[eviction]") {
  Drive<S3Fifo> drive(10);
  drive.add(range(0, 10));
  drive.use(0);
  drive.use(0);
  drive.use(1);
  REQUIRE(drive.evict_all() == Ids{1, 2, 3, 4, 5, 6, 7, 8, 9, 0});
}

TEST_CASE("S3Fifo: what comes back soon after it went enters the main queue", "[eviction]") {
  Drive<S3Fifo> drive(10);
  drive.add(range(0, 10));
  REQUIRE(drive.evict() == 0);
  drive.add(0, 0);  // a ghost
  REQUIRE(drive.evict() == 1);
  drive.add(1, 100);  // not one
  REQUIRE(drive.evict_all() == Ids{2, 3, 4, 5, 6, 7, 8, 9, 1, 0});
}

TEST_CASE("S3Fifo: ghosts are forgotten, as many as the main queue may hold are kept", "[eviction]") {
  Drive<S3Fifo> drive(10);
  for (int name = 0; name < 10; ++name) {
    drive.add(0, name);
    drive.evict();
  }
  drive.add(0, 0);  // nine came after it
  drive.add(1, 1);  // eight
  REQUIRE(drive.evict_all() == Ids{0, 1});
  drive.add(0, 200);
  drive.add(1, 1);  // not a ghost any more: it went from the main queue
  drive.add(2, 0);
  REQUIRE(drive.evict_all() == Ids{0, 1, 2});
}

TEST_CASE("S3Fifo: a ghost comes back once, and no block of the main queue becomes one", "[eviction]") {
  Drive<S3Fifo> drive(10);
  drive.add({0});
  drive.evict();
  drive.add({0});  // in the main queue
  drive.evict();
  drive.add({0, 1});
  REQUIRE(drive.evict_all() == Ids{0, 1});
}

TEST_CASE("S3Fifo: used blocks of the main queue go round once for each use", "[eviction]") {
  Drive<S3Fifo> drive(10);
  drive.add(range(0, 3));
  for (const int block : {0, 0, 1, 1, 2, 2}) {
    drive.use(block);
  }
  drive.add({3});
  REQUIRE(drive.evict() == 3);  // and the others are in the main queue
  for (const int block : {0, 0, 0, 0, 1}) {
    drive.use(block);
  }
  REQUIRE(drive.evict_all() == Ids{2, 1, 0});
}

TEST_CASE("S3Fifo: a referenced block at the end of its queue goes first once it is released", "[eviction]") {
  Drive<S3Fifo> drive(10);
  drive.add(range(0, 10));
  const auto context = drive.acquire(0);
  REQUIRE(drive.evict() == 1);
  drive.release(context, 0);
  REQUIRE(drive.evict_all() == Ids{0, 2, 3, 4, 5, 6, 7, 8, 9});
}

TEST_CASE("TinyLfu: a block must have come more often than the one whose place it takes", "[eviction]") {
  Drive<TinyLfu> drive(100);  // a window of one block
  drive.add(range(0, 100));
  REQUIRE(drive.evict() == 0);  // nothing to compete with
  drive.add(0, 1000);
  REQUIRE(drive.evict() == 99);  // as often as block 1, which was there first
  drive.add(99, 99);             // for the second time
  REQUIRE(drive.evict() == 0);
  drive.add(0, 1001);
  REQUIRE(drive.evict() == 1);  // 99 has won, and 1001 is alone in the window
  drive.add(1, 1002);
  REQUIRE(drive.evict() == 0);
  drive.add(0, 1003);
  REQUIRE(drive.evict() == 1);
}

TEST_CASE("TinyLfu: what wins takes nobody's place while main is smaller than it may be", "[eviction]") {
  Drive<TinyLfu> drive(100);
  drive.add(range(0, 100));
  REQUIRE(drive.evict(3) == Ids{0, 1, 2});  // room for a long prompt
  drive.add(0, 0);                          // for the second time
  drive.add(1, 1000);
  drive.add(2, 1001);
  REQUIRE(drive.evict(3) == Ids{99, 1, 3});  // 0 has won after 99 lost; 1 has lost, and 2 is alone in the window
}

TEST_CASE("TinyLfu: what is found on probation is protected", "[eviction]") {
  Drive<TinyLfu> drive(10);  // one in the window, seven protected
  drive.add(range(0, 10));
  for (const int block : range(0, 8)) {
    drive.use(block);  // the eighth sends the first back
  }
  REQUIRE(drive.evict_all() == Ids{8, 0, 1, 2, 3, 4, 5, 6, 7, 9});
}

TEST_CASE("FrequencySketch: estimates are not too low, until they are halved", "[eviction]") {
  kvc::detail::FrequencySketch sketch(64);
  for (std::uint64_t name = 0; name < 32; ++name) {
    for (std::uint64_t i = 0; i <= name % 8; ++i) {
      sketch.add(hash_of(name));
    }
  }
  int exact = 0;
  for (std::uint64_t name = 0; name < 32; ++name) {
    const int seen = static_cast<int>(name % 8) + 1;
    REQUIRE(sketch.estimate(hash_of(name)) >= seen);
    exact += sketch.estimate(hash_of(name)) == seen ? 1 : 0;
  }
  REQUIRE(exact >= 24);
  for (int i = 144; i < 639; ++i) {
    sketch.add(hash_of(7));
  }
  REQUIRE(sketch.estimate(hash_of(7)) == 15);
  sketch.add(hash_of(7));  // the 640th
  REQUIRE(sketch.estimate(hash_of(7)) == 7);
  REQUIRE(sketch.estimate(hash_of(15)) >= 4);
  REQUIRE(sketch.estimate(hash_of(15)) < 8);
}

TEST_CASE("CostAware: what costs less to compute goes first", "[eviction]") {
  Drive<CostAware> drive(4, CostAware::Config{.slope = 0.5});
  drive.add(0, 0, 9);
  drive.add(1, 1, 0);
  drive.add(2, 2, 4);
  drive.add(3, 3, 0);
  REQUIRE(drive.evict_all() == Ids{1, 3, 2, 0});
  for (const double slope : {-1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    REQUIRE_THROWS_WITH(CostAware(4, {.slope = slope}), kvc_test::contains("config.eviction.slope is "));
  }
}

TEST_CASE("CostAware: uses count as much as cost, and both are outlived", "[eviction]") {
  Drive<CostAware> drive(3, CostAware::Config{.slope = 1.0});
  drive.add(0, 0, 2);  // priority 3
  drive.add(1, 1, 0);
  for (int i = 0; i < 3; ++i) {
    drive.use(1);  // 4
  }
  drive.add(2, 2, 1);           // 2
  REQUIRE(drive.evict() == 2);  // the clock is 2
  drive.add(2, 3, 0);           // 3, later
  REQUIRE(drive.evict_all() == Ids{0, 2, 1});
}

TEST_CASE("CostAware: of a prefix the end goes first, and does so as early as its cost says", "[eviction]") {
  Drive<CostAware> drive(4, CostAware::Config{.slope = 1.0});
  CostAware::SequenceContext context;
  drive.add(3, 3, 1);  // priority 2
  for (int block = 0; block < 3; ++block) {
    drive.policy.on_cached(context, {BlockId{block}, hash_of(100), block}, ++drive.now);
  }
  ++drive.now;
  for (const int block : {2, 1, 0}) {
    drive.policy.on_evictable(context, BlockId{block}, drive.now);
  }
  REQUIRE(drive.evict_all() == Ids{3, 2, 1, 0});
}

TEST_CASE("Priority: the lowest goes first, within one the block released first", "[eviction]") {
  Drive<Priority> drive(6);
  drive.add(0, 0, 0, {.priority = 100});
  drive.add(1, 1, 0, {.priority = 70});
  drive.add(2, 2);
  drive.add(3, 3, 0, {.priority = 0});
  drive.add(4, 4, 0, {.priority = 70});
  drive.add(5, 5, 0, {.priority = Retention::default_priority});
  REQUIRE(drive.evict_all() == Ids{3, 2, 5, 1, 4, 0});
}

TEST_CASE("Priority: the last sequence that releases a block decides", "[eviction]") {
  Drive<Priority> drive(2);
  drive.add(0, 0, 0, {.priority = 100, .duration = 1});
  drive.add(1, 1, 0, {.priority = 50});
  drive.use(0);  // with the default
  drive.now += 10;
  REQUIRE(drive.evict_all() == Ids{0, 1});
}

TEST_CASE("Priority: after its duration a block has the default priority", "[eviction]") {
  Drive<Priority> drive(5);
  drive.add(0, 0, 0, {.priority = 90, .duration = 100});
  drive.add(1, 1, 0, {.priority = 10, .duration = 100});
  drive.add(2, 2, 0, {.priority = 20});
  drive.add(3, 3, 0, {.priority = 40, .duration = Retention::forever - 1});
  drive.add(4, 4);
  SECTION("not before") { REQUIRE(drive.evict_all() == Ids{1, 2, 4, 3, 0}); }
  SECTION("a higher one and a lower one") {
    drive.now += 100;
    REQUIRE(drive.evict_all() == Ids{2, 4, 0, 1, 3});
  }
  SECTION("unless it is referenced meanwhile, and released anew") {
    const auto context = drive.open({0}, {.priority = 90, .duration = 100});
    drive.policy.on_acquired(BlockId{0});
    drive.now += 100;
    drive.release(context, 0);
    REQUIRE(drive.evict_all() == Ids{2, 4, 1, 3, 0});
  }
}

TEST_CASE("Priority: through a cache, with its clock", "[eviction]") {
  PrefixShared<Priority> policy({.blocks = 6, .block_tokens = 1});
  serve_and_close(policy, {1, 2}, {.retention = {.priority = 80, .duration = 1000}});
  serve_and_close(policy, {3, 4});
  serve_and_close(policy, {5, 6}, {.retention = {.priority = 50}});
  serve_and_close(policy, {7, 8});
  REQUIRE(cached(policy, {1, 2}) == 2);
  REQUIRE(cached(policy, {3, 4}) == 0);
  policy.set_time(policy.time() + 1000);
  serve_and_close(policy, {9, 10, 11, 12});
  REQUIRE(cached(policy, {1, 2}) == 0);
  REQUIRE(cached(policy, {5, 6}) == 2);
}

TEST_CASE("An acquired block is not a victim", "[eviction]") {
  for_each_policy([]<class E>() {
    Drive<E> drive(20);
    drive.add(range(0, 20));
    for (int acquired = 0; acquired < 19; ++acquired) {  // one after the other, each just before it would go
      const auto victim = static_cast<int>(drive.policy.victim(drive.now));
      drive.acquire(victim);
      REQUIRE(drive.policy.size() == 19 - acquired);
      REQUIRE(static_cast<int>(drive.policy.victim(drive.now)) != victim);
    }
    drive.evict();
    REQUIRE(drive.policy.size() == 0);
  });
}

TEST_CASE("A block that is not cached any more is not a victim, even if it is referenced meanwhile", "[eviction]") {
  for_each_policy([]<class E>() {
    Drive<E> drive(4);
    drive.add(range(0, 4));
    drive.acquire(1);
    drive.policy.on_uncached(BlockId{1});  // taken back to write to it, say
    const auto context = drive.acquire(2);
    const Ids two = drive.evict(2);
    REQUIRE(two[0] + two[1] == 0 + 3);
    REQUIRE(drive.policy.size() == 0);
    drive.add(1, 100);
    drive.release(context, 2);
    const Ids last = drive.evict(2);
    REQUIRE(last[0] + last[1] == 1 + 2);
    REQUIRE(drive.policy.size() == 0);
  });
}

TEST_CASE("Eviction of the head of a chain takes its end first", "[eviction]") {
  for_each_policy([]<class E>() {
    PrefixShared<E> policy({.blocks = 8, .block_tokens = 1});
    const std::vector<Token> chain{1, 2, 3, 4, 5, 6};
    serve_and_close(policy, chain);
    REQUIRE(cached(policy, chain) == 6);
    const SeqId other = policy.try_open({})->seq;
    REQUIRE(policy.try_extend(other, 2));
    policy.commit(other);
    for (Pos left = 5; left >= 0; --left) {
      REQUIRE(policy.try_extend(other, 1));
      policy.commit(other);
      policy.verify();
      REQUIRE(cached(policy, chain) == left);
    }
  });
}

TEST_CASE("When all blocks are referenced there is no victim and the answer comes at once", "[eviction]") {
  for_each_policy([]<class E>() {
    PrefixShared<E> policy({.blocks = 16, .block_tokens = 1});
    const std::vector<Token> prompt{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    const SeqId seq = policy.try_open(prompt)->seq;
    REQUIRE(policy.try_extend(seq, 16, prompt));
    policy.commit(seq);
    const SeqId other = policy.try_open({})->seq;
    REQUIRE_FALSE(policy.try_extend(other, 1));
    REQUIRE(policy.stats().blocks_cached == 0);
    REQUIRE(policy.stats().evictions == 0);
    policy.close(seq);
    REQUIRE(policy.try_extend(other, 1));
    policy.verify();
  });
}

// With a scan of all blocks per victim this would run into the time limit of the test.
TEST_CASE("A victim among many referenced blocks is found at once", "[eviction]") {
  for_each_policy([]<class E>() {
    const int blocks = kvc_test::cases_or(200'000);
    Drive<E> drive(blocks);
    typename E::SequenceContext holder{};
    for (int block = 1; block < blocks; ++block) {
      drive.policy.on_cached(holder, {BlockId{block}, hash_of(static_cast<std::uint64_t>(block)), 0}, drive.now);
    }
    int right = 0;
    for (int i = 0; i < blocks; ++i) {
      drive.add(0, blocks + i);
      right += drive.evict() == 0 ? 1 : 0;
    }
    REQUIRE(right == blocks);
  });
}

TEST_CASE("BlockHeap: comes out in the order of keys, whatever is taken out between", "[eviction]") {
  kvc_test::Random random(kvc_test::seed_or(7));
  kvc::BlockHeap<int> heap(50);
  std::vector<int> key_of(50, -1);
  for (int i = 0; i < 5000; ++i) {
    const int block = random.between(0, 49);
    int& key = key_of[static_cast<std::size_t>(block)];
    REQUIRE(heap.contains(BlockId{block}) == (key >= 0));
    if (key >= 0) {
      heap.erase(BlockId{block});
      key = -1;
    } else {
      key = random.between(0, 20);
      heap.push(BlockId{block}, key);
    }
    int lowest = 100;
    for (const int k : key_of) {
      lowest = k >= 0 ? std::min(lowest, k) : lowest;
    }
    REQUIRE(heap.empty() == (lowest == 100));
    if (!heap.empty()) {
      REQUIRE(heap.top_key() == lowest);
      REQUIRE(key_of[static_cast<std::size_t>(heap.top())] == lowest);
    }
  }
}

// --- ReuseHazard --------------------------------------------------------------------------------

namespace {
/// Hits of a workload of two kinds: sessions whose turns add two blocks and come back after `gap` other requests,
/// and documents of 24 blocks that nobody asks for again.
template <class E>
Index hits_of_turns_and_documents(Index capacity, int gap, int put_off = 0) {
  PrefixShared<E> policy({.blocks = capacity, .block_tokens = 1});
  std::vector<std::vector<Token>> sessions(static_cast<std::size_t>(gap));
  Token fresh = 0;
  Index hits = 0;
  for (int i = 0; i < 60 * gap; ++i) {
    std::vector<Token>& turn = sessions[static_cast<std::size_t>(i % gap)];
    if (turn.size() > 16) {
      turn.clear();  // it is over
    }
    turn.push_back(fresh++);
    turn.push_back(fresh++);
    std::vector<Token> document;
    for (int k = 0; k < 24; ++k) {
      document.push_back(fresh++);
    }
    for (std::vector<Token> prompt : {turn, document}) {
      prompt.push_back(-1);
      for (int k = 0; k < put_off; ++k) {
        policy.close(policy.try_open(prompt)->seq);
      }
      const Index before = policy.stats().hit_tokens;
      const Opened opened = *policy.try_open(prompt);
      hits += policy.stats().hit_tokens - before;
      const auto rest = std::span(std::as_const(prompt)).subspan(static_cast<std::size_t>(opened.cached));
      REQUIRE(policy.try_extend(opened.seq, static_cast<Pos>(rest.size()) - 1, rest.first(rest.size() - 1)));
      policy.commit(opened.seq);
      policy.close(opened.seq);
    }
  }
  policy.verify();
  return hits;
}
}  // namespace

TEST_CASE("The hazard learns which prompts are continued, where lru keeps nothing for long enough",
          "[eviction][hazard]") {
  // Between two turns 20 documents pass, 480 blocks: too many for a pool of 400, of which the turns need 200.
  const Index lru = hits_of_turns_and_documents<Lru>(400, 20);
  const Index hazard = hits_of_turns_and_documents<ReuseHazard>(400, 20);
  CAPTURE(lru, hazard);
  REQUIRE(lru == 0);
  REQUIRE(hazard > 5000);  // of 9,600 that there are
  // Requests that are opened and put off have taught it nothing wrong.
  REQUIRE(hits_of_turns_and_documents<ReuseHazard>(400, 20, 10) > hazard * 9 / 10);
}

TEST_CASE("Before it has learned anything the hazard is lru", "[eviction][hazard]") {
  ReuseHazard hazard(64);
  Lru lru(64);
  ReuseHazard::SequenceContext context;
  Lru::SequenceContext none;
  for (int i = 0; i < 60; ++i) {
    const auto block = static_cast<BlockId>(i * 37 % 61);
    hazard.on_evictable(context, block, static_cast<std::uint64_t>(i));
    lru.on_evictable(none, block, static_cast<std::uint64_t>(i));
  }
  for (int i = 60; i > 0; --i) {
    const BlockId victim = hazard.victim(1000);
    REQUIRE(victim == lru.victim(1000));
    hazard.on_acquired(victim);
    lru.on_acquired(victim);
  }
  REQUIRE(hazard.size() == 0);
}

TEST_CASE("Factors stay within their bounds, and last blocks that nobody finds get a low one", "[eviction][hazard]") {
  ReuseHazard hazard(4096);
  std::uint64_t now = 0;
  std::uint64_t key = 1;
  for (int session = 0; session < 200; ++session) {
    // Two turns that share all but the last block of the first.
    std::vector<BlockId> blocks;
    ReuseHazard::SequenceContext first;
    hazard.on_open(first, {}, {}, ++now);
    for (int i = 0; i < 8; ++i) {
      blocks.push_back(static_cast<BlockId>(session * 16 + i));
      hazard.on_cached(first, {blocks.back(), key++ * 0x9e3779b97f4a7c15U, i}, now);
    }
    hazard.on_close(first, blocks, ++now);
    now += 20;
    ReuseHazard::SequenceContext second;
    hazard.on_open(second, std::span(blocks).first(7), {}, now);
  }
  REQUIRE(hazard.factor(ReuseHazard::tail_kind) < 0.8);
  for (int kind = 0; kind < ReuseHazard::kinds; ++kind) {
    REQUIRE(hazard.factor(kind) >= 0.5);
    REQUIRE(hazard.factor(kind) <= 2);
  }
}

TEST_CASE("A last block of several nodes is evidence about its prompt, and no tail", "[eviction][hazard]") {
  ReuseHazard hazard(4096);
  ReuseHazard without_tails(4096, {.tails = false});
  for (ReuseHazard* const each : {&hazard, &without_tails}) {
    std::uint64_t now = 0, key = 1;
    for (std::int32_t prompt = 0; prompt < 300; ++prompt) {
      std::vector<BlockId> blocks;
      ReuseHazard::SequenceContext context;
      each->on_open(context, {}, {}, ++now);
      for (std::int32_t i = 0; i < 8; ++i) {
        blocks.push_back(static_cast<BlockId>(prompt * 8 + i));
        each->on_cached(context, {blocks.back(), key++ * 0x9e3779b97f4a7c15U, i, 0, 5}, now);
      }
      each->on_close(context, blocks, ++now);
      CHECK(context.tail == no_block);
      now += 20;
      if (prompt % 3 != 0) {  // some are continued to their end, others up to the block before it, or not at all
        ReuseHazard::SequenceContext next;
        each->on_open(next, std::span(blocks).first(prompt % 3 == 1 ? 8 : 7), {}, now);
      }
    }
  }
  for (int kind = 0; kind < ReuseHazard::kinds; ++kind) {
    CHECK(hazard.factor(kind) == without_tails.factor(kind));
  }
}

TEST_CASE("A block is worth its hazard times the cost of a miss, per byte", "[eviction][hazard]") {
  // Prompts of four blocks are continued, those of 24 are not.
  ReuseHazard hazard(4096);
  std::uint64_t now = 0, key = 1;
  BlockId next{0};
  const auto release = [&](int blocks) {
    std::vector<BlockId> prompt;
    ReuseHazard::SequenceContext context;
    hazard.on_open(context, {}, {}, ++now);
    for (int i = 0; i < blocks; ++i) {
      prompt.push_back(next);
      next = static_cast<BlockId>((static_cast<std::int32_t>(next) + 1) % 4096);
      hazard.on_cached(context, {prompt.back(), key++ * 0x9e3779b97f4a7c15U, i}, now);
    }
    hazard.on_close(context, prompt, ++now);
    return std::pair(prompt, context);
  };
  for (int round = 0; round < 100; ++round) {
    const auto continued = release(4);
    release(24);
    ReuseHazard::SequenceContext context;
    hazard.on_open(context, std::span(continued.first).first(3), {}, ++now);
  }
  const auto [turn, turn_context] = release(4);
  const auto [document, document_context] = release(24);
  for (const BlockId block : {turn[2], turn[1]}) {
    hazard.on_evictable(turn_context, block, now);
  }
  hazard.on_evictable(document_context, document[2], now);
  const auto value = [&](BlockId block, const BlockCost& cost) { return block_value(hazard, block, now + 5, cost); };
  REQUIRE(value(turn[2], {}) > 1.5 * value(document[2], {}));
  REQUIRE(value(turn[2], {}) == hazard.hazard(turn[2], now + 5));
  // The block behind costs more to compute, since its tokens attend to more; so it is worth more, and less if it is
  // large.
  REQUIRE(value(turn[2], {.miss = compute_cost(2)}) > value(turn[1], {.miss = compute_cost(1)}));
  REQUIRE(value(turn[2], {.miss = 3, .bytes = 2}) == 1.5 * value(turn[2], {}));
  REQUIRE(compute_cost(0) == 1);
  REQUIRE(compute_cost(1900) == 2);
  REQUIRE(compute_cost(10, 0.5) == 6);
}
