// Laws of the decoder: in f32, the bits of logits depend on a sequence's own tokens and on nothing else.
#include <algorithm>
#include <random>
#include <span>
#include <vector>

#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/layout/layout.hpp"
#include "run_model.hpp"
#include "tiny_model.hpp"

using kvc::Contiguous;
using kvc::Index;
using kvc::Paged;
using kvc::Pos;
using kvc::SeqId;
using kvc::Token;
using kvc::llama::Logits;
using kvc::llama::Matrix;
using kvc_test::equal_bits;
using kvc_test::pool_for;
using kvc_test::random_tokens;
using kvc_test::teach;
using kvc_test::tiny_config;
using kvc_test::tiny_model;
using PrefixShared = kvc::PrefixShared<>;

namespace {

constexpr Pos length = 90;

/// The expected result of every other way of computing: contiguous, in one go, on one thread.
const Matrix& expected() {
  static const Matrix logits = [] {
    kvc::KvCache<float, Contiguous> cache(tiny_config().cache_shape(), pool_for<Contiguous>(length, 1));
    return teach(tiny_model(), cache, cache.open(), random_tokens(length, tiny_config().vocab_size, 1));
  }();
  return logits;
}

}  // namespace

TEMPLATE_TEST_CASE("logits have the same bits over every policy, layout, block size and chunking", "[laws][model]",
                   (kvc::KvCache<float, Contiguous>), (kvc::KvCache<float, Paged>), (kvc::KvCache<float, PrefixShared>),
                   (kvc::KvCache<float, Contiguous, kvc::TokenMajor>), (kvc::KvCache<float, Paged, kvc::TokenMajor>)) {
  const kvc::llama::Model model = tiny_model();
  const auto tokens = random_tokens(length, model.config.vocab_size, 1);
  for (Pos block_tokens : {1, 7, 16, 64}) {
    for (std::size_t chunk : {0U, 1U, 2U, 13U, 32U, 64U}) {
      CAPTURE(block_tokens, chunk);
      TestType cache(model.config.cache_shape(), pool_for<typename TestType::PolicyType>(length, block_tokens));
      CHECK(equal_bits(teach(model, cache, cache.open(), tokens, chunk), expected()));
    }
  }
}

TEMPLATE_TEST_CASE("logits have the same bits in a batch and alone", "[laws][model]", Contiguous, Paged, PrefixShared) {
  const kvc::llama::Model model = tiny_model();
  const Index vocab_size = model.config.vocab_size;
  constexpr std::size_t sequences = 5;
  const std::uint64_t seed = GENERATE(1U, 2U, 3U);
  std::mt19937_64 random(seed);

  std::vector<std::vector<Token>> tokens;
  std::vector<Matrix> alone;
  for (std::size_t s = 0; s < sequences; ++s) {
    tokens.push_back(random_tokens(40 + 10 * static_cast<Index>(s), vocab_size, 10 * seed + s));
    kvc::KvCache<float, TestType> cache(model.config.cache_shape(), pool_for<TestType>(length, 16));
    alone.push_back(teach(model, cache, cache.open(), tokens.back()));
  }

  // Steps of random sizes, single tokens among them, of random subsets of the sequences.
  kvc::KvCache<float, TestType> cache(model.config.cache_shape(), pool_for<TestType>(length, 16, sequences));
  std::vector<SeqId> seqs;
  for (std::size_t s = 0; s < sequences; ++s) seqs.push_back(cache.open());
  for (;;) {
    std::vector<typename kvc::KvCache<float, TestType>::Append> steps;
    std::vector<std::size_t> members;
    std::vector<Token> batch;
    bool any_left = false;
    for (std::size_t s = 0; s < sequences; ++s) {
      const auto done = static_cast<std::size_t>(cache.length(seqs[s]));
      const std::size_t left = tokens[s].size() - done;
      any_left = any_left || left > 0;
      if (left == 0 || random() % 4 == 0) continue;
      const std::size_t count = random() % 2 == 0 ? 1 : std::min<std::size_t>(left, 1 + random() % 20);
      const auto part = std::span<const Token>(tokens[s]).subspan(done, count);
      steps.push_back(cache.extend(seqs[s], part));
      members.push_back(s);
      batch.insert(batch.end(), part.begin(), part.end());
    }
    if (!any_left) break;
    if (steps.empty()) continue;
    const bool all = random() % 2 == 0;
    const Matrix logits = kvc::llama::dec(model, cache, steps, batch, all ? Logits::all : Logits::last);
    Index row = 0;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      const kvc::PosRange range = steps[i].range();
      for (Pos p = all ? range.first : range.last - 1; p < range.last; ++p) {
        CHECK(equal_bits(logits.row(row++), alone[members[i]].row(p)));
      }
    }
    CHECK(row == logits.rows());
    for (auto& step : steps) cache.commit(std::move(step));
  }
  cache.verify();
}

