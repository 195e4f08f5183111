// Dec and Dec_kv: against a plain decoder in double, against each other, and on arguments that do not fit.
#include <cmath>
#include <cstring>
#include <vector>

#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/layout/layout.hpp"
#include "run_model.hpp"
#include "tiny_model.hpp"

using kvc::Contiguous;
using kvc::Index;
using kvc::Paged;
using kvc::SeqId;
using kvc::Token;
using kvc::llama::Config;
using kvc::llama::Logits;
using kvc::llama::Matrix;
using kvc_test::random_tokens;
using kvc_test::tiny_config;
using kvc_test::tiny_model;

namespace {

using Numbers = std::vector<double>;

/// W x
Numbers times(const Matrix& w, const Numbers& x) {
  Numbers y(static_cast<std::size_t>(w.rows()));
  for (Index o = 0; o < w.rows(); ++o) {
    double& sum = y[static_cast<std::size_t>(o)];
    for (Index i = 0; i < w.cols(); ++i) sum += static_cast<double>(w(o, i)) * x[static_cast<std::size_t>(i)];
  }
  return y;
}

Numbers normed(const Numbers& x, const kvc::llama::RowVector& weight) {
  double squares = 0;
  for (double v : x) squares += v * v;
  Numbers y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + 1e-5);
    y[i] = x[i] * scale * static_cast<double>(weight(static_cast<Index>(i)));
  }
  return y;
}

void turn(Numbers& heads, std::size_t head_dim, std::size_t position) {
  for (std::size_t i = 0; i < heads.size(); i += 2) {
    const double angle = static_cast<double>(position) *
                         std::pow(10000.0, -static_cast<double>(i % head_dim) / static_cast<double>(head_dim));
    const double a = heads[i];
    const double b = heads[i + 1];
    heads[i] = a * std::cos(angle) - b * std::sin(angle);
    heads[i + 1] = a * std::sin(angle) + b * std::cos(angle);
  }
}

/// The whole network, one token after the other, with no cache but two vectors. Logits of every token.
std::vector<Numbers> decode_plainly(const kvc::llama::Model& model, const std::vector<Token>& tokens) {
  const Config& c = model.config;
  const auto head_dim = static_cast<std::size_t>(c.head_dim());
  const auto heads = static_cast<std::size_t>(c.heads);
  const auto group = static_cast<std::size_t>(c.heads / c.kv_heads);
  std::vector<std::vector<Numbers>> keys(model.layers.size());
  std::vector<std::vector<Numbers>> values(model.layers.size());
  std::vector<Numbers> all;
  for (std::size_t position = 0; position < tokens.size(); ++position) {
    Numbers x;
    for (Index i = 0; i < c.dim; ++i) x.push_back(static_cast<double>(model.embedding(tokens[position], i)));
    for (std::size_t l = 0; l < model.layers.size(); ++l) {
      const kvc::llama::Layer& w = model.layers[l];
      const Numbers h = normed(x, w.attention_norm);
      Numbers q = times(w.wq, h);
      Numbers k = times(w.wk, h);
      turn(q, head_dim, position);
      turn(k, head_dim, position);
      keys[l].push_back(k);
      values[l].push_back(times(w.wv, h));
      Numbers out(q.size());
      for (std::size_t head = 0; head < heads; ++head) {
        Numbers weights;
        double total = 0;
        for (const Numbers& key : keys[l]) {
          double score = 0;
          for (std::size_t d = 0; d < head_dim; ++d) score += q[head * head_dim + d] * key[head / group * head_dim + d];
          total += weights.emplace_back(std::exp(score / std::sqrt(static_cast<double>(head_dim))));
        }
        for (std::size_t j = 0; j < weights.size(); ++j) {
          for (std::size_t d = 0; d < head_dim; ++d) {
            out[head * head_dim + d] += weights[j] / total * values[l][j][head / group * head_dim + d];
          }
        }
      }
      const Numbers attended = times(w.wo, out);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += attended[i];
      const Numbers h2 = normed(x, w.ffn_norm);
      Numbers gate = times(w.w_gate, h2);
      const Numbers up = times(w.w_up, h2);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      const Numbers fed = times(w.w_down, gate);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += fed[i];
    }
    all.push_back(times(model.classifier(), normed(x, model.final_norm)));
  }
  return all;
}

