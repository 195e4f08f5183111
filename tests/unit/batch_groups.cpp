// The block tables of a batch in one layer group: entries for what is there, and where they begin.
#include <Eigen/Core>
#include <cstdint>
#include <span>
#include <vector>

#include "catch.hpp"
#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/cuda/decode_plan.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/policy/synchronized.hpp"

namespace {
using namespace kvc;
using kvc_test::contains;
using Ints = std::vector<std::int32_t>;

GroupRules three_groups(Pos rewind = 0) {
  return {{GroupRule{}, GroupRule{{.window = 6}, 0, 1}, GroupRule{{.window = 5, .kept = 2}, 0, 1}}, rewind};
}

/// Every position that the policy has is where the tables say, and the counts fit.
template <class P>
void check_tables(const P& policy, Index group, std::span<const SeqId> sequences, const BatchTables& tables) {
  REQUIRE(tables.size() == std::ssize(sequences));
  for (std::int32_t i = 0; i < tables.size(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    const Index kept = tables.kept_entries[at], block = tables.block_tokens;
    const auto entries = static_cast<Index>(tables.blocks_of(i).size());
    const auto first_slots = tables.first_slots_of(i);
    const Pos length = policy.positions(sequences[at], group);
    REQUIRE(tables.seq_lens[at] == length);
    REQUIRE(tables.kv_lens[at] ==
            length - (kept > 0 || tables.kv_starts[at] > 0 ? tables.kv_starts[at] - kept * block : 0));
    REQUIRE((block == max_pos || ceil_div<Index>(tables.kv_lens[at], block) == entries));
    policy.for_each_run(sequences[at], group, {0, length}, [&](const SlotRun& run) {
      for (Pos p = run.first; p < run.first + run.count; ++p) {
        Index entry = p < kept * block ? p / block : kept + (p - tables.kv_starts[at]) / block;
        Index slot = p < kept * block ? p % block : (p - tables.kv_starts[at]) % block;
        REQUIRE(entry < entries);
        REQUIRE(tables.blocks_of(i)[static_cast<std::size_t>(entry)] == static_cast<std::int32_t>(run.block));
        slot += first_slots.empty() ? 0 : first_slots[static_cast<std::size_t>(entry)];
        REQUIRE(slot == run.offset + p - run.first);
      }
    });
  }
}

template <class P>
std::vector<SeqId> sequences_of(P& policy, std::span<const Pos> lengths) {
  std::vector<SeqId> sequences;
  for (const Pos length : lengths) {
    sequences.push_back(policy.try_open()->seq);
    REQUIRE(policy.try_extend(sequences.back(), length));
    policy.commit(sequences.back());
  }
  return sequences;
}
}  // namespace

TEST_CASE("The tables of a layer group have entries for what is there", "[batch][groups]") {
  Paged policy({.blocks = 64, .block_tokens = 4}, three_groups());
  const std::vector<Pos> lengths{21, 0, 3, 9, 8}, queries{1, 0, 2, 1, 1};
  const std::vector<SeqId> sequences = sequences_of(policy, lengths);
  for (Index group = 0; group < 3; ++group) {
    check_tables(policy, group, sequences, make_tables(policy, group, sequences, queries));
  }
  const BatchIndex full = make_batch(policy, 0, sequences, queries);
  REQUIRE(full.kv_starts == Ints{0, 0, 0, 0, 0});
  REQUIRE(full.kv_lens == full.seq_lens);
  REQUIRE_FALSE(full.has_gaps());
  // Of 21 positions 16 .. 20 are retained, of 9 positions 4 .. 8, of 8 positions 3 .. 7: from block 4, 1 and 0 on.
  const BatchIndex window = make_batch(policy, 1, sequences, queries);
  REQUIRE(window.q_indptr == Ints{0, 1, 1, 3, 4, 5});
  REQUIRE(window.seq_lens == Ints{21, 0, 3, 9, 8});
  REQUIRE(window.kv_starts == Ints{16, 0, 0, 4, 0});
  REQUIRE(window.kept_entries == Ints{0, 0, 0, 0, 0});
  REQUIRE(window.kv_lens == Ints{5, 0, 3, 5, 8});
  REQUIRE(window.kv_indptr == Ints{0, 2, 2, 3, 5, 7});
  REQUIRE(window.last_page_len == Ints{1, 0, 3, 1, 4});
  REQUIRE(window.max_blocks == 2);
  REQUIRE(window.block_table.size() == 10);
  REQUIRE(window.block_table[3] == BatchIndex::padding);
  REQUIRE(window.has_gaps());
  // Of 21 positions 0, 1 and 17 .. 20 are retained: block 0, and from block 4 on.
  const BatchIndex kept = make_batch(policy, 2, sequences, queries);
  REQUIRE(kept.kept_entries == Ints{1, 0, 0, 0, 0});
  REQUIRE(kept.kv_starts == Ints{16, 0, 0, 0, 0});
  REQUIRE(kept.kv_lens == Ints{9, 0, 3, 9, 8});
  REQUIRE(kept.kv_indptr == Ints{0, 3, 3, 4, 7, 9});
}

TEMPLATE_TEST_CASE("Each group's tables follow sequences on their way, under every policy", "[batch][groups]", Paged,
                   PrefixShared<Lru>, Contiguous, Synchronized<Paged>, Synchronized<Contiguous>) {
  GroupRules rules = three_groups(1);
  rules.groups.push_back({{.chunk = 5}, 0, 2});
  rules.groups.push_back({{.window = 1}, 0, 1});
  typename TestType::Config config{};
  if constexpr (BlockTablePolicy<TestType>) {
    config.blocks = 200;
    config.block_tokens = 4;
  } else {
    config.sequences = 3;
    config.max_tokens = 60;
    config.pass_tokens = 20;
  }
  TestType policy(config, rules);
  std::vector<SeqId> sequences{policy.try_open()->seq, policy.try_open()->seq, policy.try_open()->seq};
  for (int step = 0; step < 12; ++step) {
    std::vector<Pos> queries;
    for (const int i : {0, 1, 2}) {
      queries.push_back(i == 1 && step == 3 ? 17 : step % (i + 1) == 0 ? i + 1 : 0);
      REQUIRE(policy.try_extend(sequences[static_cast<std::size_t>(i)], queries.back()));
    }
    for (const bool committed : {false, true}) {
      for (Index group = 0; group < policy.groups(); ++group) {
        check_tables(policy, group, sequences, make_tables(policy, group, sequences, queries));
      }
      for (const SeqId seq : sequences) {
        committed ? void() : policy.commit(seq);
      }
    }
  }
}

TEST_CASE("The appends of a grouped cache are a batch of each group", "[batch][groups]") {
  LayerGroups layers;
  layers.add({.key_dim = 1});
  layers.add({.key_dim = 1, .window = 3});
  layers.add({.key_dim = 1, .cross_rows = 7});
  KvCache<float, Paged> cache(layers, {.blocks = 32, .block_tokens = 2});
  using Append = decltype(cache)::Append;
  const SeqId a = cache.open(), b = cache.open();
  cache.commit(cache.extend(a, 9));
  std::vector<Append> steps;
  steps.push_back(cache.extend(a, 1));
  steps.push_back(cache.extend(b, 4));
  const std::vector<SeqId> sequences{a, b};
  for (const Index layer : {0, 1, 2}) {
    const Index group = cache.layers().place(layer).group;
    check_tables(cache.policy(), group, sequences, make_tables(cache, group, steps));
    REQUIRE(make_batch(cache, group, steps).kv_indices == make_tables(cache, group, steps).kv_indices);
    REQUIRE(make_batch(cache, group, steps).q_indptr == Ints{0, 1, 5});
  }
  REQUIRE(make_tables(cache, 1, steps).kv_starts == Ints{6, 0});  // 7 and 8, and 9 reserved
  REQUIRE(make_tables(cache, 1, steps).kv_lens == Ints{4, 4});
  REQUIRE(make_tables(cache, 2, steps).seq_lens == Ints{7, 7});
  // Tables of all groups at once there are none.
  REQUIRE_THROWS_WITH(make_tables(cache, steps),
                      contains("policy.groups() is 3, must be one that keeps everything; otherwise name the group"));
  REQUIRE_THROWS_WITH(make_batch(cache, steps), contains("policy.groups() is 3"));
  REQUIRE_THROWS_WITH(make_batch(cache, 3, steps), contains("group is 3, must be between 0 and 2"));
  REQUIRE_THROWS_WITH(make_tables(cache.policy(), -1, sequences, std::vector<Pos>{1, 4}), contains("group is -1"));
  REQUIRE_THROWS_WITH(make_tables(cache.policy(), 0, sequences, std::vector<Pos>{1}), contains("queries.size() is 1"));
  // A plan by which a row sees no more than the group keeps is made, and no other.
  REQUIRE(cuda::make_decode_plan(make_tables(cache, 1, steps), 1, {.window = 3}, {1, 1}).narrow.size() == 2);
  REQUIRE_THROWS_WITH(cuda::make_decode_plan(make_tables(cache, 1, steps), 1, {.window = 4}, {1, 1}),
                      contains("position 6 of sequence 0 of the batch is gone, must be one whose row is there, because "
                               "the row at position 9 sees it"));
  REQUIRE_THROWS_WITH(cuda::make_decode_plan(make_tables(cache, 1, steps), 1, {}, {1, 1}), contains("position 0"));
  steps[0].rollback();
  REQUIRE_THROWS_WITH(make_tables(cache, 0, steps), contains("append is finished"));
}

TEST_CASE("Tables say from where on there are rows, and refuse query rows that see others", "[batch][groups]") {
  Paged policy({.blocks = 64, .block_tokens = 4}, three_groups(2));
  const std::vector<SeqId> sequences = sequences_of(policy, std::vector<Pos>{21, 3, 9});
  REQUIRE(policy.try_extend(sequences[0], 2));
  REQUIRE(policy.try_extend(sequences[1], 7));
  const auto tables = [&](Index group, std::vector<Pos> queries) {
    return make_tables(policy, group, sequences, queries);
  };
  // Of 21 positions the window of 6 and a reserve of 2 leave 14 and later ones, of 9 positions 2 and later ones.
  REQUIRE(tables(0, {2, 7, 0}).rows_from == Ints{0, 0, 0});
  REQUIRE(tables(1, {2, 7, 0}).rows_from == Ints{14, 0, 2});
  REQUIRE(tables(2, {2, 7, 0}).rows_from == Ints{15, 0, 3});
  REQUIRE(tables(1, {2, 7, 0}).retained == Retained{.window = 6});
  REQUIRE(tables(2, {2, 7, 0}).retained == Retained{.window = 5, .kept = 2});
  for (const Index group : {0, 1, 2}) {
    const BatchTables step = tables(group, {4, 10, 2});  // rows of the reserve, too
    step.require_rows_for(step.retained);
  }
  const auto refuses = [&](Index group, std::vector<Pos> queries, const Retained& seen, const char* what) {
    REQUIRE_THROWS_WITH(tables(group, queries).require_rows_for(seen), contains(what));
  };
  refuses(1, {5, 7, 0}, {.window = 6}, "position 13 of sequence 0");
  refuses(1, {2, 7, 3}, {.window = 6}, "position 1 of sequence 2");
  refuses(2, {2, 7, 0}, {.window = 5, .kept = 3}, "position 2 of sequence 0");
  refuses(2, {2, 7, 0}, {}, "position 2 of sequence 0");
  tables(2, {0, 7, 0}).require_rows_for({});  // nothing is gone of a sequence with query rows
  tables(2, {2, 7, 0}).require_rows_for({.window = 3});
  tables(2, {2, 7, 0}).require_rows_for({.chunk = 5, .kept = 1});  // from 20 on
}

TEST_CASE("One group of full attention has the same tables with its number and without", "[batch][groups]") {
  const auto check = [](auto&& policy) {
    const std::vector<Pos> lengths{9, 0, 4}, queries{1, 0, 4};
    const std::vector<SeqId> sequences = sequences_of(policy, lengths);
    const BatchTables all = make_tables(policy, sequences, queries), one = make_tables(policy, 0, sequences, queries);
    REQUIRE(one.block_tokens == all.block_tokens);
    REQUIRE(one.kv_indices == all.kv_indices);
    REQUIRE(one.kv_indptr == all.kv_indptr);
    REQUIRE(one.first_slots == all.first_slots);
    REQUIRE(one.seq_lens == all.seq_lens);
    REQUIRE(one.kv_lens == all.seq_lens);
    REQUIRE(all.kv_lens.empty());
  };
  check(Paged({.blocks = 16, .block_tokens = 4}));
  check(Contiguous({.sequences = 3, .max_tokens = 16}));
}
