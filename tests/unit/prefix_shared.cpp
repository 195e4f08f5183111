// PrefixShared beyond the common contract: matching, sharing, merging, eviction.
#include "kvc/policy/prefix_shared.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "catch.hpp"
#include "policies.hpp"
#include "random_source.hpp"
#include "serve.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;

Tokens operator+(Tokens a, const Tokens& b) { return joined(std::move(a), b); }

OpenOptions salted(SaltKind kind, const std::string& bytes) { return {.salt = Salt(kind, bytes)}; }
}  // namespace

TEST_CASE("A prompt finds the blocks of an earlier one, and leaves a token to compute", "[prefix]") {
  PrefixShared<> policy({.blocks = 32, .block_tokens = 4});
  REQUIRE(serve_and_close(policy, counting(0, 12)) == 0);
  REQUIRE(serve_and_close(policy, counting(0, 12)) == 11);  // two blocks and three rows of the third
  REQUIRE(serve_and_close(policy, counting(0, 13)) == 12);
  REQUIRE(serve_and_close(policy, counting(0, 9)) == 8);
  REQUIRE(serve_and_close(policy, counting(0, 1)) == 0);
  REQUIRE(serve_and_close(policy, {}) == 0);
  const Stats stats = policy.stats();
  REQUIRE(stats.prompt_tokens == 12 + 12 + 13 + 9 + 1);
  REQUIRE(stats.hit_tokens == 11 + 12 + 8);
  REQUIRE(stats.hits == 2 + 3 + 2);
  REQUIRE(stats.misses == 3 + 1 + 0 + 0);
}

TEST_CASE("Rows of a partly matching block are shared by copy-on-write", "[prefix]") {
  PrefixShared<> policy({.blocks = 32, .block_tokens = 8});
  const Opened first = serve(policy, counting(0, 16));
  const Opened second = *policy.try_open(counting(0, 11) + counting(900, 5));
  REQUIRE(second.cached == 11);
  const BlockId shared = policy.block_table(first.seq)[1];
  REQUIRE(policy.block_table(second.seq)[1] == shared);
  const auto extension = policy.try_extend(second.seq, 5, counting(900, 5));
  REQUIRE(extension->copies[0].from == shared);
  REQUIRE(extension->copies[0].to == policy.block_table(second.seq)[1]);
  REQUIRE(extension->copies[0].to != shared);
  REQUIRE(extension->copies[0].count == 3);
  policy.commit(second.seq);
  policy.verify();
  REQUIRE(policy.block_table(first.seq)[1] == shared);
  REQUIRE(serve_and_close(policy, counting(0, 11) + counting(900, 6)) == 16);
}

TEST_CASE("A prefix is matchable only once it is committed", "[prefix]") {
  PrefixShared<> policy({.blocks = 32, .block_tokens = 4});
  const Tokens prompt = counting(0, 9);
  const Opened a = *policy.try_open(prompt);
  REQUIRE(policy.try_extend(a.seq, 9, prompt));
  REQUIRE(policy.try_open(prompt)->cached == 0);
  SECTION("committed") {
    policy.commit(a.seq);
    REQUIRE(policy.try_open(prompt)->cached == 8);
  }
  SECTION("rolled back") {
    policy.rollback(a.seq);
    REQUIRE(policy.try_open(prompt)->cached == 0);
  }
  SECTION("closed in between") {
    policy.close(a.seq);
    REQUIRE(policy.try_open(prompt)->cached == 0);
  }
  policy.verify();
}

TEST_CASE("Rows of unknown tokens, and all behind them, are never matched", "[prefix]") {
  PrefixShared<> policy({.blocks = 32, .block_tokens = 4});
  const Opened a = *policy.try_open();
  REQUIRE(policy.try_extend(a.seq, 4, counting(0, 4)));
  policy.commit(a.seq);
  REQUIRE(policy.try_extend(a.seq, 4));
  policy.commit(a.seq);
  REQUIRE(policy.try_extend(a.seq, 4, counting(8, 4)));
  policy.commit(a.seq);
  policy.verify();
  REQUIRE(policy.try_open(counting(0, 13))->cached == 4);
  policy.truncate(a.seq, 4);  // known again from here on
  REQUIRE(policy.try_extend(a.seq, 4, counting(4, 4)));
  policy.commit(a.seq);
  REQUIRE(policy.try_open(counting(0, 13))->cached == 8);
  policy.verify();
}

