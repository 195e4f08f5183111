// Quantised keys and values: the perplexity of a text, beside that with keys and values in f32.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

#include "gemma.hpp"
#include "temp_files.hpp"
#include "test_data.hpp"

using kvc_test::Chunk;
using kvc_test::EngineRun;
using kvc_test::Tokens;
using kvc_test::Wanted;

namespace {

/// exp of the mean negative log-probability of each token after the first. Passes are of 100 tokens, so that most
/// attention goes to rows that have been stored.
double perplexity(std::span<const kvc::Token> text, const std::string& element) {
  EngineRun run({.element = element, .max_tokens = static_cast<kvc::Pos>(text.size()), .pass_tokens = 100}, 2);
  const kvc::SeqId seq = run.cache->open(text).seq;
  double sum = 0;
  for (std::size_t done = 0; done + 1 < text.size();) {
    const Chunk chunk{seq, text.subspan(done, std::min<std::size_t>(100, text.size() - 1 - done))};
    const ggml_engine::Logits logits = run.engine.pass(std::span(&chunk, 1), Wanted::all);
    for (kvc::Index i = 0; i < logits.rows(); ++i) {
      const std::span<const float> row = logits.row(i);
      const auto next = static_cast<std::size_t>(text[++done]);
      sum += kvc_test::log_sum(row) - static_cast<double>(row[next]);
    }
  }
  return std::exp(sum / static_cast<double>(text.size() - 1));
}

}  // namespace

TEST_CASE("quantised keys and values change the perplexity of 2,000 tokens a little", "[gguf]") {
  kvc_test::gemma_file();
  const std::string all = kvc_test::file_text(kvc_test::data_file("text/tinyshakespeare.txt"));
  const Tokens encoded = kvc_test::gemma().vocabulary->encode(std::string_view(all).substr(0, 20000));
  REQUIRE(encoded.size() > 2000);
  const std::span<const kvc::Token> text = std::span(encoded).first(2000);

  const double f32 = perplexity(text, "f32");
  CAPTURE(f32);
  REQUIRE(f32 > 1);
  REQUIRE(f32 < 200);
  struct Limit {
    const char* element;
    double most;  // of the relative difference
  };
  for (const Limit& limit : {Limit{"bf16", 0.02}, {"int8", 0.02}, {"fp8", 0.03}, {"int4", 0.15}}) {
    const double quantised = perplexity(text, limit.element);
    const double change = quantised / f32 - 1;
    std::printf("%-4s %.3f, %+.2f %% beside f32 (%.3f)\n", limit.element, quantised, 100 * change, f32);
    CAPTURE(limit.element, change);
    REQUIRE(std::abs(change) < limit.most);
  }
}
