// Layer groups: what goes wrong elsewhere with layers that differ, each as a case of its own.
#include <algorithm>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "catch.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/mixed.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/policy/detail/block_sizes.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/eviction/reuse_hazard.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "policies.hpp"
#include "random_source.hpp"
#include "serve.hpp"

using namespace kvc;
using namespace kvc_test;
using Catch::Matchers::Contains;

namespace {

GroupRules rules_of(std::vector<Retained> groups) {
  GroupRules rules{{}, 0};
  for (const Retained& retained : groups) {
    rules.groups.push_back({retained, 0, 1});
  }
  return rules;
}

/// Opens, computes what is not found, in passes of at most `pass` tokens, and returns the sequence.
template <class P>
Opened prefill(P& policy, const Tokens& prompt, Pos pass = max_pos) {
  const Opened opened = *policy.try_open(prompt);
  const std::span<const Token> rest = std::span(prompt).subspan(static_cast<std::size_t>(opened.cached));
  for (std::size_t done = 0; done < rest.size();) {
    const auto count = std::min(rest.size() - done, static_cast<std::size_t>(pass));
    REQUIRE(policy.try_extend(opened.seq, static_cast<Pos>(count), rest.subspan(done, count)));
    policy.commit(opened.seq);
    done += count;
  }
  policy.verify();
  return opened;
}

constexpr Retained full{};
constexpr Retained window(Pos positions) { return {positions, 0, 0}; }

}  // namespace