TEST_CASE("A refused truncate changes neither sequence nor clock", "[prefix]") {
  GroupRules window;
  window.groups[0].retained.window = 4;
  for (const GroupRules& rules : {GroupRules{}, window}) {
    PrefixShared<> policy({.blocks = 32, .block_tokens = 4}, rules);
    const SeqId seq = policy.try_open()->seq;
    REQUIRE(policy.try_extend(seq, 20, counting(0, 20)));
    policy.commit(seq);
    const std::uint64_t before = policy.time();
    REQUIRE_THROWS_AS(policy.truncate(seq, 21), std::invalid_argument);
    if (!rules.is_plain()) {
      REQUIRE_THROWS_AS(policy.truncate(seq, 12), std::invalid_argument);
    }
    REQUIRE(policy.time() == before);
  }
}

TEST_CASE("Two sequences that compute the same end up sharing it", "[prefix]") {
  PrefixShared<> policy({.blocks = 32, .block_tokens = 4});
  const Tokens prompt = counting(0, 10);
  const Opened a = *policy.try_open(prompt);
  const Opened b = *policy.try_open(prompt);
  REQUIRE(policy.try_extend(a.seq, 10, prompt));
  REQUIRE(policy.try_extend(b.seq, 10, prompt));
  REQUIRE(policy.stats().blocks_referenced == 6);
  policy.commit(a.seq);
  policy.commit(b.seq);
  policy.verify();
  REQUIRE(policy.stats().blocks_referenced == 4);
  REQUIRE(policy.stats().merges == 2);
  REQUIRE(policy.block_table(a.seq)[0] == policy.block_table(b.seq)[0]);
  REQUIRE(policy.block_table(a.seq)[1] == policy.block_table(b.seq)[1]);
  REQUIRE(policy.block_table(a.seq)[2] != policy.block_table(b.seq)[2]);
}

TEST_CASE("Sequences with different salts share nothing", "[prefix][salt]") {
  PrefixShared<> policy({.blocks = 64, .block_tokens = 4});
  const Tokens prompt = counting(0, 9);
  const std::vector<OpenOptions> options{{},
                                         salted(SaltKind::tenant, "a"),
                                         salted(SaltKind::lora, "a"),  // called like a tenant, and still not one
                                         salted(SaltKind::tenant, "b"),
                                         {.salt = Salt(SaltKind::tenant, "a").add(SaltKind::lora, "a")},
                                         {.salt = Salt(SaltKind::tenant, std::string("a\0", 2))},
                                         {.salt = Salt(SaltKind::tenant, "")}};
  for (const OpenOptions& option : options) {
    REQUIRE(serve_and_close(policy, prompt, option) == 0);
  }
  for (const OpenOptions& option : options) {
    REQUIRE(serve_and_close(policy, prompt, option) == 8);
  }
}

TEST_CASE("No part of a salt can imitate two", "[salt]") {
  REQUIRE(Salt(SaltKind::tenant, "a").add(SaltKind::tenant, "b") != Salt(SaltKind::tenant, "ab"));
  REQUIRE(Salt(SaltKind::tenant, Salt(SaltKind::lora, "x").bytes()) != Salt(SaltKind::lora, "x"));
  REQUIRE(Salt(SaltKind::tenant, "a").add(SaltKind::lora, "b") != Salt(SaltKind::lora, "b").add(SaltKind::tenant, "a"));
  REQUIRE(Salt() == Salt());
  REQUIRE(Salt().empty());
}

TEST_CASE("A salt is remembered as long as a sequence uses it or something is cached under it", "[prefix][salt]") {
  PrefixIndex<ChainHash> index(4, 2, ChainHash());
  REQUIRE(index.roots().size() == 1);  // "no salt"
  const auto a = index.roots().acquire(Salt(SaltKind::tenant, "a"));
  const auto b = index.roots().acquire(Salt(SaltKind::tenant, "b"));
  REQUIRE(index.roots().acquire(Salt(SaltKind::tenant, "a")) == a);
  REQUIRE(index.roots().size() == 3);
  index.roots().release(b);
  REQUIRE(index.roots().size() == 2);
  index.roots().release(a);
  REQUIRE(index.roots().size() == 2);
  std::ranges::copy(Tokens{1, 2}, index.tokens(BlockId{0}).begin());
  (void)index.insert(BlockId{0}, a, index.chain_hash(a, Tokens{1, 2}));
  index.roots().release(a);
  REQUIRE(index.roots().size() == 2);
  index.erase(BlockId{0});
  REQUIRE(index.roots().size() == 1);
  REQUIRE(index.roots().acquire(Salt(SaltKind::tenant, "c")) == a);  // its place is used again
}