bool equal_bits(const Matrix& a, const Matrix& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
}

using Cache = kvc::KvCache<float, Paged>;

}  // namespace

TEST_CASE("dec computes what a plain decoder does, for any head size and GQA ratio", "[model][decoder]") {
  struct Size {
    Index heads, kv_heads, head_dim, hidden_dim, vocab_size, layers;
    bool own_classifier;
  };
  const Size size = GENERATE(Size{4, 2, 6, 40, 61, 2, false},   // GQA
                             Size{3, 3, 2, 17, 5, 3, true},     // MHA, the smallest head
                             Size{6, 1, 10, 33, 300, 1, true},  // MQA, one layer
                             Size{2, 1, 48, 8, 64, 2, false},   //
                             Size{1, 1, 130, 64, 40, 1, false});
  Config config;
  config.heads = size.heads;
  config.kv_heads = size.kv_heads;
  config.dim = size.heads * size.head_dim;
  config.hidden_dim = size.hidden_dim;
  config.vocab_size = size.vocab_size;
  config.layers = size.layers;
  config.seq_len = 40;
  const kvc::llama::Model model =
      kvc::llama::load_checkpoint(kvc_test::tiny_checkpoint(config, size.own_classifier, 3));
  const auto tokens = random_tokens(33, config.vocab_size, 4);

  Cache cache(config.cache_shape(), {.blocks = 5, .block_tokens = 8});
  const Matrix logits = kvc_test::teach(model, cache, cache.open(), tokens, 12);
  const std::vector<Numbers> expected = decode_plainly(model, tokens);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    for (Index i = 0; i < config.vocab_size; ++i) {
      const double value = expected[t][static_cast<std::size_t>(i)];
      CHECK(static_cast<double>(logits(static_cast<Index>(t), i)) == Approx(value).epsilon(1e-4).margin(1e-4));
    }
  }
}

TEST_CASE("dec_kv leaves the cache that dec leaves", "[model][decoder]") {
  const kvc::llama::Model model = tiny_model();
  const auto& c = model.config;
  const auto tokens = random_tokens(50, c.vocab_size, 1);
  const auto rows = [&](auto fill) {
    Cache cache(c.cache_shape(), {.blocks = 10, .block_tokens = 7});
    const SeqId seq = cache.open();
    auto step = cache.extend(seq, tokens);
    fill(cache, step);
    cache.commit(std::move(step));
    Matrix all(c.layers * 50, 2 * c.kv_dim());
    for (Index l = 0; l < c.layers; ++l) {
      Matrix k(50, c.kv_dim());
      Matrix v(50, c.kv_dim());
      cache.gather(l, seq, {0, 50}, k, v);
      all.block(l * 50, 0, 50, c.kv_dim()) = k;
      all.block(l * 50, c.kv_dim(), 50, c.kv_dim()) = v;
    }
    return all;
  };
  const Matrix by_dec_kv =
      rows([&](Cache& cache, const Cache::Append& step) { kvc::llama::dec_kv(model, cache, step, tokens); });
  const Matrix by_dec =
      rows([&](Cache& cache, const Cache::Append& step) { (void)kvc::llama::dec(model, cache, step, tokens); });
  const Matrix by_all = rows(
      [&](Cache& cache, const Cache::Append& step) { (void)kvc::llama::dec(model, cache, step, tokens, Logits::all); });
  CHECK(equal_bits(by_dec_kv, by_dec));
  CHECK(equal_bits(by_dec_kv, by_all));
}

