// Code that host and kernels share: divisors, formats, strides, tables, plans, and conflicts between copies.
#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "decode_case.hpp"
#include "kvc/cuda/copy_queue.hpp"
#include "kvc/cuda/decode_plan.hpp"
#include "kvc/cuda/remembered.hpp"
#include "kvc/cuda/state.cuh"
#include "kvc/cuda/view.cuh"
#include "kvc/element/float16.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/policy/synchronized.hpp"
#include "random_source.hpp"

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;
using kvc::Index;
using kvc::Pos;

/// A space that stands for device memory: nothing may be read from it.
struct FarSpace : kvc::HostSpace {
  static constexpr bool host_accessible = false;
  int flushed = 0;
  void flush() { ++flushed; }
};

/// One sequence per list of blocks.
kvc::BatchTables tables_of(Pos block_tokens, const std::vector<std::vector<std::int32_t>>& blocks,
                           const std::vector<Pos>& lengths) {
  kvc::BatchTables tables;
  tables.block_tokens = block_tokens;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    tables.kv_indices.insert(tables.kv_indices.end(), blocks[i].begin(), blocks[i].end());
    tables.kv_indptr.push_back(static_cast<std::int32_t>(tables.kv_indices.size()));
    tables.seq_lens.push_back(lengths[i]);
    tables.q_indptr.push_back(static_cast<std::int32_t>(i) + 1);
  }
  return tables;
}

}  // namespace

TEST_CASE("a divisor divides", "[cuda]") {
  Random random(1);
  const auto check = [](std::int32_t d, std::uint32_t n) {
    if (cuda::Divisor(d).quotient(n) != n / static_cast<std::uint32_t>(d)) {
      FAIL(n << " / " << d);
    }
  };
  for (const std::int32_t d : {1, 2, 3, 5, 7, 16, 17, 641, 65535, 65536, 1 << 30, kvc::max_pos - 1, kvc::max_pos}) {
    for (const std::int64_t near :
         {std::int64_t{0}, std::int64_t{d}, std::int64_t{kvc::max_pos} / d * d, std::int64_t{kvc::max_pos}}) {
      for (std::int64_t n = std::max<std::int64_t>(near - 2, 0); n <= std::min<std::int64_t>(near + 2, kvc::max_pos);
           ++n) {
        check(d, static_cast<std::uint32_t>(n));
      }
    }
  }
  for (int i = 0; i < 200000; ++i) {
    const auto bits = random.between(0, 30);
    const auto d = random.between(std::int32_t{1}, static_cast<std::int32_t>((std::int64_t{2} << bits) - 1));
    const auto n = static_cast<std::uint32_t>(random.between(0, kvc::max_pos));
    check(d, n);
    check(d, n / static_cast<std::uint32_t>(d) * static_cast<std::uint32_t>(d));
  }
}

TEST_CASE("formats of element types", "[cuda]") {
  STATIC_REQUIRE(cuda::format_of<float> == cuda::Format::f32);
  STATIC_REQUIRE(cuda::format_of<Eigen::half> == cuda::Format::f16);
  STATIC_REQUIRE(cuda::format_of<Eigen::bfloat16> == cuda::Format::bf16);
  STATIC_REQUIRE(cuda::format_of<kvc::Fp8E4M3> == cuda::Format::fp8_e4m3);
  STATIC_REQUIRE(cuda::format_of<kvc::Int8> == cuda::Format::int8);
  STATIC_REQUIRE(cuda::format_of<kvc::Int4> == cuda::Format::none);
}

