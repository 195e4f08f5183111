// Law: the output of a query row is the same bits, whatever cache the keys and values lie in.
#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

using namespace kvc_test;

namespace {

template <class T, class Policy, class Layout>
void through_cache(const Case<T>& c, const typename Policy::Config& config, const Matrix<float>& expected) {
  const CaseShape& s = c.shape;
  kvc::KvCache<T, Policy, Layout> cache(
      {.layers = 2, .kv_heads = s.kv_heads, .key_dim = s.key_dim, .value_dim = s.value_dim}, config);
  const kvc::SeqId seq = cache.open();
  auto append = cache.extend_without_tokens(seq, s.length);
  cache.write(0, append, Matrix<float>(s.length, c.k_numbers.cols()).cref(),
              Matrix<float>(s.length, c.v_numbers.cols()).cref());
  cache.write(1, append, c.k_numbers.cref(), c.v_numbers.cref());
  cache.commit(std::move(append));
  Matrix<float> out = c.out();
  Attend<T>::prefill(cache.view(1, seq), s.queries, c.q.cref(), out.ref(), c.options());
  CHECK(same(out, expected));
}

}  // namespace

TEMPLATE_TEST_CASE("Attention does not depend on policy, layout and block size", "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(106, [](const Case<TestType>& c, Random&) {
    if (c.shape.length == 0) {
      return;
    }
    const Matrix<float> expected = whole(c);
    through_cache<TestType, kvc::Contiguous, kvc::HeadMajor>(c, {.sequences = 1, .max_tokens = c.shape.length},
                                                             expected);
    for (const Pos block_tokens : {1, 7, 16, 64}) {
      CAPTURE(block_tokens);
      const Index blocks = c.shape.length / block_tokens + 1;
      through_cache<TestType, kvc::Paged, kvc::TokenMajor>(c, {.blocks = blocks, .block_tokens = block_tokens},
                                                           expected);
      through_cache<TestType, kvc::PrefixShared<>, kvc::HeadMajor>(c, {.blocks = blocks, .block_tokens = block_tokens},
                                                                   expected);
      if constexpr (kvc::ScaledElement<TestType>) {
        through_cache<TestType, kvc::Paged, kvc::ScalePlanes<kvc::TokenMajor>>(
            c, {.blocks = blocks, .block_tokens = block_tokens}, expected);
        through_cache<TestType, kvc::Paged, kvc::ScalePlanes<>>(c, {.blocks = blocks, .block_tokens = block_tokens},
                                                                expected);
      }
      if constexpr (std::same_as<TestType, float>) {  // the other pairs: what a row is made of has no part in them
        through_cache<float, kvc::Contiguous, kvc::TokenMajor>(c, {.sequences = 1, .max_tokens = c.shape.length},
                                                               expected);
        through_cache<float, kvc::Paged, kvc::HeadMajor>(c, {.blocks = blocks, .block_tokens = block_tokens}, expected);
      }
    }
  });
}