TEST_CASE("A salt that nobody uses any more may come back", "[prefix][salt]") {
  PrefixShared<> policy({.blocks = 2, .block_tokens = 4});
  for (int i = 0; i < 100; ++i) {
    const OpenOptions options = salted(SaltKind::tenant, std::to_string(i % 7));
    REQUIRE(serve_and_close(policy, counting(0, 5), options) == 0);  // evicted by the next ones
  }
}

TEST_CASE("Full hash collisions neither leak nor displace", "[prefix][collision]") {
  PrefixShared<Lru, kvc_test::ConstantHash> policy({.blocks = 64, .block_tokens = 4});
  std::vector<Tokens> prompts;
  for (Token first = 0; first < 5; ++first) {
    prompts.push_back(counting(100 * first, 9));
  }
  for (const Tokens& prompt : prompts) {
    REQUIRE(serve_and_close(policy, prompt) == 0);
  }
  for (const Tokens& prompt : prompts) {
    REQUIRE(serve_and_close(policy, prompt) == 8);  // all of them are still cached
  }
}

TEST_CASE("Eviction takes the end of the oldest prefix first, and nothing that is referenced", "[prefix][eviction]") {
  PrefixShared<> policy({.blocks = 6, .block_tokens = 4});
  serve_and_close(policy, counting(0, 12));
  serve_and_close(policy, counting(100, 8));
  REQUIRE(policy.stats().blocks_cached == 5);
  REQUIRE(policy.stats().blocks_free == 1);

  const Opened a = serve(policy, counting(200, 8));  // one block was free; the other comes from the end of the first
  REQUIRE(policy.stats().evictions == 1);
  const Opened probe = *policy.try_open(counting(0, 13));
  REQUIRE(probe.cached == 8);
  REQUIRE_FALSE(policy.try_extend(probe.seq, 13, counting(8, 13)));  // 4 blocks, and 2 can be had
  REQUIRE(policy.stats().evictions == 1);
  policy.verify();
  REQUIRE(policy.try_extend(probe.seq, 8, counting(8, 8)));  // those of the second prompt go, the end first
  policy.commit(probe.seq);
  REQUIRE(policy.stats().evictions == 3);
  REQUIRE(policy.stats().blocks_cached == 0);
  REQUIRE(policy.length(a.seq) == 8);
  REQUIRE_FALSE(policy.try_extend(a.seq, 1, counting(0, 1)));  // everything is referenced: no room, at once
  policy.verify();
}

TEST_CASE("A match protects what it found from the extension that follows", "[prefix][eviction]") {
  PrefixShared<> policy({.blocks = 4, .block_tokens = 4});
  serve_and_close(policy, counting(0, 8));
  const Opened opened = *policy.try_open(counting(0, 6) + counting(50, 8));
  REQUIRE(opened.cached == 6);  // the second block is referenced for two of its rows
  const auto extension = policy.try_extend(opened.seq, 6, counting(50, 6));
  REQUIRE(extension);  // a copy of the second block, and one more: all four are in use
  REQUIRE(extension->copies[0].count == 2);
  REQUIRE(policy.stats().blocks_referenced == 4);
  policy.verify();
  policy.rollback(opened.seq);
  policy.verify();
  REQUIRE(policy.stats().blocks_referenced == 2);
}

TEST_CASE("What fits an empty pool fits a pool in which nothing else is referenced", "[prefix][eviction]") {
  const auto same = GENERATE(1, 3, 4, 7, 8, 0);  // tokens that the second prompt has in common with the first
  PrefixShared<> policy({.blocks = 2, .block_tokens = 4});
  serve_and_close(policy, counting(0, 8));
  const Tokens second = same == 0 ? counting(0, 8) : counting(0, same) + counting(100, 8 - same);
  const Opened opened = serve(policy, second);
  REQUIRE(policy.length(opened.seq) == 8);
  policy.truncate(opened.seq, 7);  // a rejected token, in a full pool
  REQUIRE(policy.try_extend(opened.seq, 1, counting(500, 1)));
  policy.verify();
  policy.rollback(opened.seq);
  policy.verify();
  REQUIRE(policy.try_extend(opened.seq, 1, counting(501, 1)));
  policy.commit(opened.seq);
  policy.verify();
}

