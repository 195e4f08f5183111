// The bounds of benchmarks/replay against a search through all that a cache could do.
#ifdef KVC_HAVE_TRACE
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "bounds.hpp"
#include "catch.hpp"
#include "random_source.hpp"
#include "trace.hpp"

namespace replay_bounds {
namespace {
using kvc::Index;

/// Prompts along random paths of a tree: `parent` of each block, and the last block of each prompt.
struct Stream {
  std::vector<int> parent;
  std::vector<std::vector<std::int32_t>> prompts;
};

Stream random_stream(kvc_test::Random& random) {
  Stream stream;
  const int blocks = random.between(3, 10);
  for (int i = 0; i < blocks; ++i) {
    stream.parent.push_back(random.between(-1, i - 1));
  }
  for (int count = random.between(4, 14); count > 0; --count) {
    std::vector<std::int32_t> path;
    for (int at = random.between(0, blocks - 1); at >= 0; at = stream.parent[static_cast<std::size_t>(at)]) {
      path.insert(path.begin(), at);
    }
    stream.prompts.push_back(path);
  }
  return stream;
}

kvc_bench::Trace trace_of(const Stream& stream) {
  kvc_bench::Trace trace;
  trace.block_tokens = 1;
  for (const std::vector<std::int32_t>& prompt : stream.prompts) {
    kvc_bench::Request request;
    request.blocks = prompt;
    request.input_tokens = static_cast<kvc::Pos>(prompt.size());
    trace.requests.push_back(request);
  }
  return trace;
}

/// The most hits, over everything that could be kept after each prompt: sets of blocks with their parents, which hold
/// the prompt, or its beginning where it is longer than the cache.
Index best_of_all(const Stream& stream, Index capacity) {
  std::map<unsigned, Index> best{{0U, 0}};  // hits so far, by what is cached
  for (const std::vector<std::int32_t>& prompt : stream.prompts) {
    unsigned held = 0;
    for (std::size_t i = 0; i < prompt.size() && std::cmp_less(i, capacity); ++i) {
      held |= 1U << prompt[i];
    }
    std::map<unsigned, Index> after;
    for (const auto& [cached, hits] : best) {
      const Index found = hits + std::popcount(cached & held);
      const unsigned others = cached & ~held;
      for (unsigned kept = others;; kept = (kept - 1) & others) {
        const unsigned all = kept | held;
        bool is_closed = std::popcount(all) <= capacity;
        for (std::size_t block = 0; block < stream.parent.size(); ++block) {
          const int parent = stream.parent[block];
          is_closed = is_closed && ((all >> block & 1U) == 0 || parent < 0 || (all >> parent & 1U) != 0);
        }
        if (is_closed) {
          const auto [at, is_new] = after.try_emplace(all, found);
          at->second = std::max(at->second, found);
        }
        if (kept == 0) {
          break;
        }
      }
    }
    best = std::move(after);
  }
  return std::ranges::max_element(best, {}, [](const auto& entry) { return entry.second; })->second;
}
}  // namespace

TEST_CASE("belady-held is the most that a cache of prefixes can find", "[replay]") {
  kvc_test::Random random(kvc_test::seed_or(kvc_test::any_seed));
  Index below_belady = 0;
  for (int i = 0; i < 400; ++i) {
    const Stream stream = random_stream(random);
    const replay::Accesses accesses = replay::accesses_of(trace_of(stream));
    const Index capacity = random.between(1, 7);
    const replay::Hits held = replay::belady_held(accesses, capacity);
    CAPTURE(stream.parent, stream.prompts, capacity);
    REQUIRE(held.blocks == best_of_all(stream, capacity));
    REQUIRE(held.blocks == held.tokens);
    const bool all_fit = std::ranges::all_of(stream.prompts, [&](const auto& p) { return std::ssize(p) <= capacity; });
    if (all_fit) {  // belady caches whole prompts, block by block
      REQUIRE(held.blocks <= replay::belady(accesses, capacity).blocks);
      below_belady += held.blocks < replay::belady(accesses, capacity).blocks ? 1 : 0;
    }
  }
  REQUIRE(below_belady > 0);
}

}  // namespace replay_bounds
#endif
