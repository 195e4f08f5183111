// Attention on problems small enough to compute by hand.
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "catch.hpp"
#include "kvc/attention/decode.hpp"
#include "kvc/attention/extern.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/attention/reference.hpp"
#include "kvc/attention/scores.hpp"

using namespace kvc;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// One head of one dimension: scores are k * q, here with scale 1.
struct Scalar {
  std::vector<float> k, v;
  DenseView<float> view() const {
    const auto n = static_cast<Index>(k.size());
    return {MatrixRef<const float>(k.data(), n, 1), MatrixRef<const float>(v.data(), n, 1), 1};
  }
};

std::vector<float> run(const Scalar& kv, PosRange queries, const AttentionOptions& options, bool fast) {
  std::vector<float> q(static_cast<std::size_t>(queries.size()), 1.0F), out(q.size(), 99.0F);
  const MatrixRef<const float> q_ref(q.data(), queries.size(), 1);
  const MatrixRef<float> out_ref(out.data(), queries.size(), 1);
  fast ? prefill(kv.view(), queries, q_ref, out_ref, options) : reference(kv.view(), queries, q_ref, out_ref, options);
  return out;
}

void check(const Scalar& kv, PosRange queries, const AttentionOptions& options, const std::vector<float>& expected) {
  for (const bool fast : {true, false}) {
    CAPTURE(fast);
    const std::vector<float> out = run(kv, queries, options, fast);
    REQUIRE(out.size() == expected.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      CAPTURE(i);
      CHECK(out[i] == Approx(expected[i]).margin(1e-6));
    }
  }
}

const float ln2 = std::log(2.0F), ln3 = std::log(3.0F);
const Scalar example{{0, ln2, ln3}, {6, 12, 18}};  // weights 1 : 2 : 3

}  // namespace

TEST_CASE("Attention weighs values by the softmax of the scores", "[attention]") {
  check(example, {2, 3}, {.scale = 1}, {(6 * 1 + 12 * 2 + 18 * 3) / 6.0F});
}

TEST_CASE("A causal row sees positions up to its own", "[attention]") {
  check(example, {0, 3}, {.scale = 1}, {6, 10, 14});
  check(example, {0, 3}, {.scale = 1, .causal = false}, {14, 14, 14});
  check(example, {-2, 2}, {.scale = 1}, {0, 0, 6, 10});
  check(example, {5, 7}, {.scale = 1}, {14, 14});
}

TEST_CASE("A window counts the row's own position", "[attention]") {
  check(example, {0, 3}, {.scale = 1, .window = 1}, {6, 12, 18});
  check(example, {0, 3}, {.scale = 1, .window = 2}, {6, 10, 15.6F});
  check(example, {3, 6}, {.scale = 1, .window = 2}, {18, 0, 0});
  // Without causality a window limits the past only.
  check(example, {0, 3}, {.scale = 1, .causal = false, .window = 1}, {14, 15.6F, 18});
}

TEST_CASE("A row sees the keys of its own chunk", "[attention]") {
  const Scalar kv{{0, ln2, ln3, 0, 0}, {6, 12, 18, 24, 30}};
  check(kv, {0, 5}, {.scale = 1, .chunk = 2}, {6, 10, 18, (18 * 3 + 24) / 4.0F, 30});
  check(kv, {0, 5}, {.scale = 1, .chunk = 1}, {6, 12, 18, 24, 30});
  check(kv, {3, 8}, {.scale = 1, .chunk = 4}, {(6 + 12 * 2 + 18 * 3 + 24) / 7.0F, 30, 30, 30, 30});
  check(kv, {8, 9}, {.scale = 1, .chunk = 4}, {0});  // its chunk begins behind the last key
  // With a window, the keys of both; without causality, a chunk limits the past only.
  check(kv, {3, 4}, {.scale = 1, .window = 1, .chunk = 2}, {24});
  check(kv, {3, 4}, {.scale = 1, .window = 4, .chunk = 2}, {(18 * 3 + 24) / 4.0F});
  check(kv, {2, 3}, {.scale = 1, .causal = false, .chunk = 2}, {(18 * 3 + 24 + 30) / 5.0F});
}

TEST_CASE("A row sees the kept positions, and those of its window or chunk", "[attention]") {
  const Scalar kv{{0, ln2, ln3, 0, 0}, {6, 12, 18, 24, 30}};
  check(kv, {0, 5}, {.scale = 1, .window = 1, .kept = 1}, {6, 10, (6 + 18 * 3) / 4.0F, 15, 18});
  check(kv, {0, 5}, {.scale = 1, .window = 1, .kept = 3}, {6, 10, 14, (84 + 24) / 7.0F, (84 + 30) / 7.0F});
  check(kv, {3, 5}, {.scale = 1, .chunk = 4, .kept = 1}, {(84 + 24) / 7.0F, 18});
  check(kv, {9, 10}, {.scale = 1, .window = 2, .kept = 2}, {10});
  check(kv, {4, 5}, {.scale = 1, .window = 1, .kept = 2, .keys = {1, 4}}, {12});
  check(kv, {4, 5}, {.scale = 1, .window = 1, .kept = 2, .keys = {2, 5}}, {30});
  check(kv, {0, 2}, {.scale = 1, .kept = 4}, {6, 10});  // all are visible anyway, but no later one
}