TEST_CASE("the last logits are those of the last positions", "[model][decoder]") {
  const kvc::llama::Model model = tiny_model();
  const Index vocab_size = model.config.vocab_size;
  const auto tokens = random_tokens(12, vocab_size, 1);
  const auto run = [&](Logits which) {
    Cache cache(model.config.cache_shape(), {.blocks = 8, .block_tokens = 4});
    std::vector<Cache::Append> steps;
    for (std::size_t first : {0U, 5U, 6U}) {  // of 5, 1 and 6 tokens
      steps.push_back(cache.extend(cache.open(), std::span(tokens).subspan(first, first == 0   ? 5
                                                                                  : first == 5 ? 1
                                                                                               : 6)));
    }
    return kvc::llama::dec(model, cache, steps, tokens, which);
  };
  const Matrix last = run(Logits::last);
  const Matrix all = run(Logits::all);
  REQUIRE(last.rows() == 3);
  REQUIRE(all.rows() == 12);
  CHECK(equal_bits(last.row(0), all.row(4)));
  CHECK(equal_bits(last.row(1), all.row(5)));
  CHECK(equal_bits(last.row(2), all.row(11)));
}

TEST_CASE("a step that is not committed leaves nothing", "[model][decoder]") {
  const kvc::llama::Model model = tiny_model();
  const auto tokens = random_tokens(20, model.config.vocab_size, 1);
  Cache cache(model.config.cache_shape(), {.blocks = 5, .block_tokens = 4});
  const SeqId seq = cache.open();
  Matrix first;
  {
    auto step = cache.extend(seq, tokens);
    first = kvc::llama::dec(model, cache, step, tokens);
  }
  CHECK(cache.length(seq) == 0);
  auto step = cache.extend(seq, tokens);
  CHECK(equal_bits(kvc::llama::dec(model, cache, step, tokens), first));
}

TEST_CASE("dec checks its arguments", "[model][decoder]") {
  const kvc::llama::Model model = tiny_model();
  const auto& c = model.config;
  Cache cache(c.cache_shape(), {.blocks = 30, .block_tokens = 8});
  const SeqId seq = cache.open();
  const std::vector<Token> three = {1, 2, 3};
  auto step = cache.extend(seq, three);
  const auto message = [](const char* text) { return kvc_test::contains(text); };
  CHECK_THROWS_WITH(kvc::llama::dec(model, cache, step, std::vector<Token>{1, 2}), message("tokens.size() is 2"));
  CHECK_THROWS_WITH(kvc::llama::dec_kv(model, cache, step, std::vector<Token>{1, 2, 3, 4}),
                    message("tokens.size() is 4"));
  CHECK_THROWS_WITH(kvc::llama::dec(model, cache, step, std::vector<Token>{1, 2, 61}), message("token is 61"));
  CHECK_THROWS_WITH(kvc::llama::dec(model, cache, step, std::vector<Token>{1, -1, 2}), message("token is -1"));
  CHECK_NOTHROW(kvc::llama::dec(model, cache, step, three));
  cache.commit(std::move(step));
  CHECK_THROWS_AS(kvc::llama::dec(model, cache, step, three), std::invalid_argument);  // committed

  auto beyond = cache.extend(seq, c.seq_len - 2);  // one more than the model was made for
  CHECK_THROWS_WITH(
      kvc::llama::dec_kv(model, cache, beyond, std::vector<Token>(static_cast<std::size_t>(c.seq_len - 2), 1)),
      message("last position is 96"));

  kvc::Shape other = c.cache_shape();
  other.layers = 3;
  Cache wrong(other, {.blocks = 2, .block_tokens = 8});
  auto wrong_step = wrong.extend(wrong.open(), three);
  CHECK_THROWS_WITH(kvc::llama::dec_kv(model, wrong, wrong_step, three), message("cache.shape()"));

  const kvc::Shape shape = c.cache_shape();
  kvc::LayerGroups layers;
  layers.add({.kv_heads = shape.kv_heads, .key_dim = shape.key_dim, .window = 8}, shape.layers);
  Cache grouped(layers, {.blocks = 2, .block_tokens = 8});
  auto grouped_step = grouped.extend(grouped.open(), three);
  CHECK_THROWS_WITH(kvc::llama::dec_kv(model, grouped, grouped_step, three), message("llama::dec knows no other"));

  CHECK(kvc::llama::dec(model, cache, std::span<const Cache::Append>(), std::vector<Token>{}).rows() == 0);
}