TEST_CASE("options that kernels do not support are refused", "[cuda]") {
  const float zeros[4] = {};
  const auto scale = [](const cuda::AttentionOptions& options) { return cuda::kernel_scale(options, 64, 4); };
  REQUIRE(scale({}) == 0.125F);
  REQUIRE(scale({.scale = 3.0F, .window = 8, .chunk = 4, .kept = 2, .sinks = zeros}) == 3.0F);
  REQUIRE_THROWS_WITH(scale({.mask = kvc::AttentionMask::additive(zeros, 1, 1, 4)}), contains("mask"));
  REQUIRE_THROWS_WITH(scale({.sinks = std::span(zeros).first(3)}),
                      contains("sinks.size() is 3, must be 0 or the number of query heads"));
  REQUIRE_THROWS_WITH(scale({.keys = {0, 5}}), contains("keys"));
  REQUIRE_THROWS_WITH(scale({.window = -1}), contains("window"));
}

TEST_CASE("a layer refuses options by which a row could see what its group drops", "[cuda]") {
  using kvc::Retained;
  const auto check = [](const Retained& rule, const Retained& seen) {
    cuda::LayerRule layer;
    layer.retained = rule;
    cuda::detail::require_retains(layer, seen);
  };
  check({}, {});
  check({}, {.window = 5, .chunk = 7, .kept = 2});
  check({.window = 8, .kept = 2}, {.window = 8, .kept = 2});
  check({.window = 8}, {.window = 3});
  check({.window = 8}, {.chunk = 8});
  check({.chunk = 12}, {.chunk = 4});
  check({.chunk = 12}, {.window = 1});
  REQUIRE_THROWS_WITH(check({.window = 8}, {}), contains("window is 0, must be at least 1 and at most 8"));
  REQUIRE_THROWS_WITH(check({.window = 8}, {.window = 9}), contains("window is 9"));
  REQUIRE_THROWS_WITH(check({.window = 8}, {.chunk = 9}), contains("window is 0"));
  REQUIRE_THROWS_WITH(check({.chunk = 12}, {.chunk = 5}), contains("chunk is 5, must be a divisor of 12"));
  REQUIRE_THROWS_WITH(check({.chunk = 12}, {.window = 2}), contains("chunk is 0"));
  REQUIRE_THROWS_WITH(check({.window = 8, .kept = 2}, {.window = 8, .kept = 3}),
                      contains("kept is 3, must be at most 2"));
  // Nothing else is seen: by every row up to 40.
  for (const Pos window : {0, 1, 3, 8}) {
    for (const Pos chunk : {0, 1, 4, 5}) {
      for (const Retained rule : {Retained{.window = 4}, Retained{.chunk = 4}, Retained{.window = 3, .chunk = 20}}) {
        const Retained seen{.window = window, .chunk = chunk};
        bool accepted = true;
        try {
          check(rule, seen);
        } catch (const std::invalid_argument&) {
          accepted = false;
        }
        for (Pos p = 0; p < 40 && accepted; ++p) {
          REQUIRE(seen.first_seen(p) >= rule.first_seen(p));
        }
      }
    }
  }
  cuda::LayerRule rule;
  rule.group = 2;
  rule.writable = false;
  cuda::detail::require_same_group(rule, 2);
  REQUIRE_THROWS_WITH(cuda::detail::require_same_group(rule, 1), contains("group of the tables is 1"));
  REQUIRE_THROWS_WITH(cuda::detail::require_writable(rule), contains("reads those of another layer"));
}

TEMPLATE_TEST_CASE("a layer view finds the rows of a layout, beyond 2^31 elements too", "[cuda]", kvc::HeadMajor,
                   kvc::TokenMajor) {
  const kvc::Shape shape = kvc::validated({.layers = 40, .kv_heads = 8, .key_dim = 128, .value_dim = 64});
  const auto check = [&]<class T>(std::type_identity<T>) {
    const Index key = kvc::Element<T>::row_size(128), value = kvc::Element<T>::row_size(64);
    const TestType layout(kvc::PoolExtents{3000000, 16, 40, 8, key, value});
    std::byte base{};
    for (const Index layer : {0, 7, 39}) {
      const auto view = cuda::layer_view<T>(&base, layout, shape, layer);
      for (const int block : {0, 1, 2999999}) {
        for (const Index head : {0, 7}) {
          for (const Pos slot : {0, 15}) {
            constexpr auto unit = static_cast<Index>(sizeof(kvc::StorageOf<T>));
            REQUIRE(view.k.offset(block, head, slot) == unit * layout.k(kvc::BlockId{block}, layer, head, slot));
            REQUIRE(view.v.offset(block, head, slot) == unit * layout.v(kvc::BlockId{block}, layer, head, slot));
          }
        }
      }
    }
  };
  check(std::type_identity<kvc::Int8>{});
  check(std::type_identity<Eigen::half>{});
}

