// KvCache: errors, lifetimes, and memory larger than 32 bits can count.
#include "kvc/cache.hpp"

#include <Eigen/Core>
#include <atomic>
#include <limits>
#include <thread>

#include "catch.hpp"
#include "kvc/batch.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {
using namespace kvc;
using kvc_test::contains;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr Shape small{.layers = 2, .kv_heads = 2, .key_dim = 4, .value_dim = 3};
}  // namespace

TEST_CASE("A bad shape is refused with its name and value", "[cache]") {
  using Cache = KvCache<float, Paged>;
  const Paged::Config config{.blocks = 4};
  REQUIRE_THROWS_WITH(Cache({.layers = 0, .key_dim = 1}, config), contains("shape.layers is 0"));
  REQUIRE_THROWS_WITH(Cache({.kv_heads = -1, .key_dim = 1}, config), contains("shape.kv_heads is -1"));
  REQUIRE_THROWS_WITH(Cache({.key_dim = 0}, config), contains("shape.key_dim is 0"));
  REQUIRE_THROWS_WITH(Cache({.key_dim = 1, .value_dim = -1}, config), contains("shape.value_dim is -1"));
  REQUIRE_THROWS_WITH(Cache({.key_dim = 1}, {.blocks = 0}), contains("config.blocks is 0"));
  REQUIRE_THROWS_WITH(Cache({.key_dim = 1}, {.blocks = 1, .block_tokens = 0}), contains("config.block_tokens is 0"));
  REQUIRE_THROWS_WITH(Cache({.layers = 1 << 24, .kv_heads = 1 << 24, .key_dim = 1 << 24}, config),
                      contains("shape.layers is 16777216") && contains("at most 2^28 elements in a token"));
  // A token of 2^28 elements is allowed, a pool of 2^61 is not.
  REQUIRE_THROWS_WITH(Cache({.layers = 1 << 15, .key_dim = 1 << 12}, {.blocks = 1 << 13, .block_tokens = 1 << 20}),
                      contains("pool size"));
  REQUIRE_THROWS_WITH((KvCache<float, PrefixShared<>>({.key_dim = 1}, {.blocks = 1, .block_tokens = -2})),
                      contains("config.block_tokens is -2"));
}

TEST_CASE("value_dim is key_dim unless it is given", "[cache]") {
  const KvCache<float, Paged> cache({.key_dim = 8}, {.blocks = 1});
  REQUIRE(cache.shape().value_dim == 8);
  REQUIRE(cache.bytes_per_token() == 2 * 8 * 4);
}

TEST_CASE("Misuse of write and commit is refused and changes nothing", "[cache]") {
  KvCache<float, Paged> cache(small, {.blocks = 8, .block_tokens = 4});
  KvCache<float, Paged> other(small, {.blocks = 8, .block_tokens = 4});
  const SeqId seq = cache.open();
  auto step = cache.extend(seq, 3);
  const Matrix k = Matrix::Zero(3, 8);
  const Matrix v = Matrix::Zero(3, 6);
  REQUIRE_THROWS_WITH(cache.write(2, step, k, v), contains("layer is 2"));
  REQUIRE_THROWS_WITH(cache.write(-1, step, k, v), contains("layer is -1"));
  REQUIRE_THROWS_WITH(cache.write(0, step, k.topRows(2), v), contains("k is [2, 8], must be [3, 8]"));
  REQUIRE_THROWS_WITH(cache.write(0, step, k, k), contains("v is [3, 8], must be [3, 6]"));
  REQUIRE_THROWS_WITH(other.write(0, step, k, v), contains("append is"));
  REQUIRE_THROWS_WITH(other.commit(std::move(step)), contains("append is"));
  cache.write(0, step, k, v);
  cache.write(1, step, k, v);
  REQUIRE(step.uncommitted());
  cache.commit(std::move(step));
  REQUIRE_FALSE(step.uncommitted());  // NOLINT: the point
  REQUIRE(step.size() == 0);
  REQUIRE_THROWS_WITH(cache.commit(std::move(step)), contains("append is"));  // NOLINT: the point
  REQUIRE_THROWS_WITH(cache.view(5, seq), contains("layer is 5"));
  REQUIRE_THROWS_AS(cache.view(0, SeqId{}), std::invalid_argument);
  Matrix k_out(2, 8);
  Matrix v_out(2, 6);
  REQUIRE_THROWS_AS(cache.gather(0, seq, {2, 4}, k_out, v_out), std::invalid_argument);
  REQUIRE_THROWS_WITH(cache.gather(0, seq, {2, 1}, k_out, v_out), contains("range is [2, 1)"));
  REQUIRE_THROWS_AS(cache.gather(0, seq, {std::numeric_limits<Pos>::min(), max_pos}, k_out, v_out),
                    std::invalid_argument);
  REQUIRE(cache.length(seq) == 3);
  cache.verify();
}