TEST_CASE("a model whose numbers contradict each other is refused", "[model][decoder]") {
  const kvc::llama::Model good = kvc::llama::load_checkpoint(kvc_test::tiny_checkpoint(kvc_test::tiny_config(), true));
  const std::vector<Token> tokens = {1, 2, 3};
  const auto refused = [&](const char* name, const auto& change) {
    kvc::llama::Model model = good;
    change(model);
    CAPTURE(name);
    Cache cache(good.config.cache_shape(), {.blocks = 4, .block_tokens = 4});
    const SeqId seq = cache.open();
    auto step = cache.extend(seq, 3);
    CHECK_THROWS_AS(kvc::llama::dec(model, cache, step, tokens), std::invalid_argument);
    CHECK_THROWS_WITH(kvc::llama::dec(model, cache, step, tokens), kvc_test::contains(name));
    CHECK_THROWS_WITH(kvc::llama::dec_kv(model, cache, step, tokens), kvc_test::contains(name));
  };
  using Model = kvc::llama::Model;
  kvc::llama::require_consistent(good);
  refused("config.kv_heads is 3, must be a divisor of config.heads, 4", [](Model& m) { m.config.kv_heads = 3; });
  refused("config.kv_heads is 8, must be a divisor of config.heads, 4", [](Model& m) { m.config.kv_heads = 8; });
  refused("config.heads is 0, must be at least 1", [](Model& m) { m.config.heads = 0; });
  refused("config.kv_heads is 0", [](Model& m) { m.config.kv_heads = 0; });
  refused("config.kv_heads is -2", [](Model& m) { m.config.kv_heads = -2; });
  refused("config.dim is 26, must be an even multiple of config.heads", [](Model& m) { m.config.dim = 26; });
  refused("config.dim is 12, must be an even multiple of config.heads", [](Model& m) { m.config.dim = 12; });
  refused("config.hidden_dim is -1", [](Model& m) { m.config.hidden_dim = -1; });
  refused("config.vocab_size is 0", [](Model& m) { m.config.vocab_size = 0; });
  refused("config.seq_len is 0", [](Model& m) { m.config.seq_len = 0; });
  refused("config.layers is 0", [](Model& m) { m.config.layers = 0; });
  refused("config.norm_epsilon is nan", [](Model& m) { m.config.norm_epsilon = std::nanf(""); });
  refused("layers.size() is 2", [](Model& m) { m.config.layers = 3; });
  refused("layers.size() is 1", [](Model& m) { m.layers.pop_back(); });
  refused("embedding is 61 x 24, must be 62 x 24", [](Model& m) { m.config.vocab_size = 62; });
  refused("embedding is 0 x 0", [](Model& m) { m.embedding.resize(0, 0); });
  refused("wq is 24 x 23", [](Model& m) { m.layers[1].wq.resize(24, 23); });
  refused("wk is 12 x 24, must be 24 x 24", [](Model& m) { m.config.kv_heads = 4; });
  refused("w_gate is 40 x 24, must be 41 x 24", [](Model& m) { m.config.hidden_dim = 41; });
  refused("final_norm is 1 x 23", [](Model& m) { m.final_norm.resize(23); });
  refused("own_classifier is 60 x 24", [](Model& m) { m.own_classifier.resize(60, 24); });
  refused("rope.positions() is 96, must be at least config.seq_len", [](Model& m) { m.config.seq_len = 97; });
  refused("rope.rotary_dim() is 8", [](Model& m) { m.rope = kvc::llama::RopeTable(96, 8, 10000.0); });
}