TEST_CASE("tables give the place of every position, whatever the policy", "[cuda]") {
  const auto check = [](auto& policy) {
    std::vector<kvc::SeqId> sequences;
    for (const Pos length : {0, 1, 16, 33}) {
      const kvc::SeqId seq = policy.try_open()->seq;
      policy.try_extend(seq, length);
      policy.commit(seq);
      sequences.push_back(seq);
    }
    const std::vector<Pos> queries(sequences.size(), 1);
    const kvc::BatchTables tables =
        kvc::make_tables(policy, std::span<const kvc::SeqId>(sequences), std::span<const Pos>(queries));
    const HostBatch batch(tables);
    for (std::int32_t b = 0; b < tables.size(); ++b) {
      const auto at = static_cast<std::size_t>(b);
      REQUIRE(tables.seq_lens[at] == policy.length(sequences[at]));
      policy.for_each_run(sequences[at], {0, policy.length(sequences[at])}, [&](const kvc::SlotRun& run) {
        for (Pos i = 0; i < run.count; ++i) {
          const cuda::RowLocation location = batch.view.locate(b, run.first + i);
          REQUIRE(location.block == static_cast<std::int32_t>(run.block));
          REQUIRE(location.slot == run.offset + i);
        }
      });
    }
    return tables.block_tokens;
  };
  kvc::Paged paged({.blocks = 20, .block_tokens = 7});
  REQUIRE(check(paged) == 7);
  kvc::PrefixShared<> shared({.blocks = 20, .block_tokens = 4});
  REQUIRE(check(shared) == 4);
  kvc::Contiguous contiguous({.sequences = 4, .max_tokens = 40});
  REQUIRE(check(contiguous) == kvc::max_pos);
  Untabled untabled({.blocks = 20, .block_tokens = 7});
  REQUIRE(check(untabled) == 1);
  kvc::Synchronized<kvc::Paged> locked({.blocks = 20, .block_tokens = 7});
  REQUIRE(check(locked) == 7);
  kvc::Synchronized<Untabled> locked_untabled({.blocks = 20, .block_tokens = 7});
  REQUIRE(check(locked_untabled) == 1);
}

