// Random operations on each policy beside a plain model of it, with allocations that fail now and then.
#include "policies.hpp"
#include "random_operations.hpp"

using namespace kvc_test;

TEMPLATE_TEST_CASE("A policy does what the model does", "[policy][model]", KVC_ALL_POLICIES) {
  const std::uint64_t seed = GENERATE(std::uint64_t{1}, std::uint64_t{2}, kvc_test::any_seed);
  const std::uint64_t used = seed_or(seed);
  INFO("KVC_TEST_SEED=" << used);
  Random random(used);
  OracleModel model(make_policy<TestType>(128, 12, 60));
  run(random, model, operations_or(40'000));
}
