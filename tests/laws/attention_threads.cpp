// Law: the output of attention is the same bits on any number of threads.
#include "attention_case.hpp"

using namespace kvc_test;

TEMPLATE_TEST_CASE("Attention does not depend on the threads", "[attention][threads]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(104, [](const Case<TestType>& c, Random& random) {
    const Matrix<float> expected = whole(c);
    const int threads = random.between(1, 5);
    CAPTURE(threads);
    Matrix<float> out = c.out();
    Attend<TestType>::prefill(c.view(), c.shape.queries, c.q.cref(), out.ref(), c.options(), ThreadPerCall{threads});
    CHECK(same(out, expected));
  });
}