TEST_CASE("a plan covers every visible position of every sequence once", "[cuda]") {
  Random random(5);
  for (int round = 0; round < 200; ++round) {
    const Pos block_tokens = random.between(1, 40);
    kvc::Retained seen;
    seen.window = random.one_in(3) ? random.between(1, 2000) : 0;
    seen.chunk = random.one_in(4) ? random.between(1, 2000) : 0;
    seen.kept = !seen.everything() && random.one_in(2) ? random.between(1, 1500) : 0;
    const std::int32_t group = random.between(1, 40);
    const std::int32_t narrow = 8 << random.between(0, 2), wide = std::max(narrow, 8 << random.between(0, 2));
    std::vector<std::vector<std::int32_t>> blocks;
    std::vector<Pos> lengths;
    std::int32_t next = 0;
    const int sequences = random.between(0, 12);
    for (int i = 0; i < sequences; ++i) {
      const Pos length = random.one_in(6) ? 0 : random.between(1, 2500);
      std::vector<std::int32_t> own;
      const auto count = static_cast<std::size_t>(kvc::ceil_div(length, block_tokens));
      if (!blocks.empty() && !random.one_in(4)) {  // begins as another does
        own = blocks[static_cast<std::size_t>(random.between<Index>(0, std::ssize(blocks) - 1))];
        own.resize(std::min({own.size(), count, static_cast<std::size_t>(random.between(0, 2500))}));
      }
      while (own.size() < count) {
        own.push_back(next++);
      }
      blocks.push_back(own);
      lengths.push_back(length);
    }
    const kvc::BatchTables tables = tables_of(block_tokens, blocks, lengths);
    const cuda::DecodePlan plan = cuda::make_decode_plan(tables, group, seen, {narrow, wide}, !random.one_in(4));
    std::map<std::array<std::int32_t, 2>, std::set<std::pair<Pos, Pos>>> covered;  // sequence, head of the group
    std::map<std::array<std::int32_t, 2>, std::int32_t> partials;                  // sequence, first position
    const auto visit = [&](const cuda::DecodeItem& item, std::int32_t rows) {
      REQUIRE(item.members * item.heads <= rows);
      REQUIRE(item.first < item.last);
      REQUIRE((item.last - 1) / cuda::split_positions == item.first / cuda::split_positions);
      for (std::int32_t m = 0; m < item.members; ++m) {
        const cuda::DecodeMember member = plan.members[static_cast<std::size_t>(item.first_member + m)];
        const auto b = static_cast<std::size_t>(member.row);
        for (std::int32_t head = 0; head < item.heads; ++head) {
          const bool is_new = covered[{member.row, item.first_head + head}].insert({item.first, item.last}).second;
          REQUIRE(is_new);
        }
        const std::array<std::int32_t, 2> split{member.row, item.first};
        REQUIRE((partials.count(split) == 0 || partials[split] == member.partial));  // the same for all heads
        partials[split] = member.partial;
        for (Pos block = item.first / block_tokens; block <= (item.last - 1) / block_tokens; ++block) {
          REQUIRE(blocks[b][static_cast<std::size_t>(block)] ==
                  blocks[static_cast<std::size_t>(item.sequence)][static_cast<std::size_t>(block)]);
        }
      }
    };
    for (const cuda::DecodeItem& item : plan.narrow) {
      visit(item, narrow);
    }
    for (const cuda::DecodeItem& item : plan.wide) {
      visit(item, wide);
    }
    Index positions = 0;
    for (const Pos length : lengths) {
      for (Pos p = 0; p < length; ++p) {
        positions += p < seen.kept || p >= seen.first_seen(length - 1) ? 1 : 0;
      }
    }
    const cuda::DecodeCapacity most = cuda::decode_capacity(sequences, positions, group, {narrow, wide});
    REQUIRE(plan.partial_begin.back() <= most.partials);
    REQUIRE(std::ssize(plan.members) <= most.partials);
    REQUIRE(std::ssize(plan.narrow) <= most.items);
    REQUIRE(std::ssize(plan.wide) <= most.items);
    for (int b = 0; b < sequences; ++b) {
      const Pos length = lengths[static_cast<std::size_t>(b)];
      const Pos first = length > 0 ? seen.first_seen(length - 1) : 0;
      // Its splits, in the order of their partial results: each position that the row sees lies in one of them.
      std::vector<std::pair<Pos, Pos>> splits;
      const auto add_range = [&](Pos from, Pos to) {
        while (from < to) {
          const Pos end = std::min(to, (from / cuda::split_positions + 1) * cuda::split_positions);
          splits.emplace_back(from, end);
          from = end;
        }
      };
      if (first > seen.kept) {
        add_range(0, seen.kept);
      }
      add_range(first > seen.kept ? first : 0, length);
      const std::int32_t begin = plan.partial_begin[static_cast<std::size_t>(b)];
      REQUIRE(plan.partial_begin[static_cast<std::size_t>(b) + 1] == begin + static_cast<std::int32_t>(splits.size()));
      for (std::int32_t head = 0; head < group; ++head) {
        const bool same = covered[{b, head}] == std::set(splits.begin(), splits.end());
        REQUIRE(same);
      }
      for (std::size_t i = 0; i < splits.size(); ++i) {
        const std::int32_t expected = begin + static_cast<std::int32_t>(i);
        REQUIRE(partials[{b, splits[i].first}] == (splits.size() == 1 ? ~expected : expected));
      }
    }
  }
}