TEST_CASE("logits have the same bits after a prefix hit and after a miss", "[laws][model]") {
  const kvc::llama::Model model = tiny_model();
  const Index vocab_size = model.config.vocab_size;
  const auto first = random_tokens(length, vocab_size, 1);
  for (Pos block_tokens : {1, 7, 16}) {
    for (std::size_t common : {1U, 6U, 30U, 77U, 89U, 90U}) {
      CAPTURE(block_tokens, common);
      kvc::KvCache<float, PrefixShared> cache(model.config.cache_shape(),
                                              pool_for<PrefixShared>(length, block_tokens, 2));
      const SeqId leader = cache.open(first).seq;
      (void)teach(model, cache, leader, first, 11);

      auto second = random_tokens(length, vocab_size, 2);
      std::copy_n(first.begin(), common, second.begin());
      const auto [seq, cached] = cache.open(second);
      const Pos may_match = std::min(static_cast<Pos>(common), length - 1);
      CHECK(cached >= may_match / block_tokens * block_tokens);
      const Matrix after_hit = teach(model, cache, seq, std::span(second).subspan(static_cast<std::size_t>(cached)), 9);

      kvc::KvCache<float, Contiguous> fresh(model.config.cache_shape(), pool_for<Contiguous>(length, 1));
      const Matrix after_miss = teach(model, fresh, fresh.open(), second);
      CHECK(equal_bits(after_hit, after_miss.bottomRows(length - cached)));
      cache.verify();
    }
  }
}

TEMPLATE_TEST_CASE("a fork and a truncated sequence go on as if they had been computed", "[laws][model]", Contiguous,
                   Paged, PrefixShared) {
  const kvc::llama::Model model = tiny_model();
  const auto tokens = random_tokens(length, model.config.vocab_size, 1);
  const auto others = random_tokens(length, model.config.vocab_size, 9);
  kvc::KvCache<float, TestType> cache(model.config.cache_shape(), pool_for<TestType>(length, 7, 3));
  const SeqId parent = cache.open();
  (void)teach(model, cache, parent, std::span(tokens).first(50));

  const SeqId child = cache.fork(parent, 33);
  CHECK(equal_bits(teach(model, cache, child, std::span(tokens).subspan(33), 10), expected().bottomRows(length - 33)));

  (void)teach(model, cache, parent, std::span(others).subspan(50, 20));  // rejected
  cache.truncate(parent, 45);
  CHECK(equal_bits(teach(model, cache, parent, std::span(tokens).subspan(45)), expected().bottomRows(length - 45)));
  cache.verify();
}

TEMPLATE_TEST_CASE("greedy tokens are equal over policies in 16 bits too", "[laws][model]", float, Eigen::half,
                   Eigen::bfloat16) {
  const kvc::llama::Model model = tiny_model();
  const auto prompt = random_tokens(20, model.config.vocab_size, 4);
  const auto tokens = [&](auto policy, Pos block_tokens, std::size_t chunk) {
    using Policy = typename decltype(policy)::type;
    kvc::KvCache<TestType, Policy> cache(model.config.cache_shape(), pool_for<Policy>(length, block_tokens));
    return kvc_test::continue_greedily(model, cache, prompt, length - 1, chunk);
  };
  const auto reference = tokens(std::type_identity<Contiguous>{}, 1, 0);
  for (Pos block_tokens : {1, 7, 16, 64}) {
    for (std::size_t chunk : {0U, 1U, 6U}) {
      CHECK(tokens(std::type_identity<Paged>{}, block_tokens, chunk) == reference);
      CHECK(tokens(std::type_identity<PrefixShared>{}, block_tokens, chunk) == reference);
    }
  }
}
