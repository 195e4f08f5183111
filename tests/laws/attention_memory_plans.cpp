// Law: the output of attention is the same bits with every plan for memory.
#include <cstdint>
#include <iterator>
#include <string>

#include "attention_case.hpp"
#include "kvc/attention/memory_plan.hpp"

using namespace kvc_test;

namespace {
kvc::MemoryPlan random_memory_plan(Random& random) {
  constexpr std::int32_t lines[] = {0, 1, 7, 104, 208, kvc::MemoryPlan::max_lines};
  return {static_cast<kvc::MemoryPlan::Level>(random.between(0, 2)), lines[random.between(0, 5)],
          static_cast<kvc::MemoryPlan::Heads>(random.between(0, 2))};
}
}  // namespace

TEMPLATE_TEST_CASE("Attention does not depend on the plan for memory", "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(118, [](const Case<TestType>& c, Random& random) {
    const Matrix<float> expected = whole(c);
    const CutView<TestType> cut(c.view(), random, random.one_in(2) ? 4000 : 40);
    const kvc::MemoryPlan of_list = kvc::memory_plans[random.between(std::size_t{1}, std::size(kvc::memory_plans) - 1)];
    for (const kvc::MemoryPlan& plan : {of_list, random_memory_plan(random)}) {
      CAPTURE(to_string(plan));
      kvc::AttentionOptions options = c.options();
      options.memory_plan = plan;
      Matrix<float> out = c.out();
      Attend<TestType>::prefill(cut, c.shape.queries, c.q.cref(), out.ref(), options);
      CHECK(same(out, expected));
    }
  });
}

TEST_CASE("A plan for memory that is out of range is refused", "[attention]") {
  Random random(1);
  const Case<float> c(CaseShape{}, random);
  kvc::AttentionOptions options;
  Matrix<float> out = c.out();
  for (const std::int32_t lines : {-1, kvc::MemoryPlan::max_lines + 1}) {
    options.memory_plan = kvc::MemoryPlan{.lines = lines};
    CHECK_THROWS_WITH(Attend<float>::prefill(c.view(), c.shape.queries, c.q.cref(), out.ref(), options),
                      contains("memory_plan.lines is " + std::to_string(lines)));
  }
}
