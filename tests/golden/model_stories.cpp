// The decoder over every policy against golden outputs of a trained model, which were computed in float64.
#include <nlohmann/json.hpp>

#include "kvc/attention/prefill.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/layout/layout.hpp"
#include "run_model.hpp"
#include "stories.hpp"

using kvc::Contiguous;
using kvc::Index;
using kvc::Paged;
using kvc::Pos;
using kvc::Sequential;
using kvc::Token;
using kvc::llama::Logits;
using kvc::llama::Matrix;
using PrefixShared = kvc::PrefixShared<>;

namespace {

struct GreedyCase {
  std::string prompt;
  std::vector<Token> prompt_tokens;
  std::vector<Token> tokens;
  std::string text;
  std::size_t steps;
};

std::vector<GreedyCase> greedy_cases(const kvc_test::Stories& stories) {
  std::vector<GreedyCase> cases;
  for (const auto& entry : nlohmann::json::parse(stories.text("stories260K_greedy.json"))) {
    cases.push_back({entry["prompt"], entry["prompt_tokens"], entry["tokens"], entry["text"], entry["steps"]});
  }
  REQUIRE(cases.size() == 4);
  return cases;
}

/// The tokens that the golden arrays were computed for: the continuation of the empty prompt.
std::vector<Token> taught(const kvc_test::Stories& stories) {
  std::vector<Token> tokens = greedy_cases(stories).front().tokens;
  tokens.resize(256);
  return tokens;
}

template <class T, class Policy>
auto cache_for(const kvc_test::Stories& stories, Pos tokens, Pos block_tokens = 16) {
  return kvc::KvCache<T, Policy>(stories.model.config.cache_shape(), kvc_test::pool_for<Policy>(tokens, block_tokens));
}

}  // namespace

TEST_CASE("the tokenizer agrees with the golden prompts and texts", "[golden][model]") {
  const kvc_test::Stories stories;
  for (const GreedyCase& golden : greedy_cases(stories)) {
    CHECK(stories.tokenizer.encode(golden.prompt) == golden.prompt_tokens);
    CHECK(stories.tokenizer.decode(golden.tokens) == golden.text);
  }
}

// The file's name speaks of 200 steps. It holds the text of 256; after 200 the text is at "so she".
TEMPLATE_TEST_CASE("greedy text is the golden text", "[golden][model]", Contiguous, Paged, PrefixShared) {
  const kvc_test::Stories stories;
  const std::string golden = stories.text("stories260K_greedy_200_steps.txt");
  for (Pos block_tokens : {1, 7, 16, 64}) {
    auto cache = cache_for<float, TestType>(stories, 256, block_tokens);
    const auto text = [&](std::size_t steps) {
      return stories.tokenizer.decode(
          kvc_test::continue_greedily(stories.model, cache, stories.tokenizer.encode(""), steps));
    };
    CHECK(text(256) == golden);
    const std::string after_200 = text(200);
    CHECK(golden.starts_with(after_200));
    CHECK(after_200.ends_with("so she"));
    if (std::same_as<TestType, Contiguous>) break;  // it has no blocks
  }
}

TEMPLATE_TEST_CASE("greedy tokens are the golden tokens", "[golden][model]", Contiguous, Paged, PrefixShared) {
  const kvc_test::Stories stories;
  auto cache = cache_for<float, TestType>(stories, 512);
  for (const GreedyCase& golden : greedy_cases(stories)) {
    for (std::size_t chunk : {0U, 1U, 5U}) {
      CAPTURE(golden.prompt, chunk);
      CHECK(kvc_test::continue_greedily(stories.model, cache, golden.prompt_tokens, golden.steps, chunk) ==
            golden.tokens);
    }
  }
  cache.verify();
}

