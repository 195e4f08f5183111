// An engine that owns its memory and its threads, with kvc inside. All its threads run all operations of a step, each
// with its number, as those of ggml run a graph; nothing of the engine is kvc's but the cache.
#include <Eigen/Core>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "kvc/attention/decode.hpp"
#include "kvc/attention/extern.hpp"  // the kernels are compiled once, for all tests
#include "kvc/attention/prefill.hpp"
#include "kvc/attention/reference.hpp"
#include "kvc/cache.hpp"
#include "kvc/layout/layer_major.hpp"
#include "kvc/memory/borrowed_space.hpp"
#include "kvc/parallel/spmd.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace embedded_engine_test {
namespace {
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Tokens = std::vector<kvc::Token>;
using Cache = kvc::KvCache<float, kvc::PrefixShared<>, kvc::LayerMajor<>, kvc::BorrowedSpace>;

constexpr kvc::Index layers = 3, heads = 4, kv_heads = 2, dim = 16, width = heads * dim;
constexpr kvc::Shape shape{.layers = layers, .kv_heads = kv_heads, .key_dim = dim};
const Cache::PolicyType::Config config{.blocks = 24, .block_tokens = 8};

/// A model: random weights, attention with a residual, no feed-forward network.
struct Model {
  std::vector<Matrix> q, k, v;
  Matrix embedding;
  Model() {
    srand(3);
    for (kvc::Index layer = 0; layer < layers; ++layer) {
      q.push_back(Matrix::Random(width, width) / 8);
      k.push_back(Matrix::Random(width, kv_heads * dim) / 8);
      v.push_back(Matrix::Random(width, kv_heads * dim) / 8);
    }
    embedding = Matrix::Random(32, width);
  }
};

class Engine {
 public:
  explicit Engine(int threads)
      : threads_(threads),
        arena_(static_cast<std::size_t>(Cache::pool_bytes(shape, config)) + 64),
        cache_(shape, config, kvc::BorrowedSpace(aligned(arena_.data()), arena_.size() - 64)) {}

  /// The hidden state behind the last of `tokens`; tokens of earlier prompts are found in the cache.
  Matrix run(const Tokens& tokens) {
    const kvc::Opened opened = cache_.open(tokens);
    found_ = opened.cached;
    auto step = cache_.extend(opened.seq, std::span(tokens).subspan(static_cast<std::size_t>(opened.cached)));
    Matrix x(step.size(), width);
    for (kvc::Index i = 0; i < x.rows(); ++i) {
      x.row(i) = model_.embedding.row(tokens[static_cast<std::size_t>(opened.cached + i)]);
    }
    Matrix q(x.rows(), width), out(x.rows(), width);
    std::barrier next(threads_);
    const auto graph = [&](int thread) {  // of each thread
      for (kvc::Index layer = 0; layer < layers; ++layer) {
        const auto at = static_cast<std::size_t>(layer);
        for (kvc::Index row = thread; row < x.rows(); row += threads_) {  // an operation of the engine's own
          q.row(row) = x.row(row) * model_.q[at];
        }
        next.arrive_and_wait();
        spmd_.run(thread, threads_, [&](auto& team) {  // an operation of kvc
          cache_.write(layer, step, Matrix(x * model_.k[at]), Matrix(x * model_.v[at]));
          kvc::prefill(cache_.view(layer, opened.seq), step.range(), q, out, {}, team);
        });
        for (kvc::Index row = thread; row < x.rows(); row += threads_) {
          x.row(row) += out.row(row);
        }
        next.arrive_and_wait();
      }
    };
    std::vector<std::jthread> others;
    for (int thread = 1; thread < threads_; ++thread) {
      others.emplace_back(graph, thread);
    }
    graph(0);
    others.clear();  // joins
    cache_.commit(std::move(step));
    cache_.close(opened.seq);
    return x.bottomRows(1);
  }
  [[nodiscard]] kvc::Pos found() const { return found_; }
  [[nodiscard]] const Model& model() const { return model_; }

 private:
  static std::byte* aligned(std::byte* p) { return p + (64 - reinterpret_cast<std::uintptr_t>(p) % 64) % 64; }

  int threads_;
  std::vector<std::byte> arena_;
  Cache cache_;
  kvc::Spmd spmd_;
  Model model_;
  kvc::Pos found_ = 0;
};

/// The same without a cache and without threads.
Matrix plain(const Model& model, const Tokens& tokens) {
  const auto length = static_cast<kvc::Pos>(tokens.size());
  Matrix x(length, width), out(length, width);
  for (kvc::Index i = 0; i < x.rows(); ++i) {
    x.row(i) = model.embedding.row(tokens[static_cast<std::size_t>(i)]);
  }
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const Matrix k = x * model.k[layer], v = x * model.v[layer], q = x * model.q[layer];
    const kvc::DenseView<float> kv({k.data(), length, k.cols()}, {v.data(), length, v.cols()}, kv_heads);
    kvc::reference(kv, {0, length}, q, out);
    x += out;
  }
  return x.bottomRows(1);
}
}  // namespace

TEST_CASE("An engine with memory and threads of its own embeds a cache", "[embedding][threads]") {
  Tokens first, second;
  for (kvc::Token i = 0; i < 37; ++i) {
    first.push_back(i * 7 % 32);
    second.push_back(i < 25 ? first.back() : i % 32);
  }
  Matrix alone(1, width);
  for (const int threads : {1, 2, 3}) {
    Engine engine(threads);
    const Matrix one = engine.run(first), two = engine.run(second);
    REQUIRE(engine.found() == 25);  // of the prefix that both have, three blocks and a row of the fourth
    REQUIRE((one - plain(engine.model(), first)).cwiseAbs().maxCoeff() < 1e-4F);
    REQUIRE((two - plain(engine.model(), second)).cwiseAbs().maxCoeff() < 1e-4F);
    alone = threads == 1 ? two : alone;
    REQUIRE(two == alone);  // the same bits on any number of threads
  }
}

}  // namespace embedded_engine_test
