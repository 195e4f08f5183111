// The engine on ggml beside Gemma 3 as its definition reads: no cache, all rows of a text at once, weights as floats.
//
// With the weights of the file as they are stored, ggml rounds activations to 8 bits, and every difference in the last
// bit of a float spreads (see goldens.cpp). With the same weights as floats it does not, and an error in the graph, in
// positions, windows or masks shows. What is left is mostly ggml's GELU, which goes by a table of 16-bit floats.

#include <Eigen/Core>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "gemma.hpp"

using kvc_test::EngineRun;
using kvc_test::Golden;
using kvc_test::Index;
using kvc_test::Tokens;

namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Of Gemma 3 270M.
constexpr Index dim = 640;
constexpr Index heads = 4;
constexpr Index head_dim = 256;
constexpr Index window = 512;

const float* floats(const ggml_tensor* weight) { return static_cast<const float*>(weight->data); }

/// x [rows, in] times the transposed weight [out, in].
Matrix times(const Matrix& x, const ggml_tensor* weight) {
  return x * Eigen::Map<const Matrix>(floats(weight), weight->ne[1], weight->ne[0]).transpose();
}

/// Divides every row by its root mean square, and multiplies it by the weight.
Matrix rms_norm(const Matrix& x, const ggml_tensor* weight) {
  Matrix y = x;
  for (Index row = 0; row < x.rows(); ++row) {
    const double mean = x.row(row).cast<double>().squaredNorm() / static_cast<double>(x.cols());
    y.row(row) *= static_cast<float>(1 / std::sqrt(mean + 1e-6));
  }
  return y.array().rowwise() * Eigen::Map<const Eigen::RowVectorXf>(floats(weight), x.cols()).array();
}

/// Turns each pair (j, j + head_dim / 2) of row p by p * base^(-2 j / head_dim).
void rotate(Matrix& x, double base) {
  for (Index p = 0; p < x.rows(); ++p) {
    for (Index j = 0; j < head_dim / 2; ++j) {
      const double angle =
          static_cast<double>(p) * std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim));
      const double a = static_cast<double>(x(p, j));
      const double b = static_cast<double>(x(p, j + head_dim / 2));
      x(p, j) = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
      x(p, j + head_dim / 2) = static_cast<float>(a * std::sin(angle) + b * std::cos(angle));
    }
  }
}

/// Attention of one layer over all rows of a text.
Matrix attention(const ggml_engine::Layer& layer, const Matrix& x, bool has_window) {
  const double base = has_window ? 1e4 : 1e6;
  const Matrix queries = times(x, layer.q);
  Matrix k = rms_norm(times(x, layer.k), layer.k_norm);
  const Matrix v = times(x, layer.v);
  rotate(k, base);
  Matrix out(x.rows(), heads * head_dim);
  for (Index head = 0; head < heads; ++head) {
    Matrix q = rms_norm(queries.middleCols(head * head_dim, head_dim), layer.q_norm);
    rotate(q, base);
    for (Index p = 0; p < x.rows(); ++p) {
      const Index first = has_window && p >= window ? p - window + 1 : 0;
      const Index seen = p + 1 - first;
      Eigen::VectorXf weights = k.middleRows(first, seen) * q.row(p).transpose() / 16.0F;  // sqrt(head_dim)
      weights = (weights.array() - weights.maxCoeff()).exp();
      out.row(p).segment(head * head_dim, head_dim) = weights.transpose() * v.middleRows(first, seen) / weights.sum();
    }
  }
  return times(out, layer.out);
}

Matrix feed_forward(const ggml_engine::Layer& layer, const Matrix& x) {
  const auto gelu = [](float z) { return 0.5F * z * (1 + std::tanh(0.7978845608F * (z + 0.044715F * z * z * z))); };
  const Matrix gate = times(x, layer.gate).unaryExpr(gelu);
  return times(gate.cwiseProduct(times(x, layer.up)), layer.down);
}

