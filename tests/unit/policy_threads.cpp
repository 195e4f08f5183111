// Several threads at one policy.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/adaptive_mutex.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/policy/shared_adaptive_mutex.hpp"
#include "kvc/policy/synchronized.hpp"
#include "random_source.hpp"

namespace {
using namespace kvc;
using Tokens = std::vector<Token>;

static_assert(Policy<Synchronized<PrefixShared<>>>);
static_assert(Policy<Synchronized<PrefixShared<>, AdaptiveMutex>>);
static_assert(Policy<Synchronized<PrefixShared<>, std::shared_mutex>>);

// A lock takes no ability away.
template <class P>
constexpr bool can_all = BlockTablePolicy<P> && HasConfig<P> && CountsAvailable<P> && ListsSequences<P> &&
                         ExplainsRefusals<P> && MatchesPrefixes<P> && AdmitsRequests<P> && PinsPrefixes<P> &&
                         KnowsTokens<P> && KeepsPrefixes<P> && ClearsCache<P> && KeepsTime<P> && EmitsEvents<P>;
static_assert(can_all<PrefixShared<>> && can_all<Synchronized<PrefixShared<>>>);
static_assert(BoundsSequences<Synchronized<Contiguous>> && !BlockTablePolicy<Synchronized<Contiguous>>);
static_assert(BlockTablePolicy<Synchronized<Paged>> && !KnowsTokens<Synchronized<Paged>>);

/// Slots of a block in the group that has the most.
template <class P>
Pos most_slots(const P& policy) {
  Pos most = 0;
  for (Index g = 0; g < policy.groups(); ++g) {
    most = std::max(most, policy.block_tokens(g));
  }
  return most;
}

/// One thread's requests: look, open, extend, commit or give up, fork, close. Rows stand in one integer per slot,
/// written by the sequence that reserved it and read by those that match it: a race on them is a race of the cache.
template <class P>
void serve(P& policy, std::vector<std::uint64_t>& rows, std::uint64_t seed, std::atomic<int>& wrong) {
  kvc_test::Random random(seed);
  const Pos slots = most_slots(policy);
  const auto row = [&](const SlotRun& run, Pos i) -> std::uint64_t& {
    return rows[static_cast<std::size_t>(to_index(run.block) * slots + run.offset + i)];
  };
  for (int request = 0; request < 1500; ++request) {
    Tokens prompt(random.between<std::size_t>(1, 40));
    for (Token& token : prompt) {
      token = random.one_in(12) ? 1 : 0;
    }
    // The value of a position is a function of all tokens up to it.
    std::vector<std::uint64_t> values;
    std::uint64_t value = 1;
    for (const Token token : prompt) {
      value = (value ^ static_cast<std::uint32_t>(token)) * 0x9e3779b97f4a7c15U + 1;
      values.push_back(value);
    }
    (void)policy.match_length(prompt);
    (void)policy.can_admit(prompt, 4);
    const Opened opened = *policy.try_open(prompt);
    const auto rest = std::span(std::as_const(prompt)).subspan(static_cast<std::size_t>(opened.cached));
    const auto extension = policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest);
    if (!extension) {
      policy.close(opened.seq);
      continue;
    }
    for (const RowCopy& copy : extension->copies) {
      for (Pos i = 0; i < copy.count; ++i) {
        const auto at = [&](BlockId block, Pos slot) {
          return static_cast<std::size_t>(to_index(block) * slots + slot + i);
        };
        rows[at(copy.to, copy.to_slot)] = rows[at(copy.from, copy.from_slot)];
      }
    }
    for (Index g = 0; g < policy.groups(); ++g) {
      policy.for_each_run(opened.seq, g, extension->range, [&](const SlotRun& run) {
        for (Pos i = 0; i < run.count; ++i) {
          row(run, i) = values[static_cast<std::size_t>(run.first + i)];
        }
      });
    }
    if (random.one_in(8)) {
      policy.rollback(opened.seq);
    } else {
      policy.commit(opened.seq);
    }
    for (Index g = 0; g < policy.groups(); ++g) {
      policy.for_each_run(opened.seq, g, {0, policy.length(opened.seq)}, [&](const SlotRun& run) {
        for (Pos i = 0; i < run.count; ++i) {
          wrong += row(run, i) == values[static_cast<std::size_t>(run.first + i)] ? 0 : 1;
        }
      });
    }
    if (random.one_in(4)) {
      policy.close(policy.try_fork(opened.seq, policy.length(opened.seq))->seq);
    }
    policy.close(opened.seq);
  }
}