TEST_CASE(
    "Without room for its copy, a tail with one reference is written in place, and what was cached behind it goes",
    "[prefix][eviction]") {
  PrefixShared<> policy({.blocks = 4, .block_tokens = 4});
  serve_and_close(policy, counting(0, 16));
  const Opened opened = *policy.try_open(counting(0, 6) + counting(100, 10));
  REQUIRE(opened.cached == 6);
  const auto extension = policy.try_extend(opened.seq, 10, counting(100, 10));
  REQUIRE(extension);
  REQUIRE(extension->copies.empty());
  policy.verify();
  policy.commit(opened.seq);
  policy.verify();
  REQUIRE(policy.try_open(counting(0, 16))->cached == 6);
  REQUIRE(policy.try_open(counting(0, 6) + counting(100, 11))->cached == 16);
}

TEST_CASE("Of many children the newest are looked at", "[prefix]") {
  constexpr int scanned = PrefixIndex<ChainHash>::children_scanned;
  PrefixShared<> policy({.blocks = 100, .block_tokens = 4});
  for (Token i = 0; i <= scanned; ++i) {
    serve_and_close(policy, Tokens{i, i, i, i});
  }
  REQUIRE(policy.try_open(Tokens{0, 0, 0})->cached == 0);  // the oldest of one too many
  REQUIRE(policy.try_open(Tokens{1, 1, 1})->cached == 2);
  REQUIRE(policy.try_open(Tokens{0, 0, 0, 0, 5})->cached == 4);  // a whole block is found in any case
}

TEMPLATE_TEST_CASE("A match is the longest there is", "[prefix][model]", PrefixShared<>,
                   (PrefixShared<Lru, kvc_test::ConstantHash>)) {
  // Without eviction the answer is simple: the longest run of full blocks that begins some earlier sequence, and then
  // the most tokens that the next block has in common with any that follows it there.
  const std::uint64_t seed = kvc_test::seed_or(GENERATE(1U, 2U, 3U));
  INFO("KVC_TEST_SEED=" << seed);
  kvc_test::Random random(seed);
  constexpr std::size_t block_tokens = 3;
  TestType policy({.blocks = 4096, .block_tokens = 3});
  std::map<std::string, std::set<Tokens>> cached;  // by salt: every prefix of full blocks
  for (int i = 0; i < kvc_test::cases_or(400); ++i) {
    Tokens prompt(random.between<std::size_t>(0, 24));
    std::ranges::generate(prompt, [&] { return random.between<Token>(0, 1); });
    const std::string salt = random.one_in(2) ? "x" : "";
    const auto& known = cached[salt];
    const std::size_t most = prompt.empty() ? 0 : prompt.size() - 1;
    std::size_t expected = 0;
    while (expected + block_tokens <= most &&
           known.contains(Tokens(prompt.begin(), prompt.begin() + static_cast<long>(expected + block_tokens)))) {
      expected += block_tokens;
    }
    std::size_t partial = 0;
    for (const Tokens& prefix : known) {
      if (prefix.size() == expected + block_tokens &&
          std::equal(prompt.begin(), prompt.begin() + static_cast<long>(expected), prefix.begin())) {
        std::size_t same = 0;
        while (same < block_tokens && expected + same < most && prefix[expected + same] == prompt[expected + same]) {
          ++same;
        }
        partial = std::max(partial, same);
      }
    }
    const OpenOptions options = salt.empty() ? OpenOptions{} : salted(SaltKind::custom, salt);
    const Opened opened = serve(policy, prompt, options);
    REQUIRE(opened.cached == static_cast<Pos>(expected + partial));
    for (std::size_t n = block_tokens; n <= prompt.size(); n += block_tokens) {
      cached[salt].insert(Tokens(prompt.begin(), prompt.begin() + static_cast<long>(n)));
    }
    if (random.one_in(2)) {
      policy.close(opened.seq);
    }
  }
}