TEST_CASE("Window blocks of a long prompt do not flush cached prefixes") {
  // A pool that holds the prefix and a long prompt's full rows, but not all rows of its window, too.
  PrefixShared<Lru> policy({.blocks = 120, .block_tokens = 16}, rules_of({full, window(32)}));
  const Tokens document = counting(0, 320);
  policy.close(prefill(policy, document, 64).seq);
  const Tokens other = counting(10'000, 16 * 80);
  policy.close(prefill(policy, other, 64).seq);
  CHECK(policy.stats().evictions == 0);
  CHECK(policy.match_length(joined(document, {-1})) == 320);
  CHECK(policy.match_length(joined(other, {-1})) == 16 * 80);
}

TEST_CASE("A tail of exactly the needed blocks survives a divergence inside the last block") {
  // The window needs the last 31 rows, which lie in two blocks when the length is a multiple of 16.
  for (Pos shorter = 1; shorter < 16; ++shorter) {
    CAPTURE(shorter);
    PrefixShared<Lru> policy({.blocks = 100, .block_tokens = 16}, rules_of({full, window(32)}));
    const Tokens prompt = counting(0, 160);
    policy.close(prefill(policy, prompt, 16).seq);
    Tokens next(prompt.begin(), prompt.end() - shorter);
    next.push_back(-1);
    next.push_back(-2);
    CHECK(policy.match_length(next) == 160 - shorter);
    const Opened opened = prefill(policy, next);
    CHECK(opened.cached == 160 - shorter);
  }
}

TEST_CASE("An answer that ends just behind the boundary of a chunk is found where the next prompt diverges before it") {
  const Pos chunk = GENERATE(24, 160);
  const Index chunk_blocks = chunk / 4;
  for (Pos length = 2 * chunk; length < 3 * chunk + 8; ++length) {
    PrefixShared<Lru> policy({.blocks = 5 * chunk_blocks, .block_tokens = 4}, rules_of({full, {0, chunk, 0}}));
    const Tokens tokens = counting(0, length);
    const Pos prompt = chunk + 6;
    const SeqId seq = prefill(policy, {tokens.begin(), tokens.begin() + prompt}).seq;
    for (Pos p = prompt; p < length; ++p) {
      REQUIRE(policy.try_extend(seq, 1, std::span(tokens).subspan(static_cast<std::size_t>(p), 1)));
      policy.commit(seq);
      policy.verify();
    }
    // Beside the two blocks at the end of the prompt, those of the last chunk are cached until its end is a block away.
    // The sequence still references the last one of them.
    const bool is_close = length % chunk < 4;
    CAPTURE(chunk, length, is_close);
    CHECK(policy.stats(1).blocks_cached == (length < 2 * chunk + 4 ? chunk_blocks - 1
                                            : is_close             ? 2 + chunk_blocks - 1
                                                                   : 2));
    policy.close(seq);
    for (Pos shorter = 1; shorter < 5; ++shorter) {
      const auto common = static_cast<std::size_t>(length - shorter);
      const Tokens next = joined({tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(common)}, {-1, -2});
      CAPTURE(shorter);
      CHECK(policy.match_length(next) == std::min(length - shorter, length / 4 * 4));
    }
  }
}

TEST_CASE("A prompt that ends just behind the boundary of a long chunk is found in whatever passes it came") {
  constexpr Pos chunk = 40 * 4;
  for (const Pos pass : {1, 7, 64, 1000}) {
    for (Pos length = chunk - 1; length < chunk + 8; ++length) {
      PrefixShared<Lru> policy({.blocks = 200, .block_tokens = 4}, rules_of({full, {0, chunk, 0}}));
      const Tokens prompt = counting(0, length);
      policy.close(prefill(policy, prompt, pass).seq);
      for (Pos shorter = 1; shorter <= 4; ++shorter) {
        CAPTURE(pass, length, shorter);
        const Tokens common(prompt.begin(), prompt.end() - shorter);
        CHECK(policy.match_length(joined(common, {-1, -2})) == std::min(length - shorter, length / 4 * 4));
      }
    }
  }
}

TEST_CASE("Room for one group is never made of what another group has just matched") {
  PrefixShared<Lru> policy({.blocks = 30, .block_tokens = 4}, rules_of({full, window(8), {0, 16, 0}}));
  const Tokens prompt = counting(0, 40);
  policy.close(prefill(policy, prompt).seq);
  const Opened opened = *policy.try_open(joined(prompt, {-1}));
  REQUIRE(opened.cached == 40);
  std::vector<std::vector<BlockId>> matched;
  for (Index g = 0; g < policy.groups(); ++g) {
    const GroupBlocks blocks = policy.group_blocks(opened.seq, g);
    matched.emplace_back(blocks.rest.begin(), blocks.rest.end());
  }
  // As much as there is room for, from other sequences: everything that can be evicted is.
  const SeqId other = policy.try_open()->seq;
  Pos taken = 0;
  while (policy.try_extend(other, 1, Tokens{taken + 1000})) {
    policy.commit(other);
    ++taken;
  }
  CHECK(taken > 0);
  for (Index g = 0; g < policy.groups(); ++g) {
    const GroupBlocks blocks = policy.group_blocks(opened.seq, g);
    CHECK(std::ranges::equal(blocks.rest, matched[static_cast<std::size_t>(g)]));
  }
  policy.verify();
}

TEST_CASE("Admission knows that windows recycle their blocks") {
  // 1000 tokens in a window of 64: 63 blocks in all, of which the window holds 4 and one pass.
  const auto admission_of = [](Pos pass_tokens, Index blocks) {
    const PrefixShared<Lru> policy({.blocks = blocks, .block_tokens = 16, .pass_tokens = pass_tokens},
                                   rules_of({window(64)}));
    return policy.admission(counting(0, 1000), 500);
  };
  CHECK(admission_of(0, 20) == Admission::never);  // not in one pass
  CHECK(admission_of(64, 20) == Admission::now);
  // Of 64 n positions 63 are kept, and the whole blocks of them and of one position more; then comes a pass.
  CHECK(admission_of(64, 9) == Admission::now);
  CHECK(admission_of(64, 8) == Admission::never);

  SECTION("and what it admits runs to its end") {
    PrefixShared<Lru> policy({.blocks = 20, .block_tokens = 16, .pass_tokens = 64}, rules_of({window(64)}));
    REQUIRE(policy.can_admit(counting(0, 1000), 500));
    const Opened opened = prefill(policy, counting(0, 1000), 64);
    for (Token t = 0; t < 500; ++t) {
      REQUIRE(policy.try_extend(opened.seq, 1, Tokens{t}));
      policy.commit(opened.seq);
    }
    CHECK(policy.length(opened.seq) == 1500);
  }
}

TEST_CASE("Admission waits only where there is something to wait for") {
  PrefixShared<Lru> policy({.blocks = 20, .block_tokens = 16, .pass_tokens = 64}, rules_of({full, window(64)}));
  const Tokens prompt = counting(0, 160);
  CHECK(policy.admission(prompt, 64) == Admission::now);  // 14 blocks, and 6 of the window
  CHECK(policy.admission(prompt, 80) == Admission::never);
  const Opened opened = prefill(policy, prompt, 64);
  CHECK(policy.admission(counting(1000, 160)) == Admission::later);
  // The other sequence's blocks of the window serve this one only for a while.
  CHECK(policy.admission(joined(prompt, {-1}), 1) == Admission::now);
  CHECK(policy.admission(joined(prompt, {-1}), 47) == Admission::later);
  policy.close(opened.seq);
  CHECK(policy.admission(counting(1000, 160)) == Admission::now);
}

TEST_CASE("Admission counts a block once that it finds between blocks of other sequences") {
  PrefixShared<Lru> policy({.blocks = 40, .block_tokens = 1}, rules_of({window(8)}));
  const Tokens prompt = counting(0, 12);
  (void)prefill(policy, {prompt.begin(), prompt.begin() + 6});  // has positions up to 5
  policy.close(prefill(policy, prompt).seq);
  (void)prefill(policy, joined(prompt, counting(100, 5)));  // has those from 9 on
  REQUIRE(policy.stats().blocks_cached == 3);
  REQUIRE(policy.match_length(joined(prompt, {-1})) == 12);
  CHECK(policy.admission(joined(prompt, {-1})) == Admission::now);
  // There is no block for one token more once the three that are cached are found.
  REQUIRE(policy.try_extend(policy.try_open()->seq, static_cast<Pos>(policy.stats().blocks_free)));
  CHECK(policy.admission(joined(prompt, {-1})) == Admission::later);
  const SeqId seq = policy.try_open(joined(prompt, {-1}))->seq;
  CHECK_FALSE(policy.try_extend(seq, 1, Tokens{-1}));
}

TEST_CASE("A sequence that fills the index leaves the prefixes of others") {
  PrefixShared<Lru> policy({.blocks = 200, .block_tokens = 4, .index_tokens = 1000}, rules_of({window(8)}));
  std::vector<Tokens> prompts;
  for (Token user = 1; user <= 5; ++user) {
    prompts.push_back(counting(10'000 * user, 40));
    policy.close(prefill(policy, prompts.back()).seq);
  }
  const Opened endless = prefill(policy, counting(0, 5000), 100);
  CHECK(policy.length(endless.seq) == 5000);
  CHECK(policy.stats().evictions == 0);
  for (const Tokens& prompt : prompts) {
    CHECK(policy.match_length(joined(prompt, {-1})) == 40);
  }
}

TEST_CASE("The index remembers what groups that keep everything can hold and not what light windows could") {
  GroupRules rules = rules_of({full, full, window(8)});
  rules.groups[0].row_weight = 6;
  rules.groups[1].row_weight = 2;
  PrefixShared<Lru> policy({.blocks = 400, .block_tokens = 4}, rules);
  REQUIRE((policy.block_tokens(0) == 4 && policy.block_tokens(1) == 12 && policy.block_tokens(2) == 24));
  REQUIRE(policy.node_tokens() == 4);
  CHECK(policy.nodes() == 300 + 75);  // 300 nodes take 300 blocks of one group and 100 of the other

  std::vector<Tokens> prompts;
  for (Token user = 1; user <= 9; ++user) {
    prompts.push_back(counting(10'000 * user, 120));
    policy.close(prefill(policy, prompts.back(), 100).seq);
  }
  for (const Tokens& prompt : prompts) {
    CHECK(policy.match_length(joined(prompt, {-1})) == 120);
  }
  const Tokens longest = counting(0, 1100);  // nearly all of the pool: in place of the others
  policy.close(prefill(policy, longest, 100).seq);
  CHECK(policy.match_length(joined(longest, {-1})) == 1100);
}

TEST_CASE("Limits of positions are no limit: windows, chunks, kept rows and a reserve of all of them") {
  for (const Retained& retained : std::vector<Retained>{{max_pos, 0, 0},
                                                        {0, max_pos, 0},
                                                        {max_pos, max_pos, max_pos},
                                                        {4, 0, max_pos},
                                                        {0, 4, max_pos},
                                                        {1, 1, 0}}) {
    for (const Pos rewind : {0, max_pos}) {
      CAPTURE(retained.window, retained.chunk, retained.kept, rewind);
      GroupRules rules = rules_of({full, retained, window(3)});
      rules.groups[0].row_weight = max_pos;  // blocks of the other groups hold all positions that there can be
      rules.rewind = rewind;
      PrefixShared<Lru> policy({.blocks = 8, .block_tokens = 2, .index_tokens = 100}, rules);
      Paged paged({.blocks = 8, .block_tokens = 2}, rules);
      const Tokens prompt = counting(0, 9);
      CHECK(policy.admission(prompt, 0) == Admission::now);
      CHECK(policy.admission(prompt, max_pos - 9) == Admission::never);
      const Opened opened = prefill(policy, prompt, 3);
      policy.close(opened.seq);
      CHECK(policy.match_length(joined(prompt, {-1})) == 9);
      const Opened again = prefill(policy, joined(prompt, {-1}), 1);
      CHECK(again.cached == 9);
      policy.truncate(again.seq, policy.retained_from(again.seq, 2));
      const SeqId seq = paged.try_open()->seq;
      for (int i = 0; i < 9; ++i) {
        REQUIRE(paged.try_extend(seq, 1));
        paged.commit(seq);
      }
      CHECK(paged.retained_from(seq, 2) == (rewind == 0 ? 9 : 0));
      CHECK_FALSE(paged.try_extend(seq, max_pos - 9));
      paged.verify();
    }
  }
}

TEST_CASE("Blocks that no number below 2^31 could hold are refused and not made of no positions") {
  LayerGroups layers;
  layers.add({.key_dim = 65536, .value_dim = 65536, .tokens_per_row = 65536});
  const GroupRules rules = layers.rules();
  REQUIRE_THROWS_WITH(Paged({.blocks = 4, .block_tokens = 65537}, rules),
                      Contains("config.block_tokens is 65537, must be a number with a divisor"));
  REQUIRE_THROWS_WITH(PrefixShared<Lru>({.blocks = 4, .block_tokens = 65537}, rules), Contains("config.block_tokens"));
  REQUIRE(Paged({.blocks = 4, .block_tokens = 65536}, rules).block_tokens(0) == 65536);
  GroupRules heavy = rules_of({full, window(3)});
  heavy.groups[0].row_weight = heavy.groups[1].row_weight = max_pos;
  const detail::BlockSizes sizes = detail::block_sizes(heavy, max_pos);
  REQUIRE(sizes.tokens == std::vector<Pos>{max_pos, max_pos});
}

TEST_CASE("A model has at most 2^24 layers and layers that are refused change nothing") {
  LayerGroups layers;
  layers.add({.key_dim = 8});
  const LayerGroups before = layers;
  REQUIRE_THROWS_WITH(layers.add({.key_dim = 8}, Index{1} << 40), Contains("layers to add is 1099511627776"));
  REQUIRE_THROWS_WITH(layers.add({.key_dim = 8}, 0), Contains("layers to add is 0, must be between 1 and 16777215"));
  REQUIRE_THROWS_WITH(layers.add_state(8, Index{1} << 24), Contains("layers to add is 16777216"));
  REQUIRE(layers == before);
}

TEST_CASE("Admission of a long answer looks at blocks and not at each of its tokens") {
  // The bound by arithmetic is more than the pool has, and what the window takes at most is just what it has.
  PrefixShared<Lru> policy({.blocks = 67, .block_tokens = 16}, rules_of({window(1024)}));
  PrefixShared<Lru> less({.blocks = 65, .block_tokens = 16}, rules_of({window(1024)}));
  REQUIRE(policy.admission(counting(0, 20), 100'000'000) == Admission::now);
  REQUIRE(less.admission(counting(0, 20), 100'000'000) == Admission::never);
}

TEST_CASE("A sequence is not restored where it holds more blocks than there are and takes no memory for them") {
  for (const bool finds : {false, true}) {
    const GroupRules rules = rules_of({full, window(3)});
    Paged paged({.blocks = 20, .block_tokens = 1}, rules);
    PrefixShared<Lru> prefix({.blocks = 20, .block_tokens = 1}, rules);
    const auto is_empty = [&](auto& policy) {
      const SeqId seq = policy.try_open()->seq;
      REQUIRE_FALSE(policy.try_restore(seq, {.length = max_pos}));
      policy.verify();
      return policy.available() == 20;
    };
    REQUIRE((finds ? is_empty(prefix) : is_empty(paged)));
  }
}

TEST_CASE("Three groups, one of them without its last block, still hit") {
  PrefixShared<Lru> policy({.blocks = 200, .block_tokens = 16}, rules_of({full, window(48), {0, 64, 0}}));
  const Tokens prompt = counting(0, 200);  // ends inside a block
  policy.close(prefill(policy, prompt, 50).seq);
  // The last 8 tokens are in no full block: they are computed again, and all before them is found.
  CHECK(policy.match_length(joined(prompt, {-1})) == 192);
  CHECK(prefill(policy, joined(prompt, {-1})).cached == 192);
  for (Index g = 0; g < policy.groups(); ++g) {
    CAPTURE(g);
    CHECK(policy.stats(g).lost_tokens == 0);
  }
}

TEST_CASE("A second prompt with the same system prompt finds it, once the first has shown where they part") {
  PrefixShared<Lru> policy({.blocks = 400, .block_tokens = 16}, rules_of({full, window(32)}));
  const Tokens system = counting(0, 480);
  for (Token user = 1; user <= 3; ++user) {
    const Tokens prompt = joined(system, counting(1000 * user, 320));
    const Opened opened = prefill(policy, prompt, 64);
    // Nobody knows before the second user that prompts part there; the window's rows of that place are gone.
    CHECK(opened.cached == (user <= 2 ? 0 : 480));
    policy.close(opened.seq);
  }
  CHECK(policy.stats(0).lost_tokens == 0);
  CHECK(policy.stats(1).lost_tokens == 480);  // the second user's, for want of the window's rows
}

TEST_CASE("A pass sees all of its rows, and what the window drops goes at commit") {
  Paged policy({.blocks = 64, .block_tokens = 4}, rules_of({full, window(8)}));
  const SeqId seq = policy.try_open()->seq;
  REQUIRE(policy.try_extend(seq, 40));
  const auto rows = [&](Index group) {
    Pos count = 0;
    policy.for_each_run(seq, group, {0, policy.positions(seq, group)}, [&](const SlotRun& run) { count += run.count; });
    return count;
  };
  CHECK(rows(1) == 40);
  policy.commit(seq);
  CHECK(rows(0) == 40);
  CHECK(rows(1) == 7);
  CHECK(policy.stats(1).blocks_referenced == 2);
  CHECK(policy.retained_from(seq, 0) == 0);
  CHECK(policy.retained_from(seq, 1) == 40);
}

TEST_CASE("What is gone is refused with its group and position, and a rewind reserve keeps it") {
  GroupRules rules = rules_of({full, window(8)});
  Paged policy({.blocks = 64, .block_tokens = 4}, rules);
  const SeqId seq = policy.try_open()->seq;
  REQUIRE(policy.try_extend(seq, 40));
  policy.commit(seq);
  CHECK_THROWS_WITH(policy.truncate(seq, 38),
                    Contains("length is 38, must be at least 40: group 1 does not retain position 31"));
  CHECK_THROWS_WITH(policy.try_fork(seq, 20), Contains("at is 20") && Contains("group 1"));
  CHECK(policy.length(seq) == 40);
  policy.verify();

  rules.rewind = 5;
  Paged patient({.blocks = 64, .block_tokens = 4}, rules);
  const SeqId other = patient.try_open()->seq;
  REQUIRE(patient.try_extend(other, 40));
  patient.commit(other);
  CHECK(patient.retained_from(other, 1) == 35);
  patient.truncate(other, 35);
  CHECK_THROWS_AS(patient.truncate(other, 34), std::invalid_argument);
  REQUIRE(patient.try_extend(other, 3));
  patient.commit(other);
  patient.verify();
}

TEST_CASE("An extension takes room in all groups or in none") {
  Paged policy({.blocks = 5, .block_tokens = 4}, rules_of({full, window(8), window(4)}));
  const SeqId seq = policy.try_open()->seq;
  CHECK_FALSE(policy.try_extend(seq, 8));  // two blocks in each of three groups
  CHECK(policy.available() == 5);
  CHECK(policy.why_not_extend(seq, 8) == LimitMet{Limit::pool, 20, 24});
  REQUIRE(policy.try_extend(seq, 4));
  CHECK(policy.available() == 2);
  policy.rollback(seq);
  CHECK(policy.available() == 5);
  policy.verify();
}

TEST_CASE("Memory that one group does not use serves any other") {
  Paged policy({.blocks = 40, .block_tokens = 4}, rules_of({full, window(4)}));
  const SeqId seq = policy.try_open()->seq;
  Pos length = 0;
  while (policy.try_extend(seq, 4)) {
    policy.commit(seq);
    length += 4;
  }
  // The window holds a block of kept rows and needs one for the next pass; the rest is the full group's.
  CHECK(length == 4 * 38);
}

TEST_CASE("Blocks of equal bytes hold positions by the weight of a group") {
  const auto sizes = [](std::vector<Index> weights, Pos block_tokens) {
    GroupRules rules{{}, 0};
    for (const Index weight : weights) {
      rules.groups.push_back({{}, 0, weight});
    }
    return detail::block_sizes(rules, block_tokens);
  };
  CHECK(sizes({15, 3}, 16).tokens == std::vector<Pos>{16, 80});
  CHECK(sizes({15, 3}, 16).node_tokens == 16);
  CHECK(sizes({12, 12}, 16).tokens == std::vector<Pos>{16, 16});
  for (const auto& weights : std::vector<std::vector<Index>>{{52, 10}, {36, 12}, {27, 9}, {7, 3}, {40, 33, 2}}) {
    const detail::BlockSizes chosen = sizes(weights, 16);
    Index largest = 0;
    for (std::size_t g = 0; g < weights.size(); ++g) {
      largest = std::max(largest, chosen.tokens[g] * weights[g]);
      CHECK(chosen.tokens[g] % chosen.node_tokens == 0);
    }
    for (std::size_t g = 0; g < weights.size(); ++g) {
      CHECK(64 * (largest - chosen.tokens[g] * weights[g]) <= largest);
    }
  }
}

TEST_CASE("A model's layers map to groups, in order, and readers to their owners") {
  LayerGroups layers;
  for (int i = 0; i < 12; ++i) {
    layers.add({.kv_heads = 2, .key_dim = 16, .window = i % 6 == 5 ? 0 : 8});
  }
  const Index reader = layers.add_reader_of(5);
  CHECK(layers.layers() == 13);
  REQUIRE(layers.groups().size() == 2);
  CHECK(layers.groups()[0].shape == Shape{10, 2, 16, 16});
  CHECK(layers.groups()[1].shape == Shape{2, 2, 16, 16});
  CHECK(layers.place(11).layer == 1);
  CHECK(layers.place(reader).group == 1);
  CHECK(layers.place(reader).layer == 0);
  CHECK_FALSE(layers.place(reader).is_owner);
  CHECK_THROWS_WITH(layers.add_reader_of(99), Contains("layer is 99, must be between 0 and 12"));
  CHECK_THROWS_WITH(layers.add({.key_dim = 8, .window = -1}), Contains("window is -1"));
  CHECK_THROWS_WITH(layers.add({.key_dim = 8, .kept = 4}), Contains("kept is 4"));
  CHECK_THROWS_WITH(layers.add({.key_dim = 8, .window = 4, .cross_rows = 4}), Contains("cross_rows is 4"));
  CHECK_THROWS_WITH(layers.add({.key_dim = 0}), Contains("shape.key_dim is 0"));

  KvCache<float, Paged> cache(layers, {.blocks = 20, .block_tokens = 4});
  const SeqId seq = cache.open();
  auto append = cache.extend(seq, 1);
  const std::vector<float> row(32, 1.0F);
  CHECK_THROWS_WITH(cache.write(reader, append, {row.data(), 1, 32}, {row.data(), 1, 32}),
                    Contains("layer is 12, must be one that stores rows"));
  CHECK(cache.rows_to_write(reader, append) == 0);
  CHECK(cache.rows_to_write(0, append) == 1);
}

TEST_CASE("Rows of another input are written with the first append, shared by forks, and stay") {
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 4}, 2);
  const Index cross = layers.add({.kv_heads = 1, .key_dim = 4, .cross_rows = 7});
  KvCache<float, Paged> cache(layers, {.blocks = 40, .block_tokens = 4});
  const SeqId seq = cache.open();
  const auto write = [&](SeqId to, Pos count, Pos cross_rows) {
    auto append = cache.extend(to, count);
    CHECK(cache.rows_to_write(cross, append) == cross_rows);
    std::vector<float> rows(4 * static_cast<std::size_t>(std::max(count, cross_rows)));
    std::iota(rows.begin(), rows.end(), 0.0F);
    for (Index layer = 0; layer < 2; ++layer) {
      cache.write(layer, append, {rows.data(), count, 4}, {rows.data(), count, 4});
    }
    if (cross_rows > 0) {
      cache.write(cross, append, {rows.data(), cross_rows, 4}, {rows.data(), cross_rows, 4});
    }
    cache.commit(std::move(append));
    cache.verify();
  };
  {
    const auto dropped = cache.extend(seq, 3);
  }  // takes its cross rows back
  CHECK(cache.stats().blocks_referenced == 0);
  write(seq, 3, 7);
  CHECK(cache.view(cross, seq).length() == 7);
  write(seq, 2, 0);
  const SeqId child = cache.fork(seq, 2);
  CHECK(cache.view(cross, child).length() == 7);
  write(child, 1, 0);
  cache.truncate(seq, 0);
  CHECK(cache.view(cross, seq).length() == 7);
  std::vector<float> k(28), v(28);
  cache.gather(cross, seq, {0, 7}, {k.data(), 7, 4}, {v.data(), 7, 4});
  CHECK(k[27] == 27.0F);
  cache.close(seq);
  cache.close(child);
  CHECK(cache.stats().blocks_referenced == 0);
}

TEST_CASE("A policy that knows nothing of groups says so") {
  LayerGroups layers;
  layers.add({.key_dim = 4, .window = 4});
  struct OneGroup : Paged {
    explicit OneGroup(const Config& config) : Paged(config) {}
  };
  static_assert(Policy<OneGroup> && !HoldsGroups<OneGroup>);
  CHECK_THROWS_WITH((KvCache<float, OneGroup>(layers, {.blocks = 4})), Contains("paged holds no other"));
  CHECK_NOTHROW(KvCache<float, OneGroup>({.key_dim = 4}, {.blocks = 4}));
}

TEST_CASE("Pins, quotas, events and salts work over groups") {
  PrefixShared<Lru, ChainHash, EventRing> policy({.blocks = 40, .block_tokens = 4, .tenant_quota = 12},
                                                 rules_of({full, window(6)}));
  const Tokens prompt = counting(0, 32);
  policy.close(prefill(policy, prompt).seq);
  CHECK(policy.stats().blocks_cached <= 12);
  const auto pin = policy.try_pin(std::span(prompt).first(16));
  // The window's rows of a place where no prompt has ended are gone.
  CHECK_FALSE(pin);
  const auto end = policy.try_pin(prompt);
  REQUIRE(end);
  CHECK(end->tokens > 0);
  policy.verify();
  const SeqId filler = policy.try_open()->seq;
  for (Token t = 100; policy.try_extend(filler, 1, Tokens{t}); ++t) {
    policy.commit(filler);
  }
  CHECK(policy.match_length(joined(prompt, {-1})) == end->tokens);
  policy.unpin(end->pin);
  policy.close(filler);
  policy.verify();
  CHECK(policy.match_length(joined(prompt, {-1}), {.salt = Salt(SaltKind::tenant, "other")}) == 0);
  bool other_group = false;
  while (const auto event = policy.events().poll()) {
    other_group = other_group || event->group == 1;
  }
  CHECK(other_group);
  Index listed = 0;
  policy.for_each_cached([&](const BlockStored& stored) { listed += stored.group == 1 ? 1 : 0; });
  CHECK(listed > 0);
  policy.clear();
  policy.verify();
  CHECK(policy.stats().blocks_free == 40);
}

TEST_CASE("A prefix that arrives after others have computed it is protected by its pin all the same") {
  for (const bool has_states : {false, true}) {
    CAPTURE(has_states);
    GroupRules rules{{{full, 0, 1}, {full, 0, 2}}, 0};
    if (has_states) {
      rules.states = {{3, 4}};
    }
    PrefixShared<Lru> policy({.blocks = 40, .block_tokens = 4}, rules);
    REQUIRE(policy.block_tokens(0) == 2 * policy.node_tokens());
    const Tokens prefix = counting(0, 3 * policy.node_tokens());  // it ends inside a block of group 0
    const auto length = static_cast<Pos>(prefix.size());
    const ExpectedPrefix expected = *policy.try_expect(prefix);
    const SeqId seq = policy.try_open(joined(prefix, {-1}))->seq;
    REQUIRE(policy.try_extend(seq, length, prefix));
    policy.commit(seq);
    policy.close(seq);
    REQUIRE(policy.match_length(joined(prefix, {-1})) == length);
    REQUIRE(policy.arrive(expected.pin, prefix));
    policy.verify();
    const SeqId other = policy.try_open()->seq;  // everything that can be evicted is
    for (Token next = 1000; policy.try_extend(other, 1, Tokens{next}); ++next) {
      policy.commit(other);
    }
    CHECK(policy.match_length(joined(prefix, {-1})) == length);
    policy.unpin(expected.pin);
    policy.close(other);
    policy.verify();
    CHECK(policy.stats().blocks_referenced == 0);
  }
}

TEST_CASE("A prefix that arrives keeps all of its rows where a full index takes only its beginning") {
  PrefixShared<Lru> policy({.blocks = 40, .block_tokens = 4, .index_tokens = 8}, {{{full, 0, 1}, {full, 0, 2}}, 0});
  const Pos node = policy.node_tokens();
  REQUIRE(policy.block_tokens(0) == 2 * node);
  const Tokens prefix = counting(0, 2 * node), beginning(prefix.begin(), prefix.begin() + node);
  const PinId pin = policy.try_expect(prefix)->pin;
  const SeqId before = policy.open_expected(pin);
  const SeqId other = prefill(policy, beginning).seq;           // others compute a part of the block meanwhile
  const SeqId last = prefill(policy, counting(500, node)).seq;  // and take the last node of the index
  REQUIRE(policy.arrive(pin, prefix));
  policy.verify();
  REQUIRE(policy.match_length(joined(prefix, {-1})) == node);
  const SeqId after = policy.open_expected(pin);
  CHECK(std::ranges::equal(policy.group_blocks(after, 0).rest, policy.group_blocks(before, 0).rest));
  for (const SeqId seq : {before, other, last, after}) {
    policy.close(seq);
  }
  policy.unpin(pin);
  policy.verify();
  CHECK(policy.stats().blocks_referenced == 0);
}

TEST_CASE("A pin keeps a prefix that its sequence was extending in place while another computed the same rows") {
  PrefixShared<Lru> policy({.blocks = 40, .block_tokens = 4}, {{{full, 0, 1}, {full, 0, 2}}, 0});
  const Pos node = policy.node_tokens();
  const Tokens prefix = counting(0, 3 * node);  // it ends inside a block of group 0
  const Tokens more = counting(500, node), whole = joined(prefix, more);
  const SeqId first = policy.try_open(whole)->seq;
  REQUIRE(policy.try_extend(first, 3 * node, prefix));
  policy.commit(first);
  REQUIRE(policy.try_extend(first, node, more));
  const auto pin = policy.try_pin(prefix);
  REQUIRE(pin);
  REQUIRE(pin->tokens == 3 * node);
  policy.close(prefill(policy, joined(whole, {-1})).seq);
  policy.commit(first);
  CHECK(policy.stats().merges > 0);
  policy.close(first);
  policy.verify();
  const SeqId other = policy.try_open()->seq;  // everything that can be evicted is
  for (Token next = 1000; policy.try_extend(other, 1, Tokens{next}); ++next) {
    policy.commit(other);
  }
  CHECK(policy.match_length(joined(prefix, {-1})) == 3 * node);
}

TEST_CASE("Rows of another input are found by the salt that names it") {
  GroupRules rules = rules_of({full, full});
  rules.groups[1].cross_rows = 10;
  PrefixShared<Lru> policy({.blocks = 60, .block_tokens = 4}, rules);
  const Tokens prompt = counting(0, 21);
  const auto run = [&](const OpenOptions& options) {
    const Opened opened = *policy.try_open(prompt, options);
    const std::span<const Token> rest = std::span(prompt).subspan(static_cast<std::size_t>(opened.cached));
    REQUIRE(policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest));
    const Pos written = policy.extension(opened.seq, 1).size();
    policy.commit(opened.seq);
    policy.verify();
    CHECK(policy.positions(opened.seq, 1) == 10);
    policy.close(opened.seq);
    policy.verify();
    return std::pair(opened.cached, written);
  };
  const OpenOptions cat{.salt = Salt(SaltKind::multimodal, "cat.png")},
      dog{.salt = Salt(SaltKind::multimodal, "dog.png")};
  CHECK(run({}) == std::pair<Pos, Pos>(0, 10));
  CHECK(run({}) == std::pair<Pos, Pos>(0, 10));  // without a salt nobody knows whose rows they are
  CHECK(run(cat) == std::pair<Pos, Pos>(0, 10));
  CHECK(run(cat) == std::pair<Pos, Pos>(20, 0));
  CHECK(run(dog) == std::pair<Pos, Pos>(0, 10));
  CHECK(policy.match_length(prompt, cat) == 20);

  SECTION("two that compute them at once end up sharing them") {
    const OpenOptions bird{.salt = Salt(SaltKind::multimodal, "bird.png")};
    const SeqId a = policy.try_open(prompt, bird)->seq, b = policy.try_open(prompt, bird)->seq;
    REQUIRE(policy.try_extend(a, 21, prompt));
    REQUIRE(policy.try_extend(b, 21, prompt));
    policy.commit(a);
    policy.commit(b);
    policy.verify();
    CHECK(std::ranges::equal(policy.group_blocks(a, 1).rest, policy.group_blocks(b, 1).rest));
    policy.close(a);
    policy.close(b);
    policy.verify();
  }
  SECTION("one of them that is evicted takes the others along") {
    const SeqId filler = policy.try_open()->seq;
    for (Token t = 0; policy.try_extend(filler, 1, Tokens{1000 + t}); ++t) {
      policy.commit(filler);
      policy.verify();
    }
    policy.close(filler);
    CHECK(policy.match_length(prompt, cat) == 0);
    CHECK(run(cat) == std::pair<Pos, Pos>(0, 10));
    policy.clear();
    policy.verify();
    CHECK(policy.stats().blocks_free == 60);
  }
}

TEST_CASE("Latent rows are stored once, and give the bits of keys and values apart") {
  constexpr Index key_dim = 24, value_dim = 16;
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = key_dim, .value_dim = value_dim, .latent = true}, 2);
  const Index keys_only = layers.add({.kv_heads = 1, .key_dim = 8, .latent = true});
  KvCache<float, PrefixShared<Lru>> cache(layers, {.blocks = 20, .block_tokens = 4});
  KvCache<float, PrefixShared<Lru>> apart(Shape{2, 1, key_dim, value_dim}, {.blocks = 20, .block_tokens = 4});
  CHECK(cache.bytes_per_token() == (2 * key_dim + 8) * 4);
  const Tokens tokens = counting(0, 11);
  std::vector<float> rows(11 * key_dim), values(11 * value_dim), q(11 * 3 * key_dim), out(11 * 3 * value_dim);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = rows[i / value_dim * key_dim + i % value_dim];
  }
  for (std::size_t i = 0; i < q.size(); ++i) {
    q[i] = static_cast<float>(i * 53 % 97) / 50 - 1;
  }
  std::vector<float> expected(out.size());
  const SeqId seq = cache.open(), other = apart.open();
  auto append = cache.extend(seq, tokens), other_append = apart.extend(other, tokens);
  for (Index layer = 0; layer < 2; ++layer) {
    cache.write(layer, append, {rows.data(), 11, key_dim});
    apart.write(layer, other_append, {rows.data(), 11, key_dim}, {values.data(), 11, value_dim});
  }
  cache.write(keys_only, append, {q.data(), 11, 8});
  CHECK_THROWS_WITH(cache.write(0, append, {rows.data(), 11, key_dim}, {values.data(), 11, value_dim}),
                    Contains("layer is 0, must be one that stores values"));
  prefill(cache.view(1, seq), append.range(), MatrixArg<float>(q.data(), 11, 3 * key_dim),
          {out.data(), 11, 3 * value_dim}, {.scale = 0.2F});
  prefill(apart.view(1, other), other_append.range(), MatrixArg<float>(q.data(), 11, 3 * key_dim),
          {expected.data(), 11, 3 * value_dim}, {.scale = 0.2F});
  CHECK(out == expected);
  cache.commit(std::move(append));
  cache.verify();
  std::vector<float> k(11 * key_dim), v(11 * value_dim);
  cache.gather(0, seq, {0, 11}, {k.data(), 11, key_dim}, {v.data(), 11, value_dim});
  CHECK(k == rows);
  CHECK(v == values);
  // A copied tail brings its rows along.
  const SeqId child = cache.fork(seq, 10);
  auto next = cache.extend(child, {99});
  std::vector<float> last(key_dim, 0.5F);
  cache.write(0, next, {last.data(), 1, key_dim});
  cache.gather(0, child, {0, 10}, {k.data(), 10, key_dim}, {v.data(), 10, value_dim});
  CHECK(std::ranges::equal(std::span(k).first(10 * key_dim), std::span(rows).first(10 * key_dim)));

  CHECK_THROWS_WITH(layers.add({.key_dim = 8, .value_dim = 9, .latent = true}), Contains("value_dim is 9"));
}

