// A law of the decoder: in f32, the bits of logits do not depend on who computes them, nor on how many do.
#include <span>

#include "catch.hpp"
#include "kvc/cache.hpp"
#include "run_model.hpp"
#include "tiny_model.hpp"
#if defined(KVC_HAVE_OPENMP)
#include "kvc/parallel/openmp.hpp"
#endif
#if defined(KVC_HAVE_TBB)
#include "kvc/parallel/tbb.hpp"
#endif

using kvc::Index;
using kvc::Paged;
using kvc::Pos;
using kvc::SeqId;
using kvc::llama::Matrix;
using kvc_test::equal_bits;
using kvc_test::pool_for;
using kvc_test::random_tokens;
using kvc_test::teach;
using kvc_test::tiny_config;
using kvc_test::tiny_model;

namespace {

constexpr Pos length = 90;

/// Tasks in two interleaved halves, last first.
struct Shuffled {
  template <class F>
  void parallel_for(Index n, F&& f) const {
    for (Index i = n - 1; i >= 0; i -= 2) f(i);
    for (Index i = n - 2; i >= 0; i -= 2) f(i);
  }
};

}  // namespace

TEST_CASE("logits have the same bits on any number of threads", "[laws][model][threads]") {
  // Large enough that matrix products are split as well.
  kvc::llama::Config config = tiny_config();
  config.dim = 96;
  config.hidden_dim = 300;
  config.vocab_size = 500;
  const kvc::llama::Model model = tiny_model(config, 5);
  const auto tokens = random_tokens(length, config.vocab_size, 2);
  const auto logits = [&](auto&& ex) {
    kvc::KvCache<float, Paged> cache(config.cache_shape(), pool_for<Paged>(length, 16));
    const SeqId seq = cache.open();
    Matrix all(length, config.vocab_size);
    all.topRows(60) = teach(model, cache, seq, std::span(tokens).first(60), 0, ex);
    all.bottomRows(30) = teach(model, cache, seq, std::span(tokens).subspan(60), 1, ex);
    return all;
  };
  const Matrix one = logits(kvc::Sequential{});
  CHECK(equal_bits(logits(Shuffled{}), one));
#if defined(KVC_HAVE_OPENMP)
  for (int threads : {1, 2, 3, 4}) CHECK(equal_bits(logits(kvc::OpenMp{threads}), one));
#endif
#if defined(KVC_HAVE_TBB)
  for (int threads : {1, 2, 4}) CHECK(equal_bits(logits(kvc::Tbb(threads)), one));
#endif
}
