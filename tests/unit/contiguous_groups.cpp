// Contiguous with layer groups: rings, their pools, and the limits that they meet.
#include <Eigen/Core>
#include <optional>
#include <string>
#include <vector>

#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"

namespace {
using namespace kvc;
using kvc_test::contains;
using Mode = Contiguous::Mode;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Group 0 keeps everything, group 1 a window and kept positions.
GroupRules window_rules(Pos window, Pos kept = 0, Pos rewind = 0) {
  return {{GroupRule{}, GroupRule{{.window = window, .kept = kept}, 0, 1}}, rewind};
}
void grow(Contiguous& policy, SeqId seq, Pos tokens) {
  REQUIRE(policy.try_extend(seq, tokens));
  policy.commit(seq);
  policy.verify();
}
std::vector<SlotRun> runs_of(const Contiguous& policy, SeqId seq, Index group) {
  std::vector<SlotRun> runs;
  policy.for_each_run(seq, group, {0, policy.positions(seq, group)}, [&](const SlotRun& run) { runs.push_back(run); });
  return runs;
}
template <class F>
std::string message_of(F&& operation) {
  try {
    operation();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace

template <>
struct kvc::testing::Corruption<kvc::Contiguous> {
  static constexpr int ways = 5;
  static void apply(Contiguous& policy, SeqId seq, int way) {
    auto& regions = *policy.grouped_;
    auto& rows = regions.at(seq).groups[1];
    switch (way) {
      case 0:
        ++rows.ring.region.start;
        break;
      case 1:
        --rows.ring.region.size;
        break;
      case 2:
        rows.kept = {};
        break;
      case 3:
        rows.retained.retain(1000);
        break;
      default:
        regions.at(seq).adds_cross = true;
    }
  }
};

TEST_CASE("A group that drops rows takes a ring, and a decode step goes round in it", "[contiguous][groups]") {
  Contiguous policy({.sequences = 2, .max_tokens = 100, .pass_tokens = 4}, window_rules(8, 2));
  REQUIRE(policy.block_tokens(0) == 200);
  REQUIRE(policy.block_tokens(1) == 2 * (2 + 8 - 1 + 4));
  const SeqId seq = policy.try_open()->seq;
  REQUIRE(policy.stats(1).blocks_referenced == 13);
  for (int i = 0; i < 25; ++i) {
    grow(policy, seq, 4);
  }
  REQUIRE(policy.retained_from(seq, 0) == 0);
  REQUIRE(policy.retained_from(seq, 1) == 100);
  // Of 11 slots behind the kept ones, position 93 has number (93 - 2) % 11.
  REQUIRE(runs_of(policy, seq, 1) == std::vector<SlotRun>{{BlockId{0}, 0, 2, 0}, {BlockId{0}, 5, 7, 93}});
  REQUIRE(policy.stats(1).tokens_stored == 9);
  REQUIRE(policy.stats(0).tokens_stored == 100);
  REQUIRE(policy.stats().tokens_stored == 109);
  REQUIRE_FALSE(policy.try_extend(seq, 1));
  REQUIRE(policy.why_not_extend(seq, 1) == LimitMet{Limit::max_tokens, 100, 101});
}

TEST_CASE("An extension of more than pass_tokens finds room where it fits", "[contiguous][groups]") {
  LayerGroups layers;
  layers.add({.key_dim = 1});
  layers.add({.key_dim = 1, .window = 8});
  KvCache<float, Contiguous> cache(layers, {.sequences = 2, .max_tokens = 100, .pass_tokens = 4});
  const SeqId seq = cache.open();
  cache.commit(cache.extend(seq, 11));  // a ring of 8 - 1 + 4
  REQUIRE(cache.policy().why_not_extend(seq, 5) == LimitMet{Limit::pass_tokens, 4, 5, 1});
  REQUIRE(
      message_of([&] { (void)cache.extend(seq, 5); }) ==
      "kvc: no room to extend by 5 tokens: 4 of them would fit now, and more in further extensions (layer group 1)");
  cache.commit(cache.extend(seq, 4));
  REQUIRE(cache.length(seq) == 15);
  cache.verify();
}

TEST_CASE("An error of capacity counts the pool of the group that has no room", "[contiguous][groups]") {
  LayerGroups layers;
  layers.add({.key_dim = 1});
  layers.add({.key_dim = 1, .window = 8});
  KvCache<float, Contiguous> cache(
      layers,
      {.sequences = 4, .max_tokens = 40, .pool_tokens = 80, .mode = Mode::grow, .growth_tokens = 1, .pass_tokens = 3});
  REQUIRE(cache.group_stats(1).blocks_total == 20);
  const SeqId a = cache.open();
  cache.commit(cache.extend(a, 12));  // 8 slots remain
  const SeqId b = cache.open();
  REQUIRE(
      message_of([&] { (void)cache.extend(b, 13); }) ==
      "kvc: no room to extend by 13 tokens: 13 slots are needed, and of the pool's 20 slots 12 are free or evictable; "
      "2 sequences are open (layer group 1)");
  cache.commit(cache.extend(b, 12));
  REQUIRE(cache.why_not_extend(b, 1) == LimitMet{});
}

TEST_CASE("A pool of its own for each group, in proportion to what a sequence needs", "[contiguous][groups]") {
  const GroupRules rules{
      {GroupRule{}, GroupRule{{.window = 8}, 0, 1}, GroupRule{{.chunk = 20}, 0, 1}, GroupRule{{}, 30, 1}}, 2};
  const auto slots = [&](const Contiguous::Config& config) {
    const Contiguous policy(config, rules);
    std::vector<Pos> all;
    for (Index g = 0; g < policy.groups(); ++g) {
      all.push_back(policy.block_tokens(g));
    }
    REQUIRE(policy.block_tokens() == all[0]);
    return all;
  };
  REQUIRE(slots({.sequences = 3, .max_tokens = 100}) == std::vector<Pos>{300, 300, 300, 90});
  REQUIRE(slots({.sequences = 3, .max_tokens = 100, .pass_tokens = 1}) == std::vector<Pos>{300, 30, 66, 90});
  REQUIRE(slots({.sequences = 9, .max_tokens = 100, .pool_tokens = 250, .pass_tokens = 1}) ==
          std::vector<Pos>{250, 25, 55, 75});
  REQUIRE(slots({.sequences = 9, .max_tokens = 100, .pool_tokens = 20, .pass_tokens = 1}) ==
          std::vector<Pos>{20, 10, 20, 30});
}

TEST_CASE("A ring shrinks at commit to what it retains and one step more", "[contiguous][groups]") {
  Contiguous policy({.sequences = 2, .max_tokens = 200, .mode = Mode::grow, .growth_tokens = 4}, window_rules(8, 2));
  const SeqId a = policy.try_open()->seq;
  REQUIRE(policy.stats().blocks_referenced == 0);
  const std::optional<Extension> first = policy.try_extend(a, 100);
  REQUIRE(first->copies.empty());
  REQUIRE(policy.stats(1).blocks_referenced == 102);
  policy.commit(a);
  REQUIRE(policy.stats(0).blocks_referenced == 100);
  REQUIRE(policy.stats(1).blocks_referenced == 2 + 12);  // 7 rows, and 4 more as many were reserved
  REQUIRE(runs_of(policy, a, 1) == std::vector<SlotRun>{{BlockId{0}, 0, 2, 0}, {BlockId{0}, 2, 7, 93}});
  // Decoding and speculation find their room in the ring.
  for (int i = 0; i < 8; ++i) {
    const std::optional<Extension> step = policy.try_extend(a, 4);
    REQUIRE(step->copies.empty());
    if (i % 3 == 0) {
      policy.rollback(a);
    } else {
      policy.commit(a);
    }
    policy.verify();
    REQUIRE(policy.stats(1).blocks_referenced == 2 + 12);
  }
  // A pass for which the ring has to grow while it wraps: the rows at its front are copied behind its end.
  const std::vector<SlotRun> before = runs_of(policy, a, 1);
  REQUIRE(before.size() == 3);
  const std::optional<Extension> pass = policy.try_extend(a, 30);
  REQUIRE(pass->copies.size() == 1);
  REQUIRE(pass->copies[0].group == 1);
  REQUIRE(pass->copies[0].from_slot == 2);
  REQUIRE(pass->copies[0].to_slot == 14);
  REQUIRE(pass->copies[0].count == before[2].count);
  policy.rollback(a);
  REQUIRE(runs_of(policy, a, 1) == before);
  REQUIRE(policy.stats(1).blocks_referenced == 2 + 12);
  policy.truncate(a, 0);
  REQUIRE(policy.stats().blocks_referenced == 0);
  policy.close(a);
  policy.verify();
}

TEST_CASE("What Contiguous refuses of groups, it refuses in the words of Paged", "[contiguous][groups]") {
  const auto mode = GENERATE(Mode::reserve, Mode::grow);
  GroupRules rules = window_rules(8, 2, 3);
  rules.groups.push_back({{.chunk = 10}, 0, 1});
  Contiguous contiguous({.sequences = 4, .max_tokens = 100, .mode = mode, .pass_tokens = 100}, rules);
  Paged paged({.blocks = 400, .block_tokens = 1}, rules);
  const SeqId a = contiguous.try_open()->seq, b = paged.try_open()->seq;
  for (const Pos tokens : {5, 40, 1, 7}) {
    grow(contiguous, a, tokens);
    REQUIRE(paged.try_extend(b, tokens));
    paged.commit(b);
    for (Pos length = 0; length <= contiguous.length(a); ++length) {
      REQUIRE(message_of([&] { (void)contiguous.why_not_fork(a, length); }) ==
              message_of([&] { (void)paged.why_not_fork(b, length); }));
    }
    for (Index g = 0; g < 3; ++g) {
      REQUIRE(contiguous.retained_from(a, g) == paged.retained_from(b, g));
    }
  }
  REQUIRE(message_of([&] { contiguous.truncate(a, 49); }) == message_of([&] { paged.truncate(b, 49); }));
  REQUIRE_THROWS_WITH(contiguous.truncate(a, 49),
                      contains("length is 49, must be at least 50: group 1 does not retain position 42 any more"));
  REQUIRE_THROWS_WITH(contiguous.try_fork(a, 49), contains("at is 49"));
  REQUIRE(contiguous.length(a) == 53);
  contiguous.truncate(a, 50);
  contiguous.verify();
  REQUIRE_THROWS_WITH(contiguous.positions(a, 3), contains("group is 3, must be between 0 and 2"));
  REQUIRE_THROWS_WITH(contiguous.allocation(a), contains("groups is 3"));
}

TEST_CASE("A bad configuration of groups is refused with its name and value", "[contiguous][groups]") {
  REQUIRE_THROWS_WITH(Contiguous({.max_tokens = 8, .pass_tokens = -1}), contains("config.pass_tokens is -1"));
  REQUIRE_THROWS_WITH(Contiguous({.sequences = 1 << 20, .max_tokens = 1 << 20}, window_rules(4)),
                      contains("slots in the pool of group 0 is 1099511627776"));
  // Rings are small, so many long sequences have room if there are only rings.
  const Contiguous rings({.sequences = 1 << 12, .max_tokens = 1 << 20, .pass_tokens = 1},
                         {{GroupRule{{.window = 16}, 0, 1}}, 0});
  REQUIRE(rings.block_tokens() == 16 << 12);
  REQUIRE_THROWS_WITH(Contiguous({.max_tokens = 8}, GroupRules{{}, 0}), contains("groups is 0"));
}

TEST_CASE("verify finds a contradiction in the regions of a group", "[contiguous][groups]") {
  const auto mode = GENERATE(Mode::reserve, Mode::grow);
  const int way = GENERATE(range(0, testing::Corruption<Contiguous>::ways));
  CAPTURE(way);
  Contiguous policy({.sequences = 2, .max_tokens = 40, .mode = mode, .growth_tokens = 1}, window_rules(8, 2));
  const SeqId seq = policy.try_open()->seq;
  grow(policy, seq, 30);
  testing::Corruption<Contiguous>::apply(policy, seq, way);
  REQUIRE_THROWS_AS(policy.verify(), InvariantError);
}

TEST_CASE("Rows of rings that wrap, grow, move and are forked stay what was written", "[contiguous][groups]") {
  const auto mode = GENERATE(Mode::reserve, Mode::grow);
  LayerGroups layers;
  layers.add({.key_dim = 1, .window = 9, .kept = 2});
  layers.add({.key_dim = 2, .value_dim = 1});
  layers.add({.kv_heads = 2, .key_dim = 1, .chunk = 7});
  layers.add({.key_dim = 1, .cross_rows = 3});
  layers.add({.key_dim = 1, .window = 9, .kept = 2});
  KvCache<float, Contiguous> cache(
      layers, {.sequences = 6, .max_tokens = 90, .mode = mode, .growth_tokens = 3, .pass_tokens = 20});
  using Append = decltype(cache)::Append;
  const auto value = [](float seq, Index layer, Pos position) {
    return 1000 * seq + 100 * static_cast<float>(layer) + static_cast<float>(position);
  };
  const auto write = [&](float number, const Append& append, Pos first) {
    for (Index layer = 0; layer < layers.layers(); ++layer) {
      const Shape& shape = cache.shape(layers.place(layer).group);
      const Index rows = cache.rows_to_write(layer, append);
      Matrix k(rows, shape.kv_heads * shape.key_dim), v(rows, shape.kv_heads * shape.value_dim);
      for (Index row = 0; row < rows; ++row) {
        const Pos from = layer == 3 ? 0 : first;
        k.row(row).setConstant(value(number, layer, from + static_cast<Pos>(row)));
        v.row(row).setConstant(-value(number, layer, from + static_cast<Pos>(row)));
      }
      cache.write(layer, append, k, v);
    }
  };
  /// `forked`: a fork has the first positions, and the cross-attention rows, of sequence 0.
  const auto check = [&](SeqId seq, float number, Pos forked) {
    for (Index layer = 0; layer < layers.layers(); ++layer) {
      const auto view = cache.view(layer, seq);
      for (Index head = 0; head < view.kv_heads(); ++head) {
        Index rows = 0;
        view.for_each_run(head, {0, view.length()}, [&](const KvRun<float>& run) {
          rows += run.rows;
          for (Index i = 0; i < run.rows; ++i) {
            const Pos p = run.first + static_cast<Pos>(i);
            const float of = p < forked || (layer == 3 && forked > 0) ? 0.F : number;
            REQUIRE(run.k[i * run.k_stride] == value(of, layer, p));
            REQUIRE(run.v[i * run.v_stride] == -value(of, layer, p));
          }
        });
        REQUIRE(rows >= (layer == 2 ? view.length() % 7 : std::min(view.length(), 3)));
      }
    }
  };
  std::vector<SeqId> seqs{cache.open(), cache.open()};
  std::vector<Pos> forked{0, 0};
  for (const Pos count : {12, 1, 20, 1, 1, 3, 17, 1, 1, 1, 1, 1, 8, 1}) {
    for (std::size_t i = 0; i < seqs.size(); ++i) {
      const auto number = static_cast<float>(i);
      const Pos first = cache.length(seqs[i]);
      if (first + count > 90) {
        continue;
      }
      if (count == 3) {  // taken back, and written once more
        const Append lost = cache.extend(seqs[i], count);
        write(7, lost, first);
      }
      check(seqs[i], number, forked[i]);
      Append append = cache.extend(seqs[i], count);
      write(number, append, first);
      check(seqs[i], number, forked[i]);
      cache.commit(std::move(append));
      check(seqs[i], number, forked[i]);
      cache.verify();
    }
    if (seqs.size() == 2 && cache.length(seqs[0]) == 34) {
      seqs.push_back(cache.fork(seqs[0]));
      forked.push_back(34);
      check(seqs[2], 2, 34);
    }
  }
  REQUIRE(seqs.size() == 3);
  REQUIRE((mode == Mode::reserve || cache.policy().copied_tokens() > 100));
  for (const SeqId seq : seqs) {
    cache.close(seq);
  }
  cache.verify();
  REQUIRE(cache.stats().blocks_referenced == 0);
}
