#include "cost_model.hpp"

#include "catch.hpp"
#include "scenario.hpp"

using namespace serving;

TEST_CASE("Shapes of models have as many parameters as their makers state", "[serving]") {
  const std::vector<std::pair<std::string, double>> billions = {{"llama-3-8b", 8.03},   {"llama-3-70b", 70.55},
                                                                {"qwen2.5-7b", 7.62},   {"mistral-7b", 7.24},
                                                                {"llama-2-13b", 13.02}, {"shakespeare-0.7m", 0.00073}};
  REQUIRE(billions.size() == known_models().size());
  for (const auto& [name, expected] : billions) {
    CAPTURE(name);
    REQUIRE(find_model(name).parameters() / 1e9 == Approx(expected).epsilon(0.002));
  }
  REQUIRE(find_model("llama-3-8b").kv_bytes_per_token() == 131072);
  REQUIRE(find_model("llama-2-13b").kv_bytes_per_token() == 819200);
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