TEST_CASE("a plan in halves computes the same positions, and each half has a place of its own", "[cuda]") {
  Random random(6);
  const auto of = [](const cuda::DecodePlan& plan) {
    // Of each row and head of a group: positions, and the partial result that they go to.
    std::map<std::array<std::int32_t, 3>, std::int32_t> all;
    for (const std::vector<cuda::DecodeItem>* items : {&plan.narrow, &plan.wide}) {
      for (const cuda::DecodeItem& item : *items) {
        for (std::int32_t m = 0; m < item.members; ++m) {
          const cuda::DecodeMember member = plan.members[static_cast<std::size_t>(item.first_member + m)];
          for (std::int32_t head = item.first_head; head < item.first_head + item.heads; ++head) {
            for (Pos p = item.first; p < item.last; ++p) {
              const bool is_new = all.insert({{member.row, head, p}, member.place()}).second;
              REQUIRE(is_new);
            }
          }
        }
      }
    }
    return all;
  };
  for (int round = 0; round < 30; ++round) {
    std::vector<std::vector<std::int32_t>> blocks;
    std::vector<Pos> lengths;
    const int sequences = random.between(1, 5);
    for (int i = 0; i < sequences; ++i) {
      lengths.push_back(random.between(0, 1400));
      std::vector<std::int32_t> own(static_cast<std::size_t>(kvc::ceil_div(lengths.back(), 16)));
      std::iota(own.begin(), own.end(), random.one_in(2) ? 0 : 1000 * i);
      blocks.push_back(own);
    }
    const kvc::Retained seen{.window = random.one_in(3) ? random.between(1, 700) : 0};
    const std::int32_t group = random.between(1, 12);
    const cuda::DecodePlan whole = cuda::make_decode_plan(tables_of(16, blocks, lengths), group, seen, {8, 16});
    cuda::DecodePlan plan = whole;
    cuda::halve(plan);
    REQUIRE((whole.parts == 1 && plan.parts == 2));
    REQUIRE(plan.partial_begin == whole.partial_begin);
    REQUIRE(plan.members.size() <= 2 * whole.members.size());
    REQUIRE(plan.narrow.size() <= 2 * whole.narrow.size());
    REQUIRE(plan.wide.size() <= 2 * whole.wide.size());
    const auto before = of(whole), after = of(plan);
    REQUIRE(before.size() == after.size());
    for (const auto& [at, place] : before) {
      const Pos half = at[2] % cuda::split_positions / cuda::half_positions;
      REQUIRE(after.at(at) == 2 * place + half);
    }
    // Every half that nothing computes is named by the one that is.
    std::set<std::int32_t> computed, empty;
    for (const std::vector<cuda::DecodeItem>* items : {&plan.narrow, &plan.wide}) {
      for (const cuda::DecodeItem& item : *items) {
        REQUIRE(item.first / cuda::half_positions == (item.last - 1) / cuda::half_positions);
        for (std::int32_t m = 0; m < item.members; ++m) {
          const cuda::DecodeMember member = plan.members[static_cast<std::size_t>(item.first_member + m)];
          REQUIRE(member.partial >= 0);
          computed.insert(member.partial);
          if (item.empty != 0) {
            empty.insert(member.partial + item.empty);
          }
        }
      }
    }
    for (std::int32_t place = 0; place < 2 * plan.splits(); ++place) {
      REQUIRE(computed.count(place) + empty.count(place) == 1);
    }
  }
}