TEST_CASE("A sink takes its part of the softmax and adds nothing", "[attention]") {
  const float of_three = ln3, none = -infinity, all = 1e30F;
  const auto sink = [](const float& logit) { return std::span(&logit, 1); };
  check(example, {2, 3}, {.scale = 1, .sinks = sink(of_three)}, {84.0F / 9});
  check(example, {0, 2}, {.scale = 1, .sinks = sink(of_three)}, {6.0F / 4, 30.0F / 6});
  check(example, {2, 3}, {.scale = 1, .sinks = sink(none)}, {14});
  check(example, {2, 3}, {.scale = 1, .sinks = sink(all)}, {0});
  check(example, {-1, 0}, {.scale = 1, .sinks = sink(of_three)}, {0});
  // Neither scale nor soft cap nor mask apply to it.
  const bool see[] = {true, false, false};
  check(example, {2, 3}, {.scale = 0, .softcap = 0.1F, .sinks = sink(of_three)}, {36.0F / 6});
  check(example, {2, 3}, {.scale = 1, .mask = AttentionMask::boolean(see, 1, 1, 3), .sinks = sink(of_three)}, {1.5F});
  const std::vector<float> q{1};
  std::vector<float> p(3);
  attention_scores(example.view(), {2, 3}, MatrixRef<const float>(q.data(), 1, 1), ScoreStage::softmax,
                   MatrixRef<float>(p.data(), 1, 3), {.scale = 1, .sinks = sink(of_three)});
  CHECK(p[0] == Approx(1.0 / 9));
  CHECK(p[2] == Approx(3.0 / 9));
}

TEST_CASE("The soft cap bends the scores before the mask is added", "[attention]") {
  const float weight = std::exp(0.5F * std::tanh(ln3 / 0.5F) + 1);
  const float bias[] = {0, -infinity, 1};
  check(example, {2, 3}, {.scale = 1, .softcap = 0.5F, .mask = AttentionMask::additive(bias, 1, 1, 3)},
        {(6 + 18 * weight) / (1 + weight)});
}

TEST_CASE("Masks hide keys", "[attention]") {
  const bool see[] = {true, false, true, false, false, false};
  check(example, {2, 4}, {.scale = 1, .mask = AttentionMask::boolean(see, 1, 2, 3)}, {15, 0});
  // One row for both; keys beyond the mask are hidden.
  check(example, {2, 4}, {.scale = 1, .mask = AttentionMask::boolean(see, 1, 1, 3)}, {15, 15});
  check(example, {2, 4}, {.scale = 1, .mask = AttentionMask::boolean(see, 1, 1, 1)}, {6, 6});
  check(example, {2, 4}, {.scale = 1, .mask = AttentionMask::boolean(see, 1, 1, 0)}, {0, 0});
  const float hide[] = {-infinity, -infinity, -infinity};
  check(example, {2, 3}, {.scale = 1, .mask = AttentionMask::additive(hide, 1, 1, 3)}, {0});
}

TEST_CASE("An empty sequence gives zeros", "[attention]") {
  check(Scalar{}, {0, 2}, {.scale = 1}, {0, 0});
  const std::vector<float> q{1};
  std::vector<float> out{5};
  decode(Scalar{}.view(), MatrixRef<const float>(q.data(), 1, 1), MatrixRef<float>(out.data(), 1, 1));
  CHECK(out[0] == 0.0F);
}

TEST_CASE("Query heads read the kv head of their group", "[attention]") {
  const std::vector<float> k{1, 1}, v{3, 5}, q{1, 1, 1, 1};
  std::vector<float> out(4);
  const DenseView<float> kv(MatrixRef<const float>(k.data(), 1, 2), MatrixRef<const float>(v.data(), 1, 2), 2);
  decode(kv, MatrixRef<const float>(q.data(), 1, 4), MatrixRef<float>(out.data(), 1, 4));
  CHECK(out == std::vector<float>{3, 3, 5, 5});
}