TEMPLATE_TEST_CASE("Latent rows of every element type give the first numbers of the key as the value", "", Eigen::half,
                   Eigen::bfloat16, Int8, Fp8E4M3, Int4, (Mixed<Int8, 40, Eigen::bfloat16>),
                   (Mixed<Fp8E4M3, 40, Eigen::bfloat16>)) {
  using E = kvc::Element<TestType>;
  constexpr Index key_dim = 72, value_dim = 40;
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = key_dim, .value_dim = value_dim, .latent = true}, 2);
  KvCache<TestType, PrefixShared<Lru>> cache(layers, {.blocks = 20, .block_tokens = 4});
  CHECK(cache.bytes_per_token() == 2 * E::row_size(key_dim) * Index{sizeof(StorageOf<TestType>)});
  std::vector<float> rows(11 * key_dim), expected(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
  }
  std::vector<StorageOf<TestType>> stored(static_cast<std::size_t>(E::row_size(key_dim)));
  for (Index i = 0; i < 11; ++i) {
    E::encode(rows.data() + i * key_dim, key_dim, stored.data());
    E::decode(stored.data(), key_dim, expected.data() + i * key_dim);
  }
  const SeqId seq = cache.open();
  auto append = cache.extend(seq, counting(0, 11));
  cache.write(0, append, {rows.data(), 11, key_dim});
  cache.write(1, append, {rows.data(), 11, key_dim});
  cache.commit(std::move(append));
  const SeqId child = cache.fork(seq, 10);
  cache.commit(cache.extend(child, {99}));  // copies a tail
  std::vector<float> k(10 * key_dim), v(10 * value_dim);
  cache.gather(1, child, {0, 10}, {k.data(), 10, key_dim}, {v.data(), 10, value_dim});
  CHECK(std::ranges::equal(k, std::span(expected).first(k.size())));
  for (Index i = 0; i < 10; ++i) {
    CHECK(std::equal(v.begin() + i * value_dim, v.begin() + (i + 1) * value_dim, expected.begin() + i * key_dim));
  }
}