TEST_CASE("The plain forms throw where the try_ forms give nothing", "[cache]") {
  KvCache<float, Contiguous> cache(small, {.sequences = 1, .max_tokens = 4});
  const SeqId seq = cache.open();
  REQUIRE_FALSE(cache.try_open());
  REQUIRE_THROWS_AS(cache.open(), CapacityError);
  REQUIRE_FALSE(cache.try_extend(seq, 5));
  REQUIRE_THROWS_AS(cache.extend(seq, 5), std::bad_alloc);
  REQUIRE_THROWS_WITH(cache.extend(seq, 5), contains("no room to extend by 5 tokens"));
  REQUIRE_THROWS_AS(cache.fork(seq), CapacityError);
  REQUIRE_THROWS_WITH(cache.extend(seq, -1), contains("count is -1"));
  REQUIRE_THROWS_WITH(cache.extend(seq, std::int64_t{1} << 40), contains("count is 1099511627776"));
  cache.verify();
}

TEST_CASE("An Append that is not committed takes its rows back", "[cache]") {
  KvCache<float, Paged> cache(small, {.blocks = 8, .block_tokens = 4});
  const SeqId seq = cache.open();
  {
    const auto step = cache.extend(seq, 7);
  }
  REQUIRE(cache.length(seq) == 0);
  REQUIRE(cache.stats().blocks_free == 8);

  auto a = cache.extend(seq, 2);
  auto b = std::move(a);
  REQUIRE(b.range() == PosRange{0, 2});
  cache.commit(std::move(b));
  REQUIRE(cache.length(seq) == 2);

  const SeqId doomed = cache.open();
  auto c = cache.extend(doomed, 20);
  REQUIRE(cache.stats().blocks_free == 2);
  cache.close(doomed);  // a request is aborted in the middle of a step
  REQUIRE(cache.stats().blocks_free == 7);
  REQUIRE_THROWS_AS(cache.commit(std::move(c)), std::invalid_argument);
  const SeqId next = cache.open();  // may have the slot of the closed one
  auto d = cache.extend(next, 3);
  c.rollback();
  REQUIRE(cache.policy().reserved(next) == 3);
  cache.verify();

  d = cache.extend(seq, 1);  // assigning over one takes the old rows back
  REQUIRE(cache.policy().reserved(next) == 0);
  cache.commit(std::move(d));
  REQUIRE(cache.length(seq) == 3);
  cache.verify();
}

TEMPLATE_TEST_CASE("Rows in 16 bits are rounded to nearest, and taken as they come when they are in 16 bits already",
                   "[cache]", Eigen::half, Eigen::bfloat16) {
  KvCache<TestType, Paged> cache({.kv_heads = 1, .key_dim = 3}, {.blocks = 2, .block_tokens = 2});
  using Rows = Eigen::Matrix<TestType, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const SeqId seq = cache.open();
  const Matrix k = Matrix::Random(2, 3);
  auto step = cache.extend(seq, 2);
  cache.write(0, step, k, k);
  cache.commit(std::move(step));
  const Rows k16 = k.template cast<TestType>();
  step = cache.extend(seq, 2);
  cache.write(0, step, k16, k16);
  cache.commit(std::move(step));
  Matrix k_out(4, 3);
  Matrix v_out(4, 3);
  cache.gather(0, seq, {0, 4}, k_out, v_out);
  REQUIRE(k_out.topRows(2) == k16.template cast<float>());
  REQUIRE(k_out.bottomRows(2) == k16.template cast<float>());
  REQUIRE(v_out == k_out);
}

TEMPLATE_TEST_CASE("Offsets are 64-bit", "[cache]", HeadMajor, TokenMajor) {
  // A pool of 2^32 + 2^21 elements, of which only the first and the last block are ever touched.
  constexpr Index dim = 1 << 20;
  using Cache = KvCache<Eigen::half, Paged, TestType>;
  Cache cache({.layers = 2, .kv_heads = 2, .key_dim = dim, .value_dim = 1}, {.blocks = 1025, .block_tokens = 1});
  REQUIRE(cache.layout().size() > (Index{1} << 32));
  const SeqId seq = cache.open();
  const Matrix v = Matrix::Constant(1, 2, 3);
  for (int token = 0; token < 1025; ++token) {
    auto step = cache.extend(seq, 1);
    if (token == 0 || token == 1024) {
      const Matrix k = Matrix::Constant(1, 2 * dim, static_cast<float>(token + 1));
      cache.write(0, step, k, v);
      const Matrix next = k.array() + 1;
      cache.write(1, step, next, v);
    }
    cache.commit(std::move(step));
  }
  for (const Pos token : {0, 1024}) {
    Matrix k_out(1, 2 * dim);
    Matrix v_out(1, 2);
    cache.gather(1, seq, {token, token + 1}, k_out, v_out);
    const auto expected = static_cast<float>(Eigen::half(static_cast<float>(token + 2)));
    REQUIRE((k_out.array() == expected).all());
    REQUIRE(v_out == v);
  }
  Index offset = 0;
  cache.view(1, seq).for_each_run(1, {1024, 1025}, [&](const auto& run) { offset = run.k - cache.data(); });
  REQUIRE(offset > (Index{1} << 32));
}

