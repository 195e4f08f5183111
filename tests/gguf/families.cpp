// The graphs of Llama, Qwen 3 and Gemma 3 beside a plain forward pass that the test writes down: small models of random
// weights, in GGUF files that the test makes. No model needs to be fetched.

#include <Eigen/Core>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "gemma.hpp"
#include "random_model.hpp"
#include "random_source.hpp"
#include "temp_files.hpp"

namespace families_test {
namespace {

using kvc::Index;
using Rows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

using kvc_test::Family;
using kvc_test::Weights;

/// The forward pass: all rows of a text at once, in double, without a cache.
class Forward {
 public:
  Forward(const Family& family, const Weights& weights) : f_(family), weights_(weights) {}

  Rows logits(const kvc_test::Tokens& text) const {
    Rows x(std::ssize(text), f_.dim);
    for (Index p = 0; p < x.rows(); ++p) {
      x.row(p) = matrix("token_embd").row(text[static_cast<std::size_t>(p)]);
    }
    if (f_.post_norms) {
      x *= std::sqrt(static_cast<double>(f_.dim));
    }
    for (Index i = 0; i < f_.layers; ++i) {
      const std::string block = "blk." + std::to_string(i) + ".";
      x += normed_if(f_.post_norms, attention(i, block, normed(x, block + "attn_norm")), block + "post_attention_norm");
      x += normed_if(f_.post_norms, feed_forward(block, normed(x, block + "ffn_norm")), block + "post_ffw_norm");
    }
    return normed(x, "output_norm") * matrix(f_.own_output ? "output" : "token_embd").transpose();
  }

 private:
  Rows matrix(const std::string& name) const { return weights_.of.at(name + ".weight").cast<double>(); }
  Rows normed(Rows x, const std::string& weight) const {
    for (Index p = 0; p < x.rows(); ++p) {
      x.row(p) /= std::sqrt(x.row(p).squaredNorm() / static_cast<double>(x.cols()) + kvc_test::norm_epsilon);
    }
    return x.array().rowwise() * Eigen::RowVectorXd(matrix(weight).row(0)).array();
  }
  Rows normed_if(bool wanted, Rows x, const std::string& weight) const { return wanted ? normed(x, weight) : x; }

  /// Turns the pairs of each row p of one head by p * base^(-2 j / head_dim).
  void turn(Rows& head, double factor) const {
    const Index half = f_.head_dim / 2;
    for (Index p = 0; p < head.rows(); ++p) {
      for (Index j = 0; j < half; ++j) {
        const double angle =
            static_cast<double>(p) / factor *
            std::pow(kvc_test::rope_base, -2.0 * static_cast<double>(j) / static_cast<double>(f_.head_dim));
        double& a = head(p, f_.turns_halves ? j : 2 * j);
        double& b = head(p, f_.turns_halves ? j + half : 2 * j + 1);
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = a * std::sin(angle) + b * std::cos(angle);
        a = turned;
      }
    }
  }
  Rows attention(Index layer, const std::string& block, const Rows& x) const {
    const bool has_window = f_.window > 0 && layer % 6 != 5;
    const double factor = has_window ? 1 : f_.rope_factor;
    const Rows queries = x * matrix(block + "attn_q").transpose(), keys = x * matrix(block + "attn_k").transpose(),
               values = x * matrix(block + "attn_v").transpose();
    const auto head_of = [&](const Rows& all, Index head, const std::string& norm) {
      Rows rows = normed_if(f_.head_norms, all.middleCols(head * f_.head_dim, f_.head_dim), block + norm);
      turn(rows, factor);
      return rows;
    };
    Rows out(x.rows(), f_.heads * f_.head_dim);
    for (Index head = 0; head < f_.heads; ++head) {
      const Index of_kv = head / (f_.heads / f_.kv_heads);
      const Rows q = head_of(queries, head, "attn_q_norm"), k = head_of(keys, of_kv, "attn_k_norm");
      for (Index p = 0; p < x.rows(); ++p) {
        const Index first = has_window ? std::max<Index>(p - f_.window + 1, 0) : 0, seen = p + 1 - first;
        Eigen::VectorXd w =
            k.middleRows(first, seen) * q.row(p).transpose() / std::sqrt(static_cast<double>(f_.head_dim));
        w = (w.array() - w.maxCoeff()).exp();
        out.row(p).segment(head * f_.head_dim, f_.head_dim) =
            w.transpose() * values.block(first, of_kv * f_.head_dim, seen, f_.head_dim) / w.sum();
      }
    }
    return out * matrix(block + "attn_output").transpose();
  }
  Rows feed_forward(const std::string& block, const Rows& x) const {
    const auto activation = [&](double z) {
      return f_.post_norms ? 0.5 * z * (1 + std::tanh(std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)))
                           : z / (1 + std::exp(-z));
    };
    const Rows gate = (x * matrix(block + "ffn_gate").transpose()).unaryExpr(activation);
    const Rows up = x * matrix(block + "ffn_up").transpose();
    return gate.cwiseProduct(up) * matrix(block + "ffn_down").transpose();
  }