template <class P>
void serve_with_threads(P& policy) {
  std::vector<std::uint64_t> rows(static_cast<std::size_t>(policy.blocks() * most_slots(policy)));
  std::atomic<int> wrong = 0;
  std::atomic<bool> done = false;
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] { serve(policy, rows, t + 1, wrong); });
  }
  std::thread observer([&] {
    while (!done) {
      policy.verify();
      (void)policy.stats();
      std::this_thread::yield();
    }
  });
  for (std::thread& thread : threads) {
    thread.join();
  }
  done = true;
  observer.join();
  policy.verify();
  REQUIRE(wrong == 0);
  const Stats stats = policy.stats();
  REQUIRE(stats.sequences == 0);
  REQUIRE(stats.blocks_referenced == 0);
  REQUIRE(stats.evictions > 0);
  REQUIRE(stats.hit_tokens > 0);
}

}  // namespace

TEMPLATE_TEST_CASE("Threads open, match, extend and close at one policy", "[prefix][threads]",
                   Synchronized<PrefixShared<>>, (Synchronized<PrefixShared<>, AdaptiveMutex>)) {
  SECTION("of one group") {
    TestType policy({.blocks = 64, .block_tokens = 4});
    serve_with_threads(policy);
  }
  SECTION("of several, in blocks of other sizes") {
    TestType policy({.blocks = 64, .block_tokens = 4}, {{{{}, 0, 1}, {{6, 0, 0}, 0, 3}, {{0, 8, 2}, 0, 1}}, 2});
    serve_with_threads(policy);
  }
}

// The interleaving in which a failed try_lock could drop a wake-up is too rare to be met here: see
// AdaptiveMutex::try_lock.
TEST_CASE("An adaptive mutex lets in one at a time, and everybody in the end", "[threads]") {
  AdaptiveMutex mutex;
  for (int round = 0; round < 200; ++round) {
    mutex.lock();
    std::vector<std::thread> waiting;
    for (int i = 0; i < 3; ++i) {
      waiting.emplace_back([&] { const std::unique_lock lock(mutex); });
    }
    for (int i = 0; i < 100; ++i) {
      REQUIRE_FALSE(mutex.try_lock());
    }
    mutex.unlock();
    for (std::thread& thread : waiting) {
      thread.join();
    }
    REQUIRE(mutex.try_lock());
    mutex.unlock();
  }
}