TEST_CASE("Scores at each stage", "[attention]") {
  const float bias[] = {1, -infinity, 0};
  const AttentionOptions options{.scale = 2, .softcap = 4, .mask = AttentionMask::additive(bias, 1, 1, 3)};
  const std::vector<float> q{1};
  const auto at = [&](ScoreStage stage) {
    std::vector<float> out(3);
    attention_scores(example.view(), {1, 2}, MatrixRef<const float>(q.data(), 1, 1), stage,
                     MatrixRef<float>(out.data(), 1, 3), options);
    return out;
  };
  const std::vector<float> raw = at(ScoreStage::raw), capped = at(ScoreStage::softcapped),
                           masked = at(ScoreStage::masked);
  CHECK(raw[2] == Approx(2 * ln3));
  CHECK(capped[2] == Approx(4 * std::tanh(ln3 / 2)));
  CHECK(masked[0] == Approx(1));
  CHECK(masked[1] == -infinity);  // by the mask
  CHECK(masked[2] == -infinity);  // by causality
  CHECK(at(ScoreStage::softmax) == std::vector<float>{1, 0, 0});
}

TEST_CASE("Bad calls say what is wrong", "[attention]") {
  using kvc_test::contains;
  const std::vector<float> k(6), q(8);
  std::vector<float> out(8);
  const DenseView<float> kv(MatrixRef<const float>(k.data(), 3, 2), MatrixRef<const float>(k.data(), 3, 2),
                            1);  // dims 2
  const auto call = [&](Index q_rows, Index q_cols, Index out_cols, PosRange queries,
                        const AttentionOptions& options = {}) {
    prefill(kv, queries, MatrixRef<const float>(q.data(), q_rows, q_cols),
            MatrixRef<float>(out.data(), q_rows, out_cols), options);
  };
  CHECK_NOTHROW(call(2, 4, 4, {0, 2}));
  CHECK_THROWS_WITH(call(2, 3, 4, {0, 2}),
                    contains("q columns is 3") && contains("multiple of kv_heads * key_dim = 2"));
  CHECK_THROWS_WITH(call(2, 0, 0, {0, 2}), contains("q columns is 0"));
  CHECK_THROWS_WITH(call(2, 4, 2, {0, 2}), contains("out is [2, 2]") && contains("[2, 4]"));
  CHECK_THROWS_WITH(call(2, 4, 4, {0, 3}), contains("queries is [0, 3)"));
  CHECK_THROWS_WITH(call(2, 4, 4, {0, 2}, {.scale = std::nanf("")}), contains("scale"));
  CHECK_THROWS_WITH(call(2, 4, 4, {0, 2}, {.window = -1}), contains("window is -1"));
  CHECK_THROWS_WITH(call(2, 4, 4, {0, 2}, {.softcap = -2}), contains("softcap is -2"));
  CHECK_THROWS_WITH(call(2, 4, 4, {0, 2}, {.softcap = infinity}), contains("softcap"));
  const MatrixRef<const float> no_columns(k.data(), 3, 0);
  CHECK_THROWS_WITH(DenseView<float>(no_columns, no_columns, Index{1} << 40, Index{1} << 40, 2),
                    contains("kv_heads is 1099511627776, must be between 1 and 16777216"));
  CHECK_THROWS_WITH(DenseView<float>(no_columns, no_columns, 2, Index{1} << 62, 2), contains("key_dim is"));
  CHECK_THROWS_WITH(AttentionMask::additive(k.data(), 2, Index{1} << 40, Index{1} << 40), contains("at most 2^60"));
  const bool mask[9] = {};
  CHECK_THROWS_WITH(call(2, 4, 4, {0, 2}, {.mask = AttentionMask::boolean(mask, 3, 1, 3)}),
                    contains("mask heads is 3"));
  CHECK_THROWS_WITH(call(2, 4, 4, {0, 2}, {.mask = AttentionMask::boolean(mask, 1, 3, 3)}), contains("mask rows is 3"));
  CHECK_THROWS_AS(AttentionMask::boolean(mask, 0, 3, 3), std::invalid_argument);

  const DenseView<float> other(MatrixRef<const float>(k.data(), 3, 2), MatrixRef<const float>(k.data(), 3, 2), 2);
  const DenseView<float> views[] = {kv, other};
  const MatrixRef<const float> q_ref(q.data(), 2, 2);
  const MatrixRef<float> out_ref(out.data(), 2, 2);
  CHECK_THROWS_WITH(decode(std::span<const DenseView<float>>(views), q_ref, out_ref),
                    contains("kv_heads of a view is 2"));
  CHECK_THROWS_WITH(decode(std::span<const DenseView<float>>(views, 1), q_ref, out_ref), contains("q rows is 2"));
  CHECK_THROWS_WITH(DenseView<float>(MatrixRef<const float>(k.data(), 2, 3), MatrixRef<const float>(k.data(), 2, 2), 2),
                    contains("k is [2, 3]"));
}
