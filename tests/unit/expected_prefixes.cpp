// PrefixShared::try_expect and arrive: blocks of a prefix whose rows come from elsewhere.
#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

#include "catch.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/policy/synchronized.hpp"
#include "policies.hpp"
#include "serve.hpp"

namespace {

using namespace kvc;
using namespace kvc_test;
using Expecting = PrefixShared<Lru, SeededHash>;

void compute_prompt(Expecting& policy, std::span<const Token> tokens) {
  const Opened opened = policy.try_open(tokens).value();
  const auto rest = tokens.subspan(static_cast<std::size_t>(opened.cached));
  REQUIRE(policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest));
  policy.commit(opened.seq);
  policy.close(opened.seq);
}

}  // namespace

TEST_CASE("An expected block is found once it has arrived, and not before", "[prefix][expect]") {
  Expecting policy({.blocks = 12, .block_tokens = 4});
  const std::vector<Token> prompt = counting(0, 18);
  compute_prompt(policy, std::span(prompt).first(6));  // one full block, and a part
  const auto expected = policy.try_expect(prompt);
  REQUIRE(expected);
  CHECK(expected->cached == 4);
  CHECK(expected->blocks.size() == 3);
  CHECK(policy.match_length(prompt) == 4);
  CHECK(policy.available() == 8);
  policy.verify();
  CHECK(policy.arrive(expected->pin, 12));
  CHECK(policy.match_length(prompt) == 12);
  policy.verify();
  SECTION("the rest arrives") {
    CHECK(policy.arrive(expected->pin, 16));
    CHECK(policy.match_length(prompt) == 16);
    CHECK_FALSE(policy.arrive(expected->pin, 16));
    policy.unpin(expected->pin);
    CHECK(policy.match_length(prompt) == 16);
  }
  SECTION("what has not arrived is given up") {
    policy.unpin(expected->pin);
    CHECK(policy.match_length(prompt) == 12);
    CHECK_THROWS_AS(policy.arrive(expected->pin, 16), std::invalid_argument);
  }
  SECTION("a block that was computed in the meantime stays") {
    compute_prompt(policy, prompt);
    CHECK(policy.arrive(expected->pin, 16));
    CHECK(policy.stats().merges == 1);
    policy.unpin(expected->pin);
    CHECK(policy.match_length(prompt) == 16);
  }
  SECTION("rows from before a clear are not taken") {
    policy.clear();
    CHECK_FALSE(policy.arrive(expected->pin, 16));
    CHECK(policy.match_length(prompt) == 0);
    policy.unpin(expected->pin);
  }
  SECTION("lengths that are not whole blocks of the prefix, or less than before, are refused") {
    for (const Pos length : {8, 13, 20}) {
      CHECK_THROWS_AS(policy.arrive(expected->pin, length), std::invalid_argument);
    }
    policy.unpin(expected->pin);
  }
  policy.verify();
  CHECK(policy.available() == 12);
  CHECK(policy.stats().sequences == 0);
  CHECK(policy.stats().pins == 0);
}

TEST_CASE("Without room for all expected blocks nothing is expected", "[prefix][expect]") {
  Expecting policy({.blocks = 4, .block_tokens = 4});
  const std::vector<Token> other = counting(100, 8);
  const Opened held = policy.try_open(other).value();
  REQUIRE(policy.try_extend(held.seq, 8, other));
  policy.commit(held.seq);
  const std::vector<Token> prompt = counting(0, 12);
  CHECK_FALSE(policy.try_expect(prompt));
  policy.verify();
  CHECK(policy.stats().pins == 0);
  policy.close(held.seq);
  const auto expected = policy.try_expect(prompt);  // evicts
  REQUIRE(expected);
  CHECK(policy.match_length(other) < 7);
  policy.unpin(expected->pin);
  const auto nothing = policy.try_expect(std::span(prompt).first(3));
  REQUIRE(nothing);
  CHECK(nothing->blocks.empty());
  CHECK_FALSE(policy.arrive(nothing->pin, 0));
  policy.unpin(nothing->pin);
  policy.verify();
}

TEST_CASE("Expected blocks of one salt are not found under another", "[prefix][expect]") {
  Expecting policy({.blocks = 8, .block_tokens = 4});
  const Salt salt(SaltKind::tenant, "a");
  const std::vector<Token> prompt = counting(0, 9);
  const auto expected = policy.try_expect(prompt, salt);
  REQUIRE(expected);
  CHECK(policy.arrive(expected->pin, 8));
  CHECK(policy.match_length(prompt) == 0);
  CHECK(policy.match_length(prompt, {.salt = salt}) == 8);
  policy.unpin(expected->pin);
  policy.verify();
}