namespace {
/// A space whose copies fail once it is told so, as those of a device may.
struct FailingSpace : HostSpace {
  const bool* fail;
  explicit FailingSpace(const bool& f) : fail(&f) {}
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) {
    if (*fail) {
      throw std::runtime_error("copy failed");
    }
    HostSpace::copy(to, from, bytes);
  }
};
}  // namespace

TEMPLATE_TEST_CASE("A copy that fails changes nothing", "[cache][failure]", Contiguous, Paged) {
  bool fail = false;
  typename TestType::Config config;
  if constexpr (std::same_as<TestType, Contiguous>) {
    config = {.sequences = 3, .max_tokens = 20, .pool_tokens = 60, .mode = Contiguous::Mode::grow, .growth_tokens = 1};
  } else {
    config = {.blocks = 8, .block_tokens = 4};
  }
  KvCache<float, TestType, HeadMajor, FailingSpace> cache({.key_dim = 2}, config, FailingSpace(fail));
  const SeqId a = cache.open();
  auto step = cache.extend(a, 3);
  Matrix rows = Matrix::Random(3, 2);
  cache.write(0, step, rows, rows);
  cache.commit(std::move(step));
  const SeqId b = cache.fork(a);  // in the way of a contiguous one, sharing the tail of a paged one
  const auto free = cache.stats().blocks_free;
  fail = true;
  REQUIRE_THROWS_AS(cache.extend(a, 4), std::runtime_error);
  REQUIRE(cache.stats().blocks_free == free);
  if constexpr (std::same_as<TestType, Contiguous>) {
    REQUIRE_THROWS_AS(cache.fork(a), std::runtime_error);
  }
  REQUIRE(cache.stats().sequences == 2);
  cache.verify();
  fail = false;
  for (const SeqId seq : {a, b}) {
    Matrix k(3, 2);
    Matrix v(3, 2);
    cache.gather(0, seq, {0, 3}, k, v);
    REQUIRE(k == rows);
    REQUIRE(v == rows);
  }
}

TEST_CASE("A batch follows blocks that a commit has merged, and takes no finished append", "[batch]") {
  KvCache<float, PrefixShared<>> cache({.key_dim = 1}, {.blocks = 16, .block_tokens = 4});
  using Append = decltype(cache)::Append;
  const std::vector<Token> prompt{1, 2, 3, 4, 5};
  const Opened a = cache.open(prompt);
  const Opened b = cache.open(prompt);
  Append first = cache.extend(a.seq, prompt);
  Append second = cache.extend(b.seq, prompt);
  cache.commit(std::move(first));
  cache.commit(std::move(second));
  std::vector<Append> steps;
  steps.push_back(cache.extend_without_tokens(a.seq, 1));
  steps.push_back(cache.extend_without_tokens(b.seq, 1));
  const BatchIndex batch = make_batch(cache, steps);
  REQUIRE(batch.kv_indices[0] == batch.kv_indices[2]);
  REQUIRE(batch.kv_indices[1] != batch.kv_indices[3]);
  steps[1].rollback();
  REQUIRE_THROWS_WITH(make_batch(cache, steps), contains("append is finished"));
}