TEST_CASE("a plan reads a shared prefix once for as many rows as fit", "[cuda]") {
  std::vector<std::vector<std::int32_t>> blocks(16);
  for (int i = 0; i < 16; ++i) {
    for (int block = 0; block < 64; ++block) {
      blocks[static_cast<std::size_t>(i)].push_back(block);
    }
    blocks[static_cast<std::size_t>(i)].push_back(100 + i);
  }
  const kvc::BatchTables tables = tables_of(16, blocks, std::vector<Pos>(16, 1030));
  const cuda::DecodePlan plan = cuda::make_decode_plan(tables, 4, {}, {8, 32});
  REQUIRE(plan.wide.size() == 4);     // two splits, eight sequences of four heads at a time
  REQUIRE(plan.narrow.size() == 16);  // the end of each
  const cuda::DecodePlan alone = cuda::make_decode_plan(tables, 4, {}, {8, 32}, false);
  REQUIRE(alone.wide.empty());
  REQUIRE(alone.narrow.size() == 48);
}

TEST_CASE("a plan of every row reads the keys before them once for as many rows as fit", "[cuda]") {
  std::vector<std::int32_t> blocks(513);
  std::iota(blocks.begin(), blocks.end(), 0);
  kvc::BatchTables tables = tables_of(16, {blocks, blocks}, {8200, 4});
  tables.q_indptr = {0, 8, 11};
  const cuda::DecodePlan plan = cuda::make_decode_plan(tables, 4, {}, {8, 32}, true, cuda::QueryRows::every);
  REQUIRE(plan.rows() == 11);
  REQUIRE(plan.wide.size() == 16);       // eight rows of four heads at a time
  REQUIRE(plan.narrow.size() == 8 + 3);  // the end of each row, and the short sequence
  REQUIRE(plan.partial_begin.back() == 8 * 17 + 3);
  std::vector<Pos> ends;
  for (const cuda::DecodeItem& item : plan.narrow) {
    ends.push_back(item.last);
  }
  std::sort(ends.begin(), ends.end());
  REQUIRE(ends == std::vector<Pos>{2, 3, 4, 8193, 8194, 8195, 8196, 8197, 8198, 8199, 8200});
  tables.q_indptr = {0, 8, 13};
  REQUIRE_THROWS_WITH(cuda::make_decode_plan(tables, 4, {}, {8, 32}, true, cuda::QueryRows::every),
                      contains("query rows of a sequence is 5"));
}

TEST_CASE("copies wait together unless one needs the other", "[cuda]") {
  std::vector<std::byte> pool(4096);
  const auto copy = [&](int to, int from, Index bytes, Index layers, Index stride) {
    return kvc::GridCopy{pool.data() + to, pool.data() + from, bytes, {layers, 1, 1}, {stride, bytes, bytes}};
  };
  cuda::detail::CopyQueue queue;
  queue.push(copy(0, 1024, 64, 4, 128));                         // [0, 448) by [1024, 1472), half of each 128
  REQUIRE_FALSE(queue.conflicts(copy(64, 1088, 64, 4, 128)));    // the other halves
  REQUIRE_FALSE(queue.conflicts(copy(2048, 1024, 64, 4, 128)));  // reads what the first reads
  REQUIRE(queue.conflicts(copy(2048, 0, 64, 4, 128)));           // reads what it writes
  REQUIRE(queue.conflicts(copy(1024, 2048, 64, 4, 128)));        // writes what it reads
  REQUIRE(queue.conflicts(copy(32, 2048, 16, 4, 128)));          // writes what it writes
  REQUIRE_FALSE(queue.conflicts(copy(2048, 64, 64, 4, 128)));
  REQUIRE(queue.conflicts(copy(2048, 64, 64, 4, 120)));  // another period: by what is spanned
  REQUIRE_FALSE(queue.conflicts(copy(2048, 448, 64, 1, 128)));
}

