// A layout of the user's own, in a cache: rows and attention have the bits that they have with HeadMajor.
#include "user_layout.hpp"

#include <Eigen/Core>
#include <concepts>
#include <vector>

#include "attend.hpp"
#include "catch.hpp"
#include "kvc/attention/extern.hpp"  // the kernels are compiled once, for all tests
#include "kvc/kvc.hpp"

namespace {
using namespace kvc;
using kvc_test::contains;
using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr Shape shape{.layers = 3, .kv_heads = 2, .key_dim = 36, .value_dim = 20};

/// Two sequences with a shared tail, and the attention of both.
struct Outputs {
  std::vector<Rows> all;
  friend bool operator==(const Outputs&, const Outputs&) = default;
};

template <class T, class P, class L>
Outputs outputs(const typename P::Config& config) {
  KvCache<T, P, L> cache(shape, config);
  srand(7);  // Eigen's Random
  const Rows k = Rows::Random(23, 72), v = Rows::Random(23, 40), q = Rows::Random(2, 4 * 36);
  const SeqId parent = cache.open();
  const auto append = [&](SeqId seq, Index first, Index count) {
    auto step = cache.extend(seq, count);
    for (Index layer = 0; layer < 3; ++layer) {
      const auto factor = static_cast<float>(layer + 1);
      cache.write(layer, step, k.middleRows(first, count) * factor, v.middleRows(first, count) * factor);
    }
    cache.commit(std::move(step));
  };
  append(parent, 0, 10);
  const SeqId child = cache.fork(parent, 9);
  append(child, 10, 5);  // copies what it shares of a block
  append(parent, 15, 8);
  Outputs found;
  for (Index layer = 0; layer < 3; ++layer) {
    for (const SeqId seq : {parent, child}) {
      Rows k_out(cache.length(seq), 72), v_out(cache.length(seq), 40);
      cache.gather(layer, seq, {0, cache.length(seq)}, k_out, v_out);
      found.all.push_back(k_out);
      found.all.push_back(v_out);
    }
    Rows out(2, 4 * 20);
    const std::vector views{cache.view(layer, parent), cache.view(layer, child)};
    if constexpr (std::same_as<L, kvc_test::Interleaved>) {
      decode(views, q, out);
    } else {  // by code that is compiled once
      kvc_test::Attend<T>::decode(std::vector<kvc_test::AnyView<T>>(views.begin(), views.end()), q, out);
    }
    found.all.push_back(out);
  }
  return found;
}
}  // namespace

TEMPLATE_TEST_CASE("Any layout gives the bits of HeadMajor", "[layout][cache]", TokenMajor, LayerMajor<>,
                   LayerMajor<HeadMajor>, kvc_test::Interleaved, kvc_test::LayersFirst) {
  const Paged::Config paged{.blocks = 20, .block_tokens = 4};
  REQUIRE(outputs<float, Paged, TestType>(paged) == outputs<float, Paged, HeadMajor>(paged));
  const Contiguous::Config contiguous{.sequences = 2, .max_tokens = 40};
  REQUIRE(outputs<Int4, Contiguous, TestType>(contiguous) == outputs<Int4, Contiguous, HeadMajor>(contiguous));
}

namespace {
/// The rows of a cache with a window group beside one of full attention, after the window has dropped some.
template <class T, class P, class L>
std::vector<Rows> rows_of_groups(const typename P::Config& config) {
  LayerGroups layers;
  layers.add({.kv_heads = 2, .key_dim = 6, .value_dim = 3, .window = 5}, 2);
  layers.add({.kv_heads = 1, .key_dim = 8}, 3);
  KvCache<T, P, L> cache(layers, config);
  srand(11);
  const SeqId first = cache.open(), second = cache.open();
  std::vector<Rows> found;
  for (int round = 0; round < 6; ++round) {
    for (const SeqId seq : {first, second}) {
      auto step = cache.extend(seq, 3);
      for (Index layer = 0; layer < 5; ++layer) {
        const bool window = layer < 2;
        cache.write(layer, step, Rows::Random(3, window ? 12 : 8), Rows::Random(3, window ? 6 : 8));
      }
      cache.commit(std::move(step));
    }
  }
  for (const SeqId seq : {first, second}) {
    for (Index layer = 0; layer < 5; ++layer) {
      const bool window = layer < 2;
      const PosRange range{window ? 14 : 0, 18};
      found.emplace_back(range.size(), window ? 12 : 8);
      found.emplace_back(range.size(), window ? 6 : 8);
      cache.gather(layer, seq, range, found[found.size() - 2], found[found.size() - 1]);
    }
  }
  return found;
}
}  // namespace

TEMPLATE_TEST_CASE("Any layout holds layer groups", "[layout][cache][groups]", TokenMajor, LayerMajor<>,
                   LayerMajor<HeadMajor>, kvc_test::Interleaved, kvc_test::LayersFirst) {
  const Paged::Config paged{.blocks = 24, .block_tokens = 4};  // a pool that the groups share
  REQUIRE(rows_of_groups<float, Paged, TestType>(paged) == rows_of_groups<float, Paged, HeadMajor>(paged));
  const Contiguous::Config contiguous{.sequences = 2, .max_tokens = 40};  // a pool for each group
  REQUIRE(rows_of_groups<Int4, Contiguous, TestType>(contiguous) ==
          rows_of_groups<Int4, Contiguous, HeadMajor>(contiguous));
}

TEST_CASE("A layout whose rows overlap is refused when the cache is constructed", "[layout][cache]") {
  using Cache = KvCache<Int8, Paged, kvc_test::ValueIsKey>;
  REQUIRE_THROWS_AS(Cache(shape, {.blocks = 4}), InvariantError);
  REQUIRE_THROWS_WITH(Cache(shape, {.blocks = 4}),
                      contains("layout value is key: the key of block 0, layer 0, head 0, slot 0 overlaps the value"));
}
