// The engine on ggml against itself in every other cache, and against what llama.cpp computed from the same file.
//
// ggml rounds activations to 8 bits before it multiplies them with quantised weights. A difference in the last bit of a
// float, such as that of another order of sums, moves some of them to the next step, and the layers after it spread
// that. The golden tokens are those of one build of llama.cpp (AVX2, flash attention off). Forced onto them, llama.cpp
// built for AVX-512 prefers another token at 3 of 192 steps, with flash attention at 6, and its log-probabilities
// differ by 0.07 to 0.14 on average. So the engine, too, is held to them on average, and to each token that leads
// clearly; reference.cpp has the test without the rounding.

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <span>
#include <string>

#include "gemma.hpp"

using kvc_test::CacheOptions;
using kvc_test::EngineRun;
using kvc_test::Golden;
using kvc_test::Tokens;

namespace {

CacheOptions cache_for(const Golden& golden, const std::string& policy, kvc::Pos block_tokens, std::size_t chunk) {
  return {.policy = policy,
          .block_tokens = block_tokens,
          .max_tokens = static_cast<kvc::Pos>(golden.prompt_tokens.size() + golden.tokens.size()),
          .pass_tokens = static_cast<kvc::Pos>(chunk)};
}

/// Every policy, block sizes of 16 and 64, the prompt as a whole and in chunks of 100, 1 and 2 threads.
void require_same_tokens(const std::string& name) {
  const Golden golden = kvc_test::golden(name);
  Tokens expected;
  for (const char* policy : {"contiguous", "paged", "prefix-shared"}) {
    for (const kvc::Pos block_tokens : {16, 64}) {
      for (const std::size_t chunk : {0U, 100U}) {
        for (const int threads : {1, 2}) {
          if (block_tokens != 16 && std::string(policy) == "contiguous") continue;  // has no blocks
          if (chunk >= golden.prompt_tokens.size()) continue;                       // the whole prompt once more
          CAPTURE(name, policy, block_tokens, chunk, threads);
          EngineRun run(cache_for(golden, policy, block_tokens, chunk), threads);
          const Tokens tokens = run.continue_greedily(golden.prompt_tokens, 48, chunk);
          if (expected.empty()) expected = tokens;
          REQUIRE(tokens == expected);
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("every cache gives the same 48 tokens after a short prompt", "[gguf]") {
  kvc_test::gemma_file();
  require_same_tokens("short");
}
TEST_CASE("every cache gives the same 48 tokens after a French prompt", "[gguf]") {
  kvc_test::gemma_file();
  require_same_tokens("french");
}
TEST_CASE("every cache gives the same 48 tokens after a prompt longer than the window", "[gguf]") {
  kvc_test::gemma_file();
  require_same_tokens("window");
}
TEST_CASE("every cache gives the same 48 tokens after a long prompt", "[gguf]") {
  kvc_test::gemma_file();
  require_same_tokens("long");
}

TEST_CASE("log-probabilities are those of llama.cpp but for the rounding of activations to 8 bits", "[gguf]") {
  kvc_test::gemma_file();
  int others = 0;  // steps at which another token is the most likely
  for (const Golden& golden : kvc_test::goldens()) {
    CAPTURE(golden.name);
    REQUIRE(golden.top.size() == golden.tokens.size());
    EngineRun run(cache_for(golden, "paged", 16, 512), 2);
    const kvc::SeqId seq = run.cache->open(golden.prompt_tokens).seq;
    ggml_engine::Logits logits = run.compute(seq, golden.prompt_tokens, 512);
    double sum = 0;
    double sum_of_sizes = 0;
    int count = 0;
    for (std::size_t i = 0; i < golden.tokens.size(); ++i) {  // the golden token goes on, whichever was most likely
      const std::span<const float> row = logits.row(0);
      const double log_sum = kvc_test::log_sum(row);
      for (const auto& [token, expected] : golden.top[i]) {
        const double difference = static_cast<double>(row[static_cast<std::size_t>(token)]) - log_sum - expected;
        sum += difference;
        sum_of_sizes += std::abs(difference);
        ++count;
      }
      CAPTURE(i);
      if (kvc_test::most_likely(row) != golden.tokens[i]) {
        ++others;
        REQUIRE(golden.top[i][0].second - golden.top[i][1].second < 0.5);
      }
      if (i + 1 < golden.tokens.size()) logits = run.compute(seq, std::span(&golden.tokens[i], 1));
    }
    std::printf("%-6s mean difference %.3f, %d other tokens so far\n", golden.name.c_str(), sum_of_sizes / count,
                others);
    REQUIRE(sum_of_sizes / count < 0.15);
    REQUIRE(std::abs(sum / count) < 0.06);
  }
  REQUIRE(others <= 8);  // of 192
}
