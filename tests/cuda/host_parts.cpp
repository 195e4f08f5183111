// Code that host and kernels share: divisors, formats, strides, tables, plans, and conflicts between copies.
#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "catch.hpp"
#include "decode_case.hpp"
#include "kvc/cuda/copy_queue.hpp"
#include "kvc/cuda/decode_plan.hpp"
#include "kvc/cuda/remembered.hpp"
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
  REQUIRE(cuda::kernel_scale({}, 64) == 0.125F);
  REQUIRE(cuda::kernel_scale({.scale = 3.0F}, 64) == 3.0F);
  REQUIRE_THROWS_WITH(cuda::kernel_scale({.mask = kvc::AttentionMask::additive(zeros, 1, 1, 4)}, 64), contains("mask"));
  REQUIRE_THROWS_WITH(cuda::kernel_scale({.sinks = zeros}, 64), contains("sinks.size() is 4, must be 0 on a GPU"));
  REQUIRE_THROWS_WITH(cuda::kernel_scale({.chunk = 8}, 64), contains("chunk is 8, must be 0 on a GPU"));
  REQUIRE_THROWS_WITH(cuda::kernel_scale({.window = 8, .kept = 4}, 64), contains("kept is 4, must be 0 on a GPU"));
  REQUIRE_THROWS_WITH(cuda::kernel_scale({.keys = {0, 5}}, 64), contains("keys"));
  REQUIRE_THROWS_WITH(cuda::kernel_scale({.window = -1}, 64), contains("window"));
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
    const Pos block_tokens = random.between(1, 40), window = random.one_in(3) ? random.between(1, 2000) : 0;
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
    const cuda::DecodePlan plan = cuda::make_decode_plan(tables, group, window, {narrow, wide}, !random.one_in(4));
    std::map<std::array<std::int32_t, 3>, int> covered;  // sequence, split, head of the group
    std::map<std::array<std::int32_t, 2>, std::pair<Pos, Pos>> ranges;
    const auto visit = [&](const cuda::DecodeItem& item, std::int32_t rows) {
      REQUIRE(item.members * item.heads <= rows);
      REQUIRE(item.first < item.last);
      const Pos split = item.first / cuda::split_positions;
      REQUIRE((item.last - 1) / cuda::split_positions == split);
      for (std::int32_t m = 0; m < item.members; ++m) {
        const cuda::DecodeMember member = plan.members[static_cast<std::size_t>(item.first_member + m)];
        const auto b = static_cast<std::size_t>(member.sequence);
        for (std::int32_t head = 0; head < item.heads; ++head) {
          ++covered[{member.sequence, split, item.first_head + head}];
        }
        ranges[{member.sequence, split}] = {item.first, item.last};
        const Pos first_split = (window > 0 ? std::max(lengths[b] - window, 0) : 0) / cuda::split_positions;
        const std::int32_t count = plan.partial_begin[b + 1] - plan.partial_begin[b];
        REQUIRE(member.partial == (count == 1 ? -1 : plan.partial_begin[b] + split - first_split));
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
    const Index positions = std::accumulate(lengths.begin(), lengths.end(), Index{0});
    const cuda::DecodeCapacity most = cuda::decode_capacity(sequences, positions, group, {narrow, wide});
    REQUIRE(plan.partial_begin.back() <= most.partials);
    REQUIRE(std::ssize(plan.members) <= most.partials);
    REQUIRE(std::ssize(plan.narrow) <= most.items);
    REQUIRE(std::ssize(plan.wide) <= most.items);
    std::size_t expected = 0;
    for (int b = 0; b < sequences; ++b) {
      const Pos length = lengths[static_cast<std::size_t>(b)];
      Pos at = window > 0 ? std::max(length - window, 0) : 0;
      while (at < length) {
        const Pos split = at / cuda::split_positions, end = std::min(length, (split + 1) * cuda::split_positions);
        REQUIRE(ranges[{b, split}] == std::pair(at, end));
        for (std::int32_t head = 0; head < group; ++head) {
          REQUIRE(covered[{b, split, head}] == 1);
          ++expected;
        }
        at = end;
      }
    }
    REQUIRE(covered.size() == expected);
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
  const cuda::DecodePlan plan = cuda::make_decode_plan(tables, 4, 0, {8, 32});
  REQUIRE(plan.wide.size() == 4);     // two splits, eight sequences of four heads at a time
  REQUIRE(plan.narrow.size() == 16);  // the end of each
  const cuda::DecodePlan alone = cuda::make_decode_plan(tables, 4, 0, {8, 32}, false);
  REQUIRE(alone.wide.empty());
  REQUIRE(alone.narrow.size() == 48);
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

TEST_CASE("a view of a cache with layer groups is refused", "[cuda]") {
  struct Space : kvc::HostSpace {
    static void flush() {}
  };
  using Cache = kvc::KvCache<float, kvc::Paged, kvc::HeadMajor, Space>;
  const kvc::Shape shape{.layers = 2, .kv_heads = 1, .key_dim = 8};
  Cache plain(shape, {.blocks = 2, .block_tokens = 4});
  REQUIRE(cuda::view(plain, 1).blocks == 2);
  kvc::LayerGroups windows;
  windows.add({.kv_heads = 1, .key_dim = 8, .window = 4}, 2);
  kvc::LayerGroups reader(shape);
  reader.add_reader_of(0);
  for (const kvc::LayerGroups& layers : {windows, reader}) {
    Cache cache(layers, {.blocks = 2, .block_tokens = 4});
    REQUIRE_THROWS_WITH(cuda::view(cache, 1), contains("cuda::view knows no other"));
  }
  Cache cache(windows, {.blocks = 2, .block_tokens = 4});
  REQUIRE_THROWS_WITH(kvc::make_tables(cache.policy(), {}, {}), contains("policy.groups() is 1"));
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