TEST_CASE("a view of a layer finds the rows of its group", "[cuda]") {
  struct Space : kvc::HostSpace {
    static void flush() {}
  };
  const auto check = [](auto& cache) {
    using Cache = std::remove_reference_t<decltype(cache)>;
    using Storage = typename Cache::Storage;
    for (Index layer = 0; layer < cache.layers().layers(); ++layer) {
      const kvc::LayerPlace place = cache.layers().place(layer);
      const kvc::LayerGroup& group = cache.layers().groups()[static_cast<std::size_t>(place.group)];
      const auto& layout = cache.group_layout(place.group);
      const auto view = cuda::view(cache, layer);
      REQUIRE(view.rule.group == place.group);
      REQUIRE(view.rule.retained == group.retained);
      REQUIRE(view.rule.latent == group.latent);
      REQUIRE(view.rule.cross == (group.cross_rows > 0));
      REQUIRE(view.rule.writable == place.is_owner);
      REQUIRE(view.kv_heads == group.shape.kv_heads);
      REQUIRE(view.key_dim == group.shape.key_dim);
      REQUIRE(view.value_dim == group.shape.value_dim);
      const auto at = [&](std::byte* row) { return reinterpret_cast<Storage*>(row) - cache.data(); };
      for (const int block : {0, 1}) {
        for (Index head = 0; head < group.shape.kv_heads; ++head) {
          for (const Pos slot : {0, 3}) {
            const kvc::BlockId id{block};
            REQUIRE(at(view.k_row(block, head, slot)) == layout.k(id, place.layer, head, slot));
            REQUIRE(at(view.v_row(block, head, slot)) == layout.v(id, place.layer, head, slot));
          }
        }
      }
    }
  };
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 2, .key_dim = 8});
  layers.add({.kv_heads = 1, .key_dim = 24, .value_dim = 16, .window = 4}, 2);
  layers.add({.kv_heads = 1, .key_dim = 16, .value_dim = 8, .latent = true});
  layers.add_reader_of(1);
  layers.add({.kv_heads = 2, .key_dim = 8, .cross_rows = 7});
  kvc::KvCache<float, kvc::Paged, kvc::HeadMajor, Space> paged(layers, {.blocks = 2, .block_tokens = 4});
  check(paged);
  kvc::KvCache<Eigen::half, kvc::Contiguous, kvc::TokenMajor, Space> contiguous(layers,
                                                                                {.sequences = 2, .max_tokens = 40});
  REQUIRE(cuda::view(contiguous, 1).blocks == contiguous.policy().blocks());
  kvc::LayerGroups compressed = layers;
  compressed.add({.kv_heads = 1, .key_dim = 8, .tokens_per_row = 4});
  kvc::KvCache<float, kvc::Paged, kvc::HeadMajor, Space> rows(compressed, {.blocks = 8, .block_tokens = 4});
  REQUIRE_THROWS_WITH(cuda::view(rows, 6), contains("read no compressed rows"));
  kvc::KvCache<kvc::Int8, kvc::Paged, kvc::HeadMajor, Space> bytes(layers, {.blocks = 8, .block_tokens = 4});
  (void)cuda::view(bytes, 0);
  REQUIRE_THROWS_WITH(cuda::view(bytes, 3), contains("read no latent rows of int8"));
  kvc::LayerGroups recurrent = layers;
  recurrent.add_state(100);
  kvc::KvCache<float, kvc::Paged, kvc::HeadMajor, Space> states(recurrent, {.blocks = 8, .block_tokens = 4});
  REQUIRE_THROWS_WITH(cuda::view(states, 6), contains("this one has a recurrent state"));
  REQUIRE_THROWS_WITH(cuda::view(states, 7), contains("layer is 7"));
  REQUIRE_THROWS_WITH(kvc::make_tables(paged.policy(), {}, {}), contains("policy.groups() is 4"));
}