  const Family& f_;
  const Weights& weights_;
};

kvc_test::Tokens random_text(Index tokens, Index vocab, kvc_test::Random& random) {
  kvc_test::Tokens text;
  while (std::ssize(text) < tokens) {
    text.push_back(static_cast<kvc::Token>(random.between(Index{0}, vocab - 1)));
  }
  return text;
}

const std::vector<Family> families{
    {.architecture = "llama"},
    {.architecture = "llama", .own_output = true, .rope_factor = 4},
    {.architecture = "qwen3", .turns_halves = true, .head_norms = true},
    {.architecture = "qwen3", .turns_halves = true, .head_norms = true, .own_output = true, .kv_heads = 1},
    {.architecture = "gemma3",
     .turns_halves = true,
     .head_norms = true,
     .post_norms = true,
     .window = 7,
     .rope_factor = 8,
     .layers = 7},
};
}  // namespace

TEST_CASE("each family has the logits of its plain forward pass", "[gguf]") {
  const kvc_test::TempFolder folder;
  for (std::size_t i = 0; i < families.size(); ++i) {
    const Family& f = families[i];
    kvc_test::Random random(100 + i);
    const Weights weights(f, random);
    const std::string file = folder.file(f.architecture + std::to_string(i) + ".gguf");
    weights.write(f, file);
    const ggml_engine::Model model = ggml_engine::Model::load(file);
    const kvc_test::Tokens text = random_text(40, f.vocab, random);
    const Rows expected = Forward(f, weights).logits(text);
    for (const char* policy : {"contiguous", "paged", "prefix-shared"}) {
      kvc_test::EngineRun run({.policy = policy, .block_tokens = 4, .max_tokens = 40}, 2, model);
      const kvc::SeqId seq = run.cache->open({}).seq;
      double most = 0;
      for (std::size_t first = 0; first < text.size();) {  // prompts in chunks, then single tokens
        const std::size_t count = first < 24 ? 12 : first == 24 ? 3 : 1;
        const kvc_test::Chunk chunk{seq, std::span(text).subspan(first, count)};
        const ggml_engine::Logits logits = run.engine.pass(std::span(&chunk, 1), kvc_test::Wanted::all);
        const Eigen::Map<const Floats> found(logits.values.data(), logits.rows(), logits.columns);
        const Rows difference =
            found.cast<double>() - expected.middleRows(static_cast<Index>(first), static_cast<Index>(count));
        most = std::max(most, difference.cwiseAbs().maxCoeff());
        first += count;
      }
      CAPTURE(i, f.architecture, policy, most, expected.cwiseAbs().maxCoeff());
      REQUIRE(expected.cwiseAbs().maxCoeff() > 1);
      // Gemma's GELU goes by a table of 16-bit floats in ggml.
      REQUIRE(most < (f.post_norms ? 2e-2 : 2e-4));
    }
  }
}

TEST_CASE("quantised matrices, in whatever order the backend stores them, give nearly the logits of floats", "[gguf]") {
  Family f{.architecture = "qwen3", .turns_halves = true, .head_norms = true};
  f.dim = 256;
  f.head_dim = 64;
  f.hidden = 512;
  f.vocab = 64;
  const kvc_test::TempFolder folder;
  for (const ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q5_0, GGML_TYPE_Q6_K, GGML_TYPE_Q8_0}) {
    kvc_test::Random random(7);
    const Weights weights(f, random);
    const std::string file = folder.file("quantised.gguf");
    weights.write(f, file, type);
    const auto text = random_text(20, f.vocab, random);
    const auto logits_of = [&](ggml_engine::WeightType weight_type, std::size_t chunk) {
      const ggml_engine::Model model = ggml_engine::Model::load(file, weight_type);
      kvc_test::EngineRun run({.max_tokens = 20}, 2, model);
      const kvc::SeqId seq = run.cache->open({}).seq;
      const ggml_engine::Logits logits = run.compute(seq, text, chunk);
      return Eigen::VectorXf(Eigen::Map<const Eigen::VectorXf>(logits.values.data(), logits.columns));
    };
    const Eigen::VectorXf floats = logits_of(ggml_engine::WeightType::f32, 0);
    for (const std::size_t chunk : {std::size_t{0}, std::size_t{1}}) {  // products with many rows, and with one
      const Eigen::VectorXf stored = logits_of(ggml_engine::WeightType::as_stored, chunk);
      const float difference = (stored - floats).norm() / floats.norm();  // activations are rounded to 8 bits
      CAPTURE(ggml_type_name(type), chunk, difference);
      REQUIRE(difference < 0.05F);
    }
  }
}

}  // namespace families_test
