// Tokens that are published after the rows were committed, and the encodings of salts.
#include <string>
#include <vector>

#include "catch.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "policies.hpp"
#include "serve.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;
using Tested = PrefixShared<Lru, SeededHash>;

SeqId silent(Tested& policy, Pos tokens) {
  const SeqId seq = policy.try_open()->seq;
  REQUIRE(policy.try_extend(seq, tokens));
  policy.commit(seq);
  return seq;
}
}  // namespace

TEST_CASE("Blocks are found once their tokens are published", "[prefix][publish_tokens]") {
  Tested policy({.blocks = 16, .block_tokens = 4});
  const SeqId seq = silent(policy, 11);
  REQUIRE(policy.known_tokens(seq).empty());
  REQUIRE(policy.match_length(counting(0, 20)) == 0);
  policy.publish_tokens(seq, counting(0, 11));
  policy.verify();
  REQUIRE(policy.known_tokens(seq) == counting(0, 11));
  REQUIRE(policy.match_length(counting(0, 20)) == 8);
  REQUIRE(policy.try_extend(seq, 1, counting(11, 1)));  // and goes on as if they had been given at once
  policy.commit(seq);
  policy.verify();
  REQUIRE(policy.match_length(counting(0, 20)) == 12);
  REQUIRE_THROWS_WITH(policy.publish_tokens(seq, counting(0, 12)), contains("knows none of its tokens"));
  policy.close(seq);
  REQUIRE(policy.match_length(counting(0, 20)) == 12);
}

TEST_CASE("Some of the tokens may be published, and those behind them stay unknown", "[prefix][publish_tokens]") {
  Tested policy({.blocks = 16, .block_tokens = 4});
  const SeqId seq = silent(policy, 11);
  policy.publish_tokens(seq, {});
  REQUIRE_THROWS_WITH(policy.publish_tokens(seq, counting(0, 12)), contains("tokens.size() is 12"));
  policy.publish_tokens(seq, counting(0, 6));
  policy.verify();
  REQUIRE(policy.known_tokens(seq) == counting(0, 6));
  REQUIRE(policy.match_length(counting(0, 20)) == 4);
  REQUIRE(policy.try_extend(seq, 5, counting(11, 5)));
  REQUIRE_THROWS_AS(policy.publish_tokens(seq, {}), std::invalid_argument);  // an extension is uncommitted
  policy.commit(seq);
  policy.verify();
  REQUIRE(policy.match_length(counting(0, 20)) == 4);
}

TEST_CASE("The tokens of sequences that share blocks may be published in any order", "[prefix][publish_tokens]") {
  for (const bool parent_first : {true, false}) {
    Tested policy({.blocks = 16, .block_tokens = 4});
    serve_and_close(policy, counting(0, 5));  // its first block is there already
    const SeqId parent = silent(policy, 10);
    const SeqId child = policy.try_fork(parent, 9)->seq;
    const SeqId tail = policy.try_fork(parent, 6)->seq;
    REQUIRE(policy.try_extend(child, 4));
    policy.commit(child);
    policy.publish_tokens(parent_first ? parent : child, counting(0, parent_first ? 10 : 13));
    policy.verify();
    policy.publish_tokens(parent_first ? child : parent, counting(0, parent_first ? 13 : 10));
    policy.verify();
    policy.publish_tokens(tail, counting(0, 6));
    policy.verify();
    REQUIRE(policy.match_length(counting(0, 20)) == 12);
    REQUIRE(policy.block_table(parent)[0] == policy.block_table(child)[0]);
    REQUIRE(policy.block_table(parent)[1] == policy.block_table(child)[1]);
    REQUIRE(policy.block_table(parent)[1] == policy.block_table(tail)[1]);
    REQUIRE(policy.stats().merges == 3);  // of the first block: each of the three referenced another
    const SeqId other = policy.try_fork(silent(policy, 4), 4)->seq;
    policy.publish_tokens(other, counting(50, 4));
    REQUIRE_THROWS_WITH(policy.publish_tokens(policy.try_fork(other, 4)->seq, counting(60, 4)), contains("knows none"));
    for (const SeqId seq : {parent, child, tail}) {
      policy.close(seq);
    }
    policy.verify();
  }
}

TEST_CASE("Tokens that contradict those of a shared block are refused", "[prefix][publish_tokens]") {
  Tested policy({.blocks = 16, .block_tokens = 4});
  const SeqId parent = silent(policy, 8);
  const SeqId child = policy.try_fork(parent, 7)->seq;
  policy.publish_tokens(parent, counting(0, 8));
  REQUIRE_THROWS_WITH(policy.publish_tokens(child, counting(1, 7)),
                      contains("tokens is 0, must be those that a shared block is cached with"));
  policy.verify();
  REQUIRE(policy.known_tokens(child).empty());
  policy.publish_tokens(child, counting(0, 7));
  policy.verify();
}

TEST_CASE("Open sequences are named, pins are not", "[prefix][publish_tokens]") {
  Tested policy({.blocks = 16, .block_tokens = 4});
  const SeqId a = serve(policy, counting(0, 8), {.salt = Salt(SaltKind::tenant, "t")}).seq;
  const SeqId b = serve(policy, counting(0, 8)).seq;
  const SeqId c = serve(policy, counting(9, 8)).seq;
  REQUIRE(policy.try_pin(counting(0, 8)));
  policy.close(b);
  std::vector<SeqId> named;
  policy.for_each_sequence([&](SeqId seq) { named.push_back(seq); });
  REQUIRE(named == std::vector<SeqId>{a, c});
  REQUIRE(policy.salt_bytes(a) == Salt(SaltKind::tenant, "t").bytes());
  REQUIRE(policy.salt_bytes(c).empty());
}

TEST_CASE("A salt comes back from its encoding, and nothing else does", "[salt]") {
  Salt salt(SaltKind::tenant, "a");
  salt.add(SaltKind::multimodal, std::string(300, 'x')).add(SaltKind::custom, "");
  REQUIRE(Salt::from_bytes(salt.bytes()) == salt);
  REQUIRE(Salt::from_bytes("") == Salt());
  const std::string good = salt.bytes();
  for (std::size_t size = 1; size < good.size(); ++size) {
    const auto part = Salt::from_bytes(std::string_view(good).substr(0, size));
    const bool ends_a_part = size == 10 || size == 10 + 309;
    REQUIRE(part.has_value() == ends_a_part);
  }
  for (const int byte : {0xff, 0x80, 0x02}) {
    std::string bad = good;
    bad[8] = static_cast<char>(byte);  // the highest byte of a length
    REQUIRE_FALSE(Salt::from_bytes(bad));
  }
}
