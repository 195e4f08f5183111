// Law: the output of attention is the same bits on any number of threads.
#include <thread>
#include <vector>

#include "attention_case.hpp"
#include "kvc/parallel/spmd.hpp"

using namespace kvc_test;

TEMPLATE_TEST_CASE("Attention does not depend on the threads", "[attention][threads]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(104, [](const Case<TestType>& c, Random& random) {
    const Matrix<float> expected = whole(c);
    const int threads = random.between(1, 5);
    CAPTURE(threads);
    Matrix<float> out = c.out();
    Attend<TestType>::prefill(c.view(), c.shape.queries, c.q.cref(), out.ref(), c.options(), ThreadPerCall{threads});
    CHECK(same(out, expected));

    // The threads of an engine that all enter the operation.
    Matrix<float> entered = c.out();
    kvc::Spmd spmd;
    const auto enter = [&](int thread) {
      spmd.run(thread, threads, [&](auto& team) {
        Attend<TestType>::prefill(c.view(), c.shape.queries, c.q.cref(), entered.ref(), c.options(), team);
      });
    };
    std::vector<std::jthread> others;
    for (int thread = 1; thread < threads; ++thread) {
      others.emplace_back(enter, thread);
    }
    enter(0);
    others.clear();  // joins
    CHECK(same(entered, expected));
  });
}