TEMPLATE_TEST_CASE("taught logits are within 1e-4", "[golden][model]", Contiguous, Paged, PrefixShared) {
  const kvc_test::Stories stories;
  const Matrix golden = stories.array("stories260K_logits_T256xV512_f32.bin", 256, 512);
  const std::vector<Token> tokens = taught(stories);
  for (std::size_t chunk : {0U, 1U, 100U}) {
    auto cache = cache_for<float, TestType>(stories, 256);
    const float difference =
        kvc_test::largest_difference(kvc_test::teach(stories.model, cache, cache.open(), tokens, chunk), golden);
    INFO("chunk " << chunk << ": " << difference);
    CHECK(difference < 1e-4F);
  }
}

TEST_CASE("taught logits stay close with 16-bit caches", "[golden][model]") {
  const kvc_test::Stories stories;
  const Matrix golden = stories.array("stories260K_logits_T256xV512_f32.bin", 256, 512);
  const std::vector<Token> tokens = taught(stories);
  const auto difference = [&](auto cache) {
    return kvc_test::largest_difference(kvc_test::teach(stories.model, cache, cache.open(), tokens), golden);
  };
  const float f16 = difference(cache_for<Eigen::half, Paged>(stories, 256));
  const float bf16 = difference(cache_for<Eigen::bfloat16, Paged>(stories, 256));
  INFO("f16 " << f16 << ", bf16 " << bf16);
  CHECK(f16 < 0.05F);  // 11 bits of precision
  CHECK(bf16 < 0.5F);  // 8 bits
}

TEMPLATE_TEST_CASE("keys, values and attention of each layer are within 1e-5", "[golden][model]", Contiguous, Paged,
                   PrefixShared) {
  const kvc_test::Stories stories;
  const auto& c = stories.model.config;
  const Matrix golden_q = stories.array("stories260K_q_5x256x8x8_f32.bin", 5 * 256, 64);
  const Matrix golden_k = stories.array("stories260K_k_5x256x4x8_f32.bin", 5 * 256, 32);
  const Matrix golden_v = stories.array("stories260K_v_5x256x4x8_f32.bin", 5 * 256, 32);
  const Matrix golden_out = stories.array("stories260K_out_5x256x8x8_f32.bin", 5 * 256, 64);
  const std::vector<Token> tokens = taught(stories);
  const Pos block_tokens = GENERATE(7, 16);
  const Pos chunk = GENERATE(256, 64, 1);

  auto cache = cache_for<float, TestType>(stories, 256, block_tokens);
  const kvc::SeqId seq = cache.open();
  Sequential ex;
  for (Pos first = 0; first < 256; first += chunk) {
    const auto part = std::span(tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(chunk));
    auto step = cache.extend(seq, part);
    const auto compare = [&](Index layer, const Matrix& q, const Matrix& out) {
      CHECK(kvc_test::largest_difference(q, golden_q.middleRows(layer * 256 + first, chunk)) < 2e-5F);  // up to 34
      CHECK(kvc_test::largest_difference(out, golden_out.middleRows(layer * 256 + first, chunk)) < 1e-5F);
    };
    (void)kvc::llama::detail::forward(stories.model, cache, std::span(&std::as_const(step), 1), part,
                                      kvc::llama::detail::Wanted::all_logits, ex, compare);
    cache.commit(std::move(step));
  }
  for (Index layer = 0; layer < c.layers; ++layer) {
    Matrix k(256, c.kv_dim());
    Matrix v(256, c.kv_dim());
    cache.gather(layer, seq, {0, 256}, k, v);
    CHECK(kvc_test::largest_difference(k, golden_k.middleRows(layer * 256, 256)) < 1e-5F);
    CHECK(kvc_test::largest_difference(v, golden_v.middleRows(layer * 256, 256)) < 1e-5F);
    // Attention alone, from the golden queries.
    Matrix out(256, c.dim);
    kvc::prefill(cache.view(layer, seq), {0, 256}, golden_q.middleRows(layer * 256, 256), out);
    CHECK(kvc_test::largest_difference(out, golden_out.middleRows(layer * 256, 256)) < 1e-5F);
  }
}
