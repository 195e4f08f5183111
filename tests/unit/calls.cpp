// Calls as their users write them.
#include <Eigen/Core>
#include <array>
#include <vector>

#include "catch.hpp"
#include "kvc/attention/extern.hpp"  // the kernels are compiled once, for all tests
#include "kvc/kvc.hpp"

namespace {
using namespace kvc;
using kvc_test::contains;
using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Cache = KvCache<float, PrefixShared<>>;
const Shape shape{.layers = 1, .kv_heads = 2, .key_dim = 4};

/// The rows of layer 0, written and read back.
Rows keys_of(const Cache& cache, SeqId seq) {
  Rows k(cache.length(seq), 8), v(cache.length(seq), 8);
  cache.gather(0, seq, {0, cache.length(seq)}, k, v);
  return k;
}
}  // namespace

TEST_CASE("A sequence is opened with nothing, a list, tokens or options", "[cache][calls]") {
  Cache cache(shape, {.blocks = 64, .block_tokens = 4});
  const std::vector<Token> prompt{1, 2, 3, 4, 5, 6};
  const Opened first = cache.open(prompt);
  cache.commit(cache.extend(first, prompt));
  REQUIRE(cache.open({1, 2, 3, 4, 5}).cached == 4);
  REQUIRE(cache.open(std::array<Token, 5>{1, 2, 3, 4, 9}).cached == 4);
  REQUIRE(cache.open(std::span(prompt).first(5)).cached == 4);
  REQUIRE(cache.open({1, 2, 3, 4, 5}, {.salt = Salt(SaltKind::tenant, "another")}).cached == 0);
  REQUIRE(cache.open({}).cached == 0);
  REQUIRE(cache.open().cached == 0);
  REQUIRE(cache.open({}, {}).cached == 0);
  REQUIRE(cache.try_open({1, 2, 3, 4, 5})->cached == 4);
  REQUIRE(cache.try_open({})->cached == 0);
  REQUIRE(cache.try_open()->cached == 0);
  REQUIRE(cache.stats().sequences == 11);
  REQUIRE(cache.match_length({1, 2, 3, 4, 5}) == 4);
  REQUIRE(cache.admission({1, 2, 3}) == Admission::now);
  REQUIRE(cache.can_admit({1, 2, 3}, 4));
  REQUIRE(cache.try_pin({1, 2, 3, 4})->tokens == 4);

  KvCache<float, Contiguous> reserving(shape, {.sequences = 2, .max_tokens = 10});
  const SeqId short_one = reserving.open({.max_tokens = 3});
  REQUIRE_FALSE(reserving.try_extend(short_one, 4));
  REQUIRE(reserving.try_open({.max_tokens = 10}).has_value());
}

TEST_CASE("A sequence is extended by a list, and by what open returns", "[cache][calls]") {
  Cache cache(shape, {.blocks = 64, .block_tokens = 4});
  const auto opened = cache.open({1, 2, 3});
  Cache::Append append;  // empty
  REQUIRE_FALSE(append.uncommitted());
  REQUIRE(append.size() == 0);
  append.rollback();
  REQUIRE_THROWS_WITH(cache.commit(std::move(append)), contains("append is"));
  append = cache.extend(opened, {1, 2, 3});
  REQUIRE(append.size() == 3);
  cache.commit(std::move(append));
  cache.commit(cache.extend(opened, {4}));  // one token, not four positions
  REQUIRE(cache.length(opened) == 4);
  REQUIRE(cache.try_extend(opened, {5, 6})->size() == 2);
  REQUIRE(cache.try_extend(opened, {})->size() == 0);
  REQUIRE(opened == opened.seq);
}

TEST_CASE("A length that a sequence cannot have is refused with the length it has", "[cache][calls]") {
  Cache cache(shape, {.blocks = 64, .block_tokens = 4});
  const SeqId seq = cache.open();
  cache.commit(cache.extend_without_tokens(seq, 6));
  REQUIRE_THROWS_WITH(cache.truncate(seq, -1),
                      contains("length is -1, must be between 0 and 6, the length of the sequence"));
  REQUIRE_THROWS_WITH(cache.truncate(seq, 7U), contains("length is 7, must be between 0 and 6"));
  REQUIRE_THROWS_WITH(cache.truncate(seq, std::size_t{1} << 40),
                      contains("length is 1099511627776, must be between 0 and 6"));
  REQUIRE_THROWS_WITH(cache.fork(seq, 7), contains("at is 7, must be between 0 and 6"));
  REQUIRE_THROWS_WITH(cache.truncate(SeqId{}, 0), contains("an open sequence"));
  REQUIRE(cache.length(seq) == 6);
  REQUIRE(cache.length(cache.fork(seq, 6)) == 6);
}

TEST_CASE("Rows are Eigen expressions, matrices, maps and blocks", "[cache][calls]") {
  Cache cache(shape, {.blocks = 64, .block_tokens = 4});
  const Rows x = Rows::Random(3, 8), w = Rows::Random(8, 8);
  const auto stored = [&](auto&& k, const Rows& expected) {
    const SeqId seq = cache.open();
    auto step = cache.extend_without_tokens(seq, expected.rows());
    cache.write(0, step, k, k);
    cache.commit(std::move(step));
    CHECK(keys_of(cache, seq) == expected);
  };
  stored(x, x);
  stored(x * 2.0F, x * 2.0F);
  stored(x.topRows(2), x.topRows(2));
  stored((x * 2.0F).topRows(2), (x * 2.0F).topRows(2));
  stored(x * w.transpose(), x * w.transpose());  // a column-major product
  stored(x + x.reverse(), x + x.reverse());
  stored(x.array() + 1, x.array() + 1);
  stored(Eigen::Map<const Rows>(x.data(), 3, 8), x);
  stored(Eigen::Map<const Rows, 0, Eigen::OuterStride<>>(w.data(), 4, 8, Eigen::OuterStride<>(16)),
         Eigen::Map<const Rows, 0, Eigen::OuterStride<>>(w.data(), 4, 8, Eigen::OuterStride<>(16)));
  stored(Rows::Constant(2, 8, 3), Rows::Constant(2, 8, 3));
  stored(Eigen::RowVectorXf::Ones(8), Eigen::RowVectorXf::Ones(8));
  stored((x * 2.0F).eval(), x * 2.0F);
}

TEST_CASE("Attention takes a vector of views and an expression for q", "[attention][calls]") {
  Cache cache(shape, {.blocks = 64, .block_tokens = 4});
  std::vector<Cache::View> views;
  for (int i = 0; i < 3; ++i) {
    const SeqId seq = cache.open();
    auto step = cache.extend_without_tokens(seq, 5);
    cache.write(0, step, Rows::Random(5, 8), Rows::Random(5, 8));
    cache.commit(std::move(step));
    views.push_back(cache.view(0, seq));
  }
  const Rows q = Rows::Random(3, 8);
  const Rows scaled = q * 0.5F;
  Rows expected(3, 8), out(3, 8);
  decode(std::span<const Cache::View>(views), scaled, expected);
  decode(views, q * 0.5F, out);
  REQUIRE(out == expected);
  prefill(views[0], {4, 5}, (q * 0.5F).topRows(1), out.topRows(1));
  REQUIRE(out.topRows(1) == expected.topRows(1));
  reference(views[1], {4, 5}, (q * 0.5F).middleRows(1, 1), out.topRows(1));
  REQUIRE(out.topRows(1).isApprox(expected.middleRows(1, 1), 1e-5F));
}