/// The logits of the last `count` rows of a text.
Matrix gemma_logits(const ggml_engine::Model& model, std::span<const kvc::Token> text, Index count) {
  Matrix x(std::ssize(text), dim);
  for (Index p = 0; p < x.rows(); ++p) {
    x.row(p) =
        std::sqrt(static_cast<float>(dim)) *
        Eigen::Map<const Eigen::RowVectorXf>(floats(model.embedding) + text[static_cast<std::size_t>(p)] * dim, dim);
  }
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const ggml_engine::Layer& layer = model.layers[i];
    const bool has_window = i % 6 != 5;
    x += rms_norm(attention(layer, rms_norm(x, layer.attention_norm), has_window), layer.attention_post_norm);
    x += rms_norm(feed_forward(layer, rms_norm(x, layer.ffn_norm)), layer.ffn_post_norm);
  }
  return times(rms_norm(x.bottomRows(count), model.output_norm), model.output);
}

}  // namespace

TEST_CASE("with weights as floats, log-probabilities are those of Gemma's definition", "[gguf]") {
  const ggml_engine::Model model = ggml_engine::Model::load(kvc_test::gemma_file(), ggml_engine::WeightType::f32);
  REQUIRE(model.layers.size() == 18);
  for (const char* name : {"short", "french", "window"}) {
    const Golden golden = kvc_test::golden(name);
    Tokens text = golden.prompt_tokens;
    text.insert(text.end(), golden.tokens.begin(), golden.tokens.end());
    const std::size_t rows = golden.tokens.size();
    const Matrix expected = gemma_logits(model, text, static_cast<Index>(rows));

    EngineRun run({.max_tokens = 1000}, 2, model);
    const kvc::SeqId seq = run.cache->open(text).seq;
    const std::span<const kvc::Token> before = std::span(text).first(text.size() - rows);
    REQUIRE(run.compute(seq, before, 512).rows() == 1);
    const kvc_test::Chunk chunk{seq, std::span(text).last(rows)};
    const ggml_engine::Logits logits = run.engine.pass(std::span(&chunk, 1), kvc_test::Wanted::all);

    double most = 0;  // of the differences of log-probabilities
    for (std::size_t i = 0; i < rows; ++i) {
      const std::span<const float> row = logits.row(static_cast<Index>(i));
      const Eigen::VectorXf expected_row = expected.row(static_cast<Index>(i));
      const std::span<const float> reference(expected_row.data(), row.size());
      const double log_sum = kvc_test::log_sum(row);
      const double reference_log_sum = kvc_test::log_sum(reference);
      std::vector<kvc::Token> best;  // five, by the reference
      for (kvc::Token t = 0; t < std::ssize(reference); ++t) best.push_back(t);
      std::ranges::partial_sort(best, best.begin() + 5, std::greater{},
                                [&](kvc::Token t) { return reference[static_cast<std::size_t>(t)]; });
      const auto logit = [](std::span<const float> of, kvc::Token t) {
        return static_cast<double>(of[static_cast<std::size_t>(t)]);
      };
      for (std::size_t j = 0; j < 5; ++j) {
        most = std::max(most, std::abs(logit(row, best[j]) - log_sum - logit(reference, best[j]) + reference_log_sum));
      }
      CAPTURE(name, i);
      if (logit(reference, best[0]) - logit(reference, best[1]) > 0.04) {
        REQUIRE(kvc_test::most_likely(row) == best[0]);
      }
    }
    CAPTURE(name, most);
    REQUIRE(most < 2e-2);
  }

  // Floats are not rounded before they are multiplied: how a prompt is cut changes no token.
  const Tokens prompt = kvc_test::golden("french").prompt_tokens;
  Tokens whole;
  for (const std::size_t chunk : {0U, 1U, 3U, 10U}) {
    EngineRun run({.policy = chunk == 3 ? "prefix-shared" : "paged", .max_tokens = 100}, 2, model);
    const Tokens tokens = run.continue_greedily(prompt, 48, chunk);
    CAPTURE(chunk);
    REQUIRE(tokens == (whole.empty() ? tokens : whole));
    whole = tokens;
  }
}