TEST_CASE("Rows of another input without a prefix are no prefix that can be pinned") {
  GroupRules rules = rules_of({window(6), full});
  rules.groups.insert(rules.groups.begin(), {{}, 7, 1});  // the first group is not that of the tokens
  PrefixShared<> policy({.blocks = 40, .block_tokens = 4}, rules);
  const OpenOptions image{.salt = Salt(SaltKind::tenant, "image")};
  const Tokens prompt = counting(0, 20);
  const SeqId seq = policy.try_open(prompt, image)->seq;
  REQUIRE(policy.try_extend(seq, 20, prompt));
  policy.commit(seq);
  policy.close(seq);
  CHECK_FALSE(policy.try_pin(counting(100, 20), image.salt));
  policy.verify();
  const auto pin = policy.try_pin(prompt, image.salt);
  REQUIRE(pin);
  CHECK(pin->tokens == 20);
  policy.unpin(pin->pin);
  policy.verify();
}

namespace {

/// Tokens that are found of sessions whose last token is replaced with each turn, between prompts that come once.
/// A block of the group that keeps everything holds three times the tokens of one of the window.
template <class Eviction>
Index found_of_sessions() {
  const GroupRules rules{{GroupRule{{}, 0, 1}, GroupRule{{8, 0, 0}, 0, 3}}, 0};
  PrefixShared<Eviction, SeededHash> policy({.blocks = 200, .block_tokens = 1}, rules);
  Random random(7);
  std::vector<Tokens> sessions(12);
  Token next = 0;
  const auto add = [&](Tokens& tokens, int count) {
    for (int i = 0; i < count; ++i) {
      tokens.push_back(next++);
    }
  };
  for (int i = 0; i < 3000; ++i) {
    Tokens prompt;
    if (random.one_in(2)) {
      add(prompt, 12);
    } else {
      Tokens& tokens = sessions[random.between<std::size_t>(0, sessions.size() - 1)];
      if (tokens.size() > 60) {
        tokens.clear();
      }
      tokens.resize(tokens.empty() ? 0 : tokens.size() - 1);
      add(tokens, 9);
      prompt = tokens;
    }
    policy.close(prefill(policy, prompt).seq);
  }
  policy.verify();
  return policy.stats().hit_tokens;
}

}  // namespace

TEST_CASE(
    "The default eviction does not take the end of a prompt from a group whose block holds more than is replaced") {
  // As the end of other prompts it would go first, and then nothing is found, however much of the windows is left.
  CHECK(found_of_sessions<ReuseHazard>() > found_of_sessions<Lru>() * 5 / 4);
}

TEST_CASE("Tokens that are published again give the index no block of a group in which the sequence holds none") {
  PrefixShared<Lru> policy({.blocks = 20, .block_tokens = 2}, rules_of({full, Retained{0, 1, 0}}));
  const Tokens tokens = counting(0, 5);
  policy.close(prefill(policy, tokens).seq);
  const Opened opened = *policy.try_open(tokens);
  REQUIRE(opened.cached == 4);
  REQUIRE(policy.group_blocks(opened.seq, 1).rest.empty());  // a row at 4 sees no row of the chunk before it
  policy.clear();
  policy.publish_tokens(opened.seq, std::span(tokens).first(4));
  policy.verify();
  CHECK(policy.match_length(tokens) == 4);
}
