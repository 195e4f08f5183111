// The cost of the element type of a cache to a language model: its perplexity on text that it was not trained on.
#include <algorithm>
#include <cmath>

#include "element_types.hpp"
#include "kvc/cache.hpp"
#include "run_model.hpp"
#include "stories.hpp"

using kvc::Index;
using kvc::Token;
using kvc::llama::Matrix;

namespace {

/// The model of examples/generate, and windows of the last 7 % of the text, which were held out from its training.
struct Shakespeare {
  static constexpr std::size_t windows = 8;
  kvc::llama::Model model = kvc::llama::load_checkpoint(KVC_SOURCE_DIR "/examples/model/shakespeare.bin");
  std::vector<std::vector<Token>> texts;

  Shakespeare() {
    std::ifstream in(kvc_test::data_file("text/tinyshakespeare.txt"), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    REQUIRE(text.size() == 1115394);
    const auto tokenizer =
        kvc::llama::Tokenizer::load(KVC_SOURCE_DIR "/examples/model/shakespeare.tok", model.config.vocab_size);
    const std::size_t held_out = text.size() / 100 * 94, step = (text.size() - held_out) / windows;
    for (std::size_t w = 0; w < windows; ++w) {
      texts.push_back(tokenizer.encode(text.substr(held_out + w * step, step)));
      texts.back().resize(static_cast<std::size_t>(model.config.seq_len));
    }
  }

  /// exp of the mean loss per token.
  template <class T>
  [[nodiscard]] double perplexity() const {
    double loss = 0;
    Index count = 0;
    for (const std::vector<Token>& text : texts) {
      const auto length = static_cast<kvc::Pos>(text.size());
      kvc::KvCache<T, kvc::Paged> cache(model.config.cache_shape(), kvc_test::pool_for<kvc::Paged>(length, 16));
      const Matrix logits = kvc_test::teach(model, cache, cache.open(), text, 128);
      for (Index i = 0; i + 1 < length; ++i) {
        const std::vector<double> row(logits.row(i).begin(), logits.row(i).end());
        const double m = *std::ranges::max_element(row);
        double sum = 0;
        for (const double x : row) {
          sum += std::exp(x - m);
        }
        loss += m + std::log(sum) - row[static_cast<std::size_t>(text[static_cast<std::size_t>(i) + 1])];
        ++count;
      }
    }
    return std::exp(loss / static_cast<double>(count));
  }
};

}  // namespace

TEST_CASE("the perplexity of the embedded model stays what it is with a smaller cache", "[golden][model]") {
  const Shakespeare shakespeare;
  const double f32 = shakespeare.perplexity<float>();
  std::cout << "perplexity with a cache of f32: " << f32 << std::endl;
  CHECK(f32 > 10);
  CHECK(f32 < 20);
  const auto check = [&]<class T>(T*, double percent) {
    const double with = shakespeare.perplexity<T>(), change = 100 * (with / f32 - 1);
    std::cout << "perplexity with a cache of " << kvc::Element<T>::name << ": " << with << ", " << std::showpos
              << change << std::noshowpos << " % (at most " << percent << ")" << std::endl;
    CHECK(std::abs(change) <= percent);
  };
  check(static_cast<Eigen::half*>(nullptr), 0.1);
  check(static_cast<Eigen::bfloat16*>(nullptr), 0.1);
  check(static_cast<kvc::Int8*>(nullptr), 0.5);
  check(static_cast<kvc::Fp8E4M3*>(nullptr), 2);
  check(static_cast<kvc::Int4*>(nullptr), 5);
}