TEST_CASE("With layer groups a prefix arrives as a whole: a window needs its tail, and states those of the end",
          "[prefix][expect]") {
  GroupRules rules;
  rules.groups.resize(2);
  rules.groups[1].retained.window = 5;
  const bool states = GENERATE(false, true);
  if (states) {
    rules.states.push_back({.layers = 2, .weight = 3});
  }
  Expecting policy({.blocks = 24, .block_tokens = 4}, rules);
  const Pos block = policy.block_tokens(0);
  REQUIRE(policy.block_tokens(1) == block);
  const std::vector<Token> prompt = counting(0, 30);
  const auto whole = std::span(prompt).first(28);
  const auto expected = policy.try_expect(whole);
  REQUIRE(expected);
  CHECK(expected->cached == 0);
  std::vector<std::int32_t> columns;
  policy.for_each_expected(expected->pin, [&](const ExpectedBlock& lacks) {
    columns.push_back(lacks.column);
    CHECK(lacks.last <= 28);
    CHECK((lacks.column != 1 || lacks.first >= 16));  // what the window sees before 28, in whole blocks
  });
  CHECK(std::ranges::count(columns, 0) == (28 + block - 1) / block);
  CHECK(std::ranges::count(columns, 1) == 1);
  CHECK(std::ranges::count(columns, 2) == (states ? 1 : 0));
  CHECK(policy.match_length(prompt) == 0);
  CHECK_THROWS_AS(policy.arrive(expected->pin, 28), std::invalid_argument);
  CHECK_THROWS_AS(policy.arrive(expected->pin, whole.first(24)), std::invalid_argument);
  policy.verify();
  SECTION("it arrives") {
    const SeqId early = policy.open_expected(expected->pin);
    CHECK(policy.length(early) == 28);
    CHECK(policy.arrive(expected->pin, whole));
    CHECK_FALSE(policy.arrive(expected->pin, whole));
    CHECK(policy.match_length(prompt) == 28);
    policy.unpin(expected->pin);
    policy.verify();
    REQUIRE(policy.try_extend(early, 2));
    policy.commit(early);
    policy.publish_tokens(early, prompt);
    policy.close(early);
    policy.verify();
    CHECK(policy.match_length(prompt) == 28);
    // A longer prefix shares what is there.
    const std::vector<Token> longer = counting(0, 36);
    const auto more = policy.try_expect(longer);
    REQUIRE(more);
    CHECK(more->cached == 28);
    int full = 0;
    policy.for_each_expected(more->pin, [&](const ExpectedBlock& lacks) { full += lacks.column == 0 ? 1 : 0; });
    CHECK(full == (36 + block - 1) / block - 28 / block);
    policy.unpin(more->pin);
    policy.verify();
    CHECK(policy.match_length(prompt) == 28);
  }
  SECTION("it does not arrive") {
    policy.unpin(expected->pin);
    CHECK(policy.match_length(prompt) == 0);
    CHECK(policy.available() == 24);
  }
  SECTION("what was computed before a clear does not arrive") {
    policy.clear();
    CHECK_FALSE(policy.arrive(expected->pin, whole));
    policy.unpin(expected->pin);
    CHECK(policy.available() == 24);
  }
  SECTION("without room nothing changes") {
    CHECK_FALSE(policy.try_expect(counting(1000, 40 * block)));
    policy.unpin(expected->pin);
  }
  policy.verify();
}

TEST_CASE("A prefix is expected also where a group keeps nearly all positions there can be", "[prefix][expect]") {
  GroupRules rules;
  rules.groups[0].retained = {4, 0, max_pos - 1};
  Expecting policy({.blocks = 24, .block_tokens = 4}, rules);
  const std::vector<Token> prompt = counting(0, 20);
  const auto expected = policy.try_expect(prompt);
  REQUIRE(expected);
  int blocks = 0;
  policy.for_each_expected(expected->pin, [&](const ExpectedBlock&) { ++blocks; });
  CHECK(blocks == 5);
  CHECK(policy.arrive(expected->pin, prompt));
  CHECK(policy.match_length(counting(0, 21)) == 20);
  policy.unpin(expected->pin);
  policy.verify();
}

TEST_CASE("A policy with a lock expects prefixes as well", "[prefix][expect]") {
  using Locked = Synchronized<Expecting>;
  static_assert(ExpectsPrefixes<Locked>);
  Locked policy({.blocks = 8, .block_tokens = 4});
  const std::vector<Token> prompt = counting(0, 9);
  const auto expected = policy.try_expect(prompt);
  REQUIRE(expected);
  CHECK(policy.arrive(expected->pin, 8));
  CHECK(policy.match_length(prompt) == 8);
  policy.unpin(expected->pin);
}