TEST_CASE("states in device memory have addresses there, and queued copies precede them", "[cuda]") {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 8});
  layers.add_state(100, 2);
  const auto check = [](auto& cache) {
    const kvc::SeqId seq = cache.open();
    REQUIRE(cuda::state(cache, 1, seq).empty());
    auto append = cache.extend(seq, kvc::TokenSpan({1, 2, 3, 4, 5}), {2});
    const std::span<const Pos> lengths = cache.states_to_write(append);
    REQUIRE(std::vector<Pos>(lengths.begin(), lengths.end()) == std::vector<Pos>{2, 5});
    const auto* const pool = reinterpret_cast<const std::byte*>(cache.data());
    std::set<const std::byte*> places;
    for (const Pos length : lengths) {
      for (const Index layer : {1, 2}) {
        const int before = cache.space().flushed;
        const std::span<std::byte> state = cuda::state_to_write(cache, layer, append, length);
        REQUIRE(cache.space().flushed == before + 1);
        REQUIRE(state.size() == 100);
        REQUIRE((state.data() - pool) % 64 == 0);
        REQUIRE(state.data() >= pool);
        REQUIRE(state.data() + 100 <= pool + cache.pool_bytes());
        REQUIRE(cuda::state(cache, layer, seq, length).data() == state.data());
        places.insert(state.data());
      }
    }
    REQUIRE(places.size() == 4);
    REQUIRE_THROWS_WITH(cuda::state_to_write(cache, 0, append, 5), contains("a recurrent one"));
    REQUIRE_THROWS_WITH(cuda::state_to_write(cache, 1, append, 4), contains("length is 4"));
    const std::byte* const last = cuda::state(cache, 2, seq, 5).data();
    cache.commit(std::move(append));
    REQUIRE(cuda::state(cache, 2, seq).data() == last);
    const kvc::SeqId fork = cache.fork(seq);
    REQUIRE(cuda::state(cache, 2, fork).data() == last);  // shared: it never changes
  };
  kvc::KvCache<float, kvc::Paged, kvc::HeadMajor, FarSpace> paged(layers, {.blocks = 30, .block_tokens = 4});
  check(paged);
  kvc::KvCache<kvc::Int8, kvc::PrefixShared<>, kvc::HeadMajor, FarSpace> shared(layers,
                                                                                {.blocks = 60, .block_tokens = 4});
  check(shared);
}

TEST_CASE("what the driver answers is asked for once per device", "[cuda]") {
  cuda::detail::PerDevice known;
  int asked = 0;
  const auto answer = [&](int with) { return [&asked, with] { return ++asked, with; }; };
  REQUIRE(known.get(0, answer(0)) == 0);  // 0 is an answer, too
  REQUIRE(known.get(0, answer(7)) == 0);
  REQUIRE(known.get(3, answer(132)) == 132);
  REQUIRE(known.get(3, answer(7)) == 132);
  REQUIRE(asked == 2);
  REQUIRE_THROWS(known.get(1, []() -> int { throw std::runtime_error("no device"); }));
  REQUIRE(known.get(1, answer(5)) == 5);
  REQUIRE(known.get(64, answer(6)) == 6);  // more devices than it keeps numbers of
  REQUIRE(known.get(64, answer(8)) == 8);
}

TEST_CASE("the tensor maps of recent layers are kept, and a displaced one is made again", "[cuda]") {
  cuda::detail::RecentValues<std::pair<int, int>, int> recent(4);
  int made = 0;
  const auto of = [&](int pool, int layer) {
    return recent.get({pool, layer}, static_cast<std::size_t>(layer), [&] { return ++made, 100 * pool + layer; });
  };
  for (int round = 0; round < 3; ++round) {
    for (int layer = 0; layer < 4; ++layer) {
      REQUIRE(of(1, layer) == 100 + layer);
    }
  }
  REQUIRE(made == 4);
  REQUIRE(of(1, 5) == 105);  // displaces layer 1
  REQUIRE(of(2, 0) == 200);  // the same place, another key
  REQUIRE(of(1, 1) == 101);
  REQUIRE(of(1, 3) == 103);
  REQUIRE(made == 7);
}