TEST_CASE("A shared adaptive mutex keeps writers from all others, and readers from writers", "[threads]") {
  SharedAdaptiveMutex mutex;
  SECTION("in turn") {
    mutex.lock_shared();
    mutex.lock_shared();  // as another thread would
    REQUIRE_FALSE(mutex.try_lock());
    REQUIRE(mutex.try_lock_shared());
    mutex.unlock_shared();
    mutex.unlock_shared();
    REQUIRE_FALSE(mutex.try_lock());
    mutex.unlock_shared();
    REQUIRE(mutex.try_lock());
    REQUIRE_FALSE(mutex.try_lock());
    REQUIRE_FALSE(mutex.try_lock_shared());
    mutex.unlock();
    REQUIRE(mutex.try_lock_shared());
    mutex.unlock_shared();
  }
  SECTION("at once: what it protects is not atomic, and a reader never sees half of a change") {
    Index a = 0, b = 0;
    std::atomic<Index> torn = 0;
    constexpr Index writes = 3000;
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&] {
        for (Index n = 0; n < writes; ++n) {
          const std::unique_lock lock(mutex);
          ++a;
          ++b;
        }
      });
      threads.emplace_back([&] {
        for (Index seen = 0; seen < 2 * writes;) {
          const std::shared_lock lock(mutex);
          torn += a != b ? 1 : 0;
          seen = a;
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    REQUIRE(torn == 0);
    REQUIRE(a == 2 * writes);
  }
  SECTION("a writer that is blocked is woken by the last reader, and readers by the writer") {
    for (int round = 0; round < 20; ++round) {
      mutex.lock_shared();
      std::atomic<int> in = 0;
      std::thread writer([&] {
        const std::unique_lock lock(mutex);
        ++in;
      });
      std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than it spins
      REQUIRE(in == 0);
      std::thread reader([&] {
        const std::shared_lock lock(mutex);
        ++in;
      });
      mutex.unlock_shared();
      writer.join();
      reader.join();
      REQUIRE(in == 2);
    }
  }
}

TEST_CASE("Several operations of one thread can be kept together", "[prefix][threads]") {
  Synchronized<PrefixShared<>> policy({.blocks = 8, .block_tokens = 4});
  const Tokens prompt(9, 7);
  const Pos cached = policy.with_lock([&](PrefixShared<>& p) {
    const Opened opened = *p.try_open(prompt);
    (void)p.try_extend(opened.seq, 9, prompt);
    p.commit(opened.seq);
    p.close(opened.seq);
    return p.match_length(prompt);
  });
  REQUIRE(cached == 8);
  REQUIRE(policy.with_shared_lock([](const PrefixShared<>& p) { return p.stats().blocks_cached; }) == 2);
}

TEST_CASE("A batch is made of a policy behind a lock while other threads use it", "[prefix][threads]") {
  using Cache = KvCache<float, Synchronized<PrefixShared<Lru, ChainHash, EventRing>>>;
  Cache cache({.key_dim = 1}, {.blocks = 64, .block_tokens = 4});
  std::vector<SeqId> own;
  std::vector<typename Cache::Append> steps;
  for (Token i = 0; i < 3; ++i) {
    own.push_back(cache.open());
    cache.commit(cache.extend(own.back(), Tokens(static_cast<std::size_t>(5 + 3 * i), 100 + i)));
    steps.push_back(cache.extend(own.back(), {7}));
  }
  const BatchIndex expected = make_batch(cache, steps);
  REQUIRE(expected.seq_lens == std::vector<std::int32_t>{6, 9, 12});
  REQUIRE(expected.kv_indptr == std::vector<std::int32_t>{0, 2, 5, 8});
  REQUIRE(cache.with_block_table(own[1], [](std::span<const BlockId> table) { return table.size(); }) == 3);

  std::atomic<bool> done = false;
  std::vector<std::thread> others;
  for (int t = 0; t < 2; ++t) {
    others.emplace_back([&, t] {
      for (Token i = 0; !done; ++i) {
        const Tokens prompt(9, 1000 * (t + 1) + i % 50);
        const Opened opened = cache.open(prompt);
        if (auto step =
                cache.try_extend(opened.seq, std::span(prompt).subspan(static_cast<std::size_t>(opened.cached)))) {
          cache.commit(std::move(*step));
        }
        cache.close(opened.seq);
      }
    });
  }
  int different = 0;
  std::size_t events_seen = 0;
  for (int i = 0; i < 300; ++i) {
    const BatchIndex batch = make_batch(cache, steps);
    different += batch.kv_indices == expected.kv_indices && batch.block_table == expected.block_table ? 0 : 1;
    events_seen += cache.with_events([](EventRing& events) { return events.poll(); }) ? 1 : 0;
  }
  done = true;
  for (std::thread& thread : others) {
    thread.join();
  }
  REQUIRE(different == 0);
  REQUIRE(cache.available() > 0);
  REQUIRE(cache.config().blocks == 64);
  REQUIRE(events_seen > 0);
  steps.clear();
  cache.verify();
}

TEST_CASE("Copies of a policy behind a lock belong to the thread that asked for them", "[threads]") {
  Synchronized<Contiguous> policy({.sequences = 3, .max_tokens = 8});
  const SeqId seq = policy.try_open()->seq;
  (void)policy.try_extend(seq, 5);
  policy.commit(seq);
  const Forked mine = *policy.try_fork(seq, 5);
  std::thread([&] { (void)policy.try_fork(seq, 2); }).join();  // would overwrite the policy's own list
  REQUIRE(mine.copies.size() == 1);
  REQUIRE(mine.copies[0].count == 5);
}
