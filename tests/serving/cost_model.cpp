#include "cost_model.hpp"

#include "catch.hpp"
#include "scenario.hpp"

using namespace serving;

TEST_CASE("Shapes of models have as many parameters as their makers state", "[serving]") {
  // Gemma 3 and Llama 4 without their encoders of images, of 0.4 and 0.9 billions.
  const std::vector<std::pair<std::string, double>> billions = {
      {"llama-3-8b", 8.03},      {"llama-3-70b", 70.55},        {"qwen2.5-7b", 7.62},    {"mistral-7b", 7.24},
      {"llama-2-13b", 13.02},    {"shakespeare-0.7m", 0.00073}, {"gemma-3-27b", 27.02},  {"gpt-oss-20b", 20.91},
      {"llama-4-scout", 107.77}, {"jamba-52b", 51.6},           {"qwen3-next-80b", 79.7}};
  REQUIRE(billions.size() == known_models().size());
  for (const auto& [name, expected] : billions) {
    CAPTURE(name);
    REQUIRE(find_model(name).parameters() / 1e9 == Approx(expected).epsilon(0.002));
  }
  REQUIRE(find_model("llama-3-8b").kv_bytes_per_token() == 131072);
  REQUIRE(find_model("llama-2-13b").kv_bytes_per_token() == 819200);
  // Of a mixture of experts, those that a token is multiplied with.
  const ModelShape& gpt_oss = find_model("gpt-oss-20b");
  REQUIRE((gpt_oss.layer_parameters() + gpt_oss.classifier_parameters()) / 1e9 == Approx(3.6).epsilon(0.01));
  REQUIRE(gpt_oss.weights() / (1 << 30) == Approx(12.8).epsilon(0.01));  // the size of the published weights
  const ModelShape& scout = find_model("llama-4-scout");
  REQUIRE((scout.layer_parameters() + scout.embeddings()) / 1e9 == Approx(17).epsilon(0.02));
  const ModelShape& qwen = find_model("qwen3-next-80b");
  REQUIRE((qwen.layer_parameters() + qwen.embeddings()) / 1e9 == Approx(3.9).epsilon(0.01));
  REQUIRE(qwen.kv_bytes_per_token() == 12 * 2 * 2 * 256 * 2);
  REQUIRE(qwen.state_bytes() == 36 * 2'146'304);
  const ModelShape& jamba = find_model("jamba-52b");
  REQUIRE((jamba.layer_parameters() + jamba.embeddings()) / 1e9 == Approx(12).epsilon(0.02));
  REQUIRE(jamba.state_bytes() == 28 * 573'440);
  for (const Hardware& hardware : known_hardware()) {
    CAPTURE(hardware.name);
    REQUIRE_FALSE(hardware.source.empty());
  }
}

TEST_CASE("The time of a step is the larger of operations and bytes, plus the overhead", "[serving]") {
  // 2 layers: 4 x (2 x 2 x 4 + 2 x 1 x 4) = 96 attention weights, 3 x 4 x 8 = 96 of the MLP; classifier 4 x 10.
  const ModelShape model{"toy", 2, 4, 2, 1, 4, 8, 10, false, 2, 2, ""};
  REQUIRE(model.layer_parameters() == 384);
  REQUIRE(model.parameters() == 464);
  REQUIRE(model.kv_bytes_per_token() == 32);
  const StepCost cost{.tokens = 3, .wanted = 1, .pairs = 6, .context = 3, .copied = 5};
  const Hardware slow_compute{"", 1e3, 1e12, 1e9, 1, 0.5, ""};
  const CostModel compute(model, slow_compute);
  REQUIRE(compute.operations(cost) == 2 * 384 * 3 + 2 * 40 + 4 * 2 * 2 * 4 * 6);
  REQUIRE(compute.bytes(cost) == 2 * (384 + 40) + 32 * (3 + 3 + 10));
  REQUIRE(compute.time(cost) == 3268 * millisecond);  // 2,768 operations at 1,000 per second
  const CostModel traffic(model, {"", 1e12, 1e3, 1e9, 2, 0.5, ""});
  REQUIRE(traffic.time(cost) == 1180 * millisecond);  // 1,360 bytes at 2 x 1,000 per second
  REQUIRE(traffic.pool_tokens(0.5) == static_cast<Index>((1e9 - 928) / 32));
  REQUIRE(CostModel(model, {"", 1, 1, 100, 1, 0, ""}).pool_tokens() == 0);
  REQUIRE_THROWS_WITH(CostModel(model, Hardware{}), kvc_test::contains("peak"));
  REQUIRE_THROWS_WITH(CostModel(ModelShape{}, slow_compute), kvc_test::contains("model"));
}

TEST_CASE("A step reads and writes the states of its sequences, and each token changes them", "[serving]") {
  ModelShape model{"toy", 4, 4, 2, 1, 4, 8, 10, false, 2, 2, ""};
  model.groups = {{1}};
  model.states = {{.layers = 3, .bytes = 100, .parameters = 50, .operations = 7}};
  // 1 layer with attention of 96 weights and 3 with 50; 4 MLPs of 96.
  REQUIRE(model.layer_parameters() == 96 + 3 * 50 + 4 * 96);
  REQUIRE(model.kv_bytes_per_token() == 16);
  const CostModel cost_model(model, {"", 1e12, 1e3, 1e9, 1, 0.5, ""});
  const StepCost cost{.tokens = 5, .wanted = 2, .sequences = 2, .groups = {{.pairs = 9, .context = 6}}};
  REQUIRE(cost_model.recurrence_operations(cost) == 5 * 3 * 7);
  REQUIRE(cost_model.operations(cost) == 2 * (630 * 5 + 40 * 2) + 4 * 8 * 9 + 5 * 3 * 7);
  REQUIRE(cost_model.bytes(cost) == 2 * (630 + 40) + 16 * (6 + 5) + 2 * 2 * 300);
  model.groups = {{2}};
  REQUIRE_THROWS_WITH(CostModel(model, find_hardware("a10")), kvc_test::contains("layers of all groups is 5"));
  model.groups = {};
  REQUIRE_THROWS_WITH(CostModel(model, find_hardware("a10")), kvc_test::contains("groups is 0"));
}

TEST_CASE("Prefill is bound by operations and decode by bytes", "[serving]") {
  const CostModel model(find_model("llama-3-8b"), find_hardware("a100-80g"));
  const auto bound_by_operations = [&](const StepCost& cost) {
    return model.operations(cost) / model.hardware().peak > model.bytes(cost) / model.hardware().bandwidth;
  };
  REQUIRE(bound_by_operations({.tokens = 2048, .wanted = 1, .pairs = 2048 * 2049 / 2, .context = 2048}));
  REQUIRE_FALSE(bound_by_operations({.tokens = 32, .wanted = 32, .pairs = 32 * 1000, .context = 32 * 1000}));
}

TEST_CASE("Single queries have a rate of their own, and the last layer may be for one row of each sequence",
          "[serving]") {
  ModelShape model{"toy", 2, 4, 2, 1, 4, 8, 10, false, 2, 2, ""};
  // A prompt of 3 tokens after 2 positions, and a single token after 9.
  const StepCost cost{.tokens = 4, .wanted = 1, .pairs = 12 + 10, .context = 15, .sequences = 2, .decode_context = 10};
  Hardware hardware{"", 1e3, 1e12, 1e9, 1, 0, ""};
  const CostModel all(model, hardware);
  REQUIRE(all.matrix_operations(cost) == 2 * (384 * 4 + 40));
  REQUIRE(all.prefill_attention_operations(cost) == 4 * 8 * 2 * 12);
  REQUIRE(all.decode_attention_operations(cost) == 4 * 8 * 2 * 10);
  model.last_rows_only = true;
  const CostModel some(model, hardware);
  // Of the 192 weights of the last layer, 32 make keys and values; the rest and the classifier are for two rows.
  REQUIRE(some.matrix_operations(cost) == 2 * ((192 + 32) * 4 + (160 + 40) * 2));
  REQUIRE(some.prefill_attention_operations(cost) == 4 * 8 * 12);
  REQUIRE(some.decode_attention_operations(cost) == 4 * 8 * (10 + 15));
  const double matrices = some.matrix_operations(cost), prefill = some.prefill_attention_operations(cost);
  const double decode = some.decode_attention_operations(cost);
  hardware.attention_peak = 500;
  REQUIRE(CostModel(model, hardware).time(cost) == Approx(1e9 * (matrices / 1000 + (prefill + decode) / 500)));
  hardware.decode_peak = 100;
  hardware.per_sequence = 3;
  REQUIRE(CostModel(model, hardware).time(cost) == Approx(1e9 * (matrices / 1000 + prefill / 500 + decode / 100 + 6)));
}

TEST_CASE("A layer with a window or chunks has the attention of what it sees", "[serving]") {
  for (const kvc::Retained& retained :
       {kvc::Retained{}, kvc::Retained{.window = 5}, kvc::Retained{.window = 5, .kept = 3}, kvc::Retained{.chunk = 8},
        kvc::Retained{.window = 6, .chunk = 8, .kept = 2}}) {
    for (Pos first = 0; first < 20; ++first) {
      for (Pos last = first + 1; last < 24; ++last) {
        CAPTURE(retained.window, retained.chunk, retained.kept, first, last);
        Index pairs = 0, rows = 0;
        for (Pos key = 0; key < last; ++key) {
          Index queries = 0;
          for (Pos query = std::max(first, key); query < last; ++query) {
            const bool in_window = retained.window == 0 || query - key < retained.window;
            const bool in_chunk = retained.chunk == 0 || key >= query / retained.chunk * retained.chunk;
            queries += key < retained.kept || (in_window && in_chunk) ? 1 : 0;
          }
          pairs += queries;
          rows += queries > 0 ? 1 : 0;
        }
        REQUIRE(pairs_seen(retained, {first, last}) == pairs);
        REQUIRE(rows_seen(retained, {first, last}) == rows);
      }
    }
  }
  // A toy of three layers, two of them with a window of 8: a query of one token after 99 others.
  ModelShape model{"toy", 3, 4, 2, 1, 4, 8, 10, false, 2, 2, ""};
  const Hardware hardware{"", 1e3, 1e3, 1e9, 1, 0, ""};
  const StepCost everything{.tokens = 1, .wanted = 1, .pairs = 100, .context = 100, .decode_context = 100};
  StepCost cost = everything;
  cost.groups = {{8, 8, 8}, {100, 100, 100}};
  const CostModel alike(model, hardware);
  model.groups = {{2, {.window = 8}}, {1}};
  const CostModel grouped(model, hardware);
  REQUIRE(alike.decode_attention_operations(cost) == 4 * 8 * 300);
  REQUIRE(grouped.decode_attention_operations(cost) == 4 * 8 * 116);
  REQUIRE(grouped.prefill_attention_operations(cost) == 0);
  REQUIRE(alike.bytes(cost) - grouped.bytes(cost) == Approx(16 * (300 - 116)));  // 16 bytes for a row of one layer
  REQUIRE(grouped.matrix_operations(cost) == alike.matrix_operations(everything));
  model.groups = {{2, {.window = 8}}};
  REQUIRE_THROWS_WITH(CostModel(model, hardware), kvc_test::contains("layers of the model"));
}

TEST_CASE("A step reads the experts that its tokens choose", "[serving]") {
  ModelShape model{"toy", 2, 4, 2, 1, 4, 8, 10, false, 2, 2, ""};
  model.experts = {.count = 4, .chosen = 2, .shared = 1, .weight_bytes = 0.5};
  // Attention 96 and router 16 in each layer; of 5 MLPs of 96 a token passes 3.
  REQUIRE(model.layer_parameters() == 2 * (96 + 16) + 2 * 3 * 96);
  REQUIRE(model.parameters() == 2 * (96 + 16) + 2 * 5 * 96 + 80);
  REQUIRE(model.weights() == 2 * (2 * (96 + 16) + 80) + 2 * 5 * 96 / 2);
  const CostModel cost(model, {"", 1e3, 1e3, 1e9, 1, 0, ""});
  const double rest = 2 * (2 * (96 + 16) + 40);
  const auto experts = [&](Index tokens) {
    return (cost.bytes({.tokens = tokens}) - rest - 32.0 * static_cast<double>(tokens)) / (2 * 48);
  };
  REQUIRE(experts(1) == Approx(3));  // two chosen, and the shared one
  REQUIRE(experts(2) == Approx(4));  // half of them in the first token, and half of the others in the second
  REQUIRE(experts(100) == Approx(5));
}