TEST_CASE("A batch has the same tables in both forms", "[batch]") {
  using Cache = KvCache<float, Paged>;
  Cache cache(small, {.blocks = 16, .block_tokens = 4});
  const std::vector<Pos> lengths{4, 9, 0, 1};
  std::vector<Cache::Append> steps;
  for (const Pos length : lengths) {
    const SeqId seq = cache.open();
    cache.commit(cache.extend_without_tokens(seq, length));
    steps.push_back(cache.extend_without_tokens(seq, length == 0 ? 0 : 2));
  }
  const BatchIndex batch = make_batch(cache, steps);
  REQUIRE(batch.size() == 4);
  REQUIRE(batch.block_tokens == 4);
  REQUIRE(batch.max_blocks == 3);
  REQUIRE(batch.q_indptr == std::vector<std::int32_t>{0, 2, 4, 4, 6});
  REQUIRE(batch.seq_lens == std::vector<std::int32_t>{6, 11, 0, 3});
  REQUIRE(batch.kv_indptr == std::vector<std::int32_t>{0, 2, 5, 5, 6});
  REQUIRE(batch.last_page_len == std::vector<std::int32_t>{2, 3, 0, 3});
  for (std::size_t i = 0; i < 4; ++i) {
    // Every position is where the policy says, by either form.
    cache.policy().for_each_run(steps[i].seq(), {0, batch.seq_lens[i]}, [&](const SlotRun& run) {
      const auto entry = static_cast<std::size_t>(run.first / batch.block_tokens);
      const auto block = static_cast<std::int32_t>(run.block);
      REQUIRE(batch.kv_indices[static_cast<std::size_t>(batch.kv_indptr[i]) + entry] == block);
      REQUIRE(batch.block_table[i * static_cast<std::size_t>(batch.max_blocks) + entry] == block);
    });
  }
  REQUIRE(batch.block_table[2] == BatchIndex::padding);
  REQUIRE_THROWS_AS(make_batch(cache.policy(), std::vector<SeqId>{SeqId{}}, std::vector<Pos>{1}),
                    std::invalid_argument);
  REQUIRE_THROWS_AS(make_batch(cache.policy(), std::vector<SeqId>{}, std::vector<Pos>{1}), std::invalid_argument);
}

TEST_CASE("Distinct sequences may be written, and all read, at the same time", "[cache][threads]") {
  KvCache<float, PrefixShared<>> cache(small, {.blocks = 64, .block_tokens = 4});
  using Append = decltype(cache)::Append;
  std::vector<Append> steps;
  const std::vector<Token> shared{1, 2, 3, 4, 5, 6, 7, 8, 9};
  for (int i = 0; i < 4; ++i) {
    const Opened opened = cache.open(shared);
    std::vector<Token> rest(shared.begin() + opened.cached, shared.end());
    rest.resize(rest.size() + 10, i);
    steps.push_back(cache.extend(opened.seq, rest));
    if (i == 0) {
      const Matrix ones = Matrix::Ones(19, 8);
      cache.write(0, steps[0], ones, ones.leftCols(6));
      cache.write(1, steps[0], ones, ones.leftCols(6));
      cache.commit(std::move(steps[0]));
      steps[0] = cache.extend_without_tokens(opened.seq, 5);
    }
  }
  std::atomic<int> right = 0;  // assertions are not for several threads
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      const Append& step = steps[static_cast<std::size_t>(i)];
      const Matrix k = Matrix::Constant(step.size(), 8, static_cast<float>(i));
      const Matrix v = Matrix::Constant(step.size(), 6, static_cast<float>(i));
      for (Index layer = 0; layer < 2; ++layer) {
        cache.write(layer, step, k, v);
        Matrix k_out(step.range().last, 8);
        Matrix v_out(step.range().last, 6);
        cache.gather(layer, step.seq(), {0, step.range().last}, k_out, v_out);
        (void)cache.stats();
        cache.verify();
        right += k_out.bottomRows(step.size()) == k && v_out.bottomRows(step.size()) == v ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  REQUIRE(right == 4 * 2);
  for (Append& step : steps) {
    cache.commit(std::move(step));
  }
  cache.verify();
}

namespace {
template <class C>
constexpr bool can_clear = requires(C& cache) { cache.clear(); };
}  // namespace

TEST_CASE("A cache passes on what a prefix-sharing policy offers", "[cache][prefix]") {
  using Cache = KvCache<float, PrefixShared<Lru, ChainHash, EventRing>>;
  Cache cache({.layers = 1, .kv_heads = 1, .key_dim = 4}, {.blocks = 4, .block_tokens = 2});
  const std::vector<Token> prompt = {1, 2, 3, 4, 5};
  const Opened opened = cache.open(prompt);
  cache.commit(cache.extend(opened.seq, prompt));
  cache.close(opened.seq);
  REQUIRE(cache.match_length(prompt) == 4);
  REQUIRE(cache.can_admit(prompt, 3));
  REQUIRE(cache.admission(prompt, 4) == Admission::never);
  const auto pinned = cache.try_pin(prompt);
  REQUIRE(pinned->tokens == 4);
  REQUIRE_FALSE(cache.try_extend_without_tokens(cache.open(), 6));  // two of four blocks are pinned
  cache.unpin(pinned->pin);
  REQUIRE(cache.events().poll()->tokens == std::vector<Token>{1, 2});
  cache.clear();
  REQUIRE(cache.match_length(prompt) == 0);
  static_assert(can_clear<Cache> && !can_clear<KvCache<float, Paged>>);
}
