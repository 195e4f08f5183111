// Law: in a batch whose sequences share prefixes, each row has the bits that its sequence gives alone, unshared.
#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "attention_case.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/prefix_shared.hpp"

using namespace kvc_test;

namespace {

/// The rows of a token: the same wherever the token stands, so that sequences that share tokens may share rows.
template <class T>
void append(kvc::KvCache<T, kvc::PrefixShared<>>& cache, kvc::SeqId seq, const std::vector<kvc::Token>& tokens) {
  const kvc::Shape& shape = cache.shape();
  auto step = cache.extend(seq, std::span<const kvc::Token>(tokens));
  Matrix<float> k(step.size(), shape.kv_heads * shape.key_dim), v(step.size(), shape.kv_heads * shape.value_dim);
  for (Index i = 0; i < k.rows(); ++i) {
    Random random(static_cast<std::uint64_t>(tokens[static_cast<std::size_t>(i)]));
    std::generate_n(k.row(i), k.cols(), [&] { return random.uniform(-2, 2); });
    std::generate_n(v.row(i), v.cols(), [&] { return random.uniform(-2, 2); });
  }
  cache.write(0, step, k.cref(), v.cref());
  cache.commit(std::move(step));
}

std::vector<kvc::Token> random_tokens(Random& random, Pos count) {
  std::vector<kvc::Token> tokens(static_cast<std::size_t>(count));
  for (kvc::Token& token : tokens) {
    token = random.between(1, 50);
  }
  return tokens;
}

/// The rows of a sequence, in one piece.
template <class T>
Case<T> copy_of(const kvc::KvCache<T, kvc::PrefixShared<>>& cache, kvc::SeqId seq, CaseShape shape, Random& random) {
  shape.length = cache.length(seq);
  shape.queries = {shape.length - 1, shape.length};
  Case<T> c(shape, random);
  for (Index h = 0; h < shape.kv_heads; ++h) {
    cache.view(0, seq).for_each_run(h, {0, shape.length}, [&](const kvc::KvRun<T>& run) {
      for (Index r = 0; r < run.rows; ++r) {
        std::copy_n(run.k + r * run.k_stride, kvc::Element<T>::row_size(shape.key_dim), c.key(run.first + r, h));
        std::copy_n(run.v + r * run.v_stride, kvc::Element<T>::row_size(shape.value_dim), c.value(run.first + r, h));
      }
    });
  }
  return c;
}

template <class T>
std::vector<AnyView<T>> views_of(const kvc::KvCache<T, kvc::PrefixShared<>>& cache,
                                 const std::vector<kvc::SeqId>& sequences) {
  std::vector<AnyView<T>> views;
  for (const kvc::SeqId seq : sequences) {
    views.emplace_back(cache.view(0, seq));
  }
  return views;
}

Matrix<float> random_queries(Index count, const CaseShape& shape, Random& random) {
  Matrix<float> q(count, shape.query_heads() * shape.key_dim);
  for (Index b = 0; b < count; ++b) {
    std::generate_n(q.row(b), q.cols(), [&] { return random.uniform(-2, 2); });
  }
  return q;
}

}  // namespace

TEMPLATE_TEST_CASE("A batch that shares prefixes has the bits of each sequence alone", "[attention]",
                   KVC_ALL_ELEMENTS) {
  const std::uint64_t seed = seed_or(401);
  Random random(seed);
  for (int i = 0; i < cases_or(12); ++i) {
    CaseShape shape = random_shape(random, 100);
    shape.mask = CaseShape::Mask::none;
    shape.causal = true;
    const Pos block_tokens = random.one_in(2) ? 16 : random.between(Pos{1}, Pos{70});
    const Pos prefix = random.one_in(4) ? random.between(Pos{1000}, Pos{1300}) : random.between(Pos{1}, Pos{400});
    CAPTURE(seed, i, shape, block_tokens, prefix);

    kvc::KvCache<TestType, kvc::PrefixShared<>> cache(
        {.layers = 1, .kv_heads = shape.kv_heads, .key_dim = shape.key_dim, .value_dim = shape.value_dim},
        {.blocks = 8000 / block_tokens + 40, .block_tokens = block_tokens});
    std::vector<kvc::SeqId> sequences{cache.open()};
    std::vector<std::vector<kvc::Token>> tokens{random_tokens(random, prefix)};
    append(cache, sequences[0], tokens[0]);
    for (int n = random.between(1, 10); n > 0; --n) {  // each a branch of the root or of a branch
      const auto parent = static_cast<std::size_t>(random.between(0, static_cast<int>(sequences.size()) - 1));
      const Pos at = random.between(Pos{0}, cache.length(sequences[parent]));
      std::vector<kvc::Token> prompt(tokens[parent].begin(), tokens[parent].begin() + at);
      const std::vector<kvc::Token> own = random_tokens(random, random.between(Pos{1}, Pos{200}));
      prompt.insert(prompt.end(), own.begin(), own.end());
      Pos cached = at;
      if (random.one_in(2)) {
        sequences.push_back(cache.fork(sequences[parent], at));
      } else {
        const kvc::Opened opened = cache.open(prompt);
        sequences.push_back(opened.seq);
        cached = opened.cached;
      }
      append(cache, sequences.back(), {prompt.begin() + cached, prompt.end()});
      tokens.push_back(std::move(prompt));
    }
    if (random.one_in(2)) {  // with a prefix that it does not share
      sequences.push_back(cache.open());
      tokens.push_back(random_tokens(random, 130));
      tokens.back().front() = 99;
      append(cache, sequences.back(), tokens.back());
    }

    const std::vector<AnyView<TestType>> views = views_of(cache, sequences);
    const Matrix<float> q = random_queries(std::ssize(sequences), shape, random);
    Matrix<float> batch(q.rows(), shape.query_heads() * shape.value_dim), on_threads(q.rows(), batch.cols());
    const std::vector<float> sinks = random_sinks(shape, random);
    const kvc::AttentionOptions options{
        .window = shape.window, .chunk = shape.chunk, .kept = shape.kept, .softcap = shape.softcap, .sinks = sinks};
    const std::span<const AnyView<TestType>> all(views);
    Attend<TestType>::decode(all, q.cref(), batch.ref(), options);
    struct Backwards {
      static Index concurrency() { return 3; }
      void parallel_for(Index n, const std::function<void(Index)>& f) const {
        while (n > 0) {
          f(--n);
        }
      }
    };
    Attend<TestType>::decode(all, q.cref(), on_threads.ref(), options, Backwards{});
    CHECK(same(on_threads, batch));

    for (Index b = 0; b < q.rows(); ++b) {
      CAPTURE(b, views[static_cast<std::size_t>(b)].length());
      Matrix<float> alone(1, batch.cols());
      Attend<TestType>::decode(views[static_cast<std::size_t>(b)], q.cref().middle_rows(b, 1), alone.ref(), options);
      CHECK(same_row(alone.row(0), batch.row(b), batch.cols()));
      const Case<TestType> copy = copy_of(cache, sequences[static_cast<std::size_t>(b)], shape, random);
      Attend<TestType>::decode(copy.view(), q.cref().middle_rows(b, 1), alone.ref(), options);
      CHECK(same_row(alone.row(0), batch.row(b), batch.cols()));
    }
  }
}

TEMPLATE_TEST_CASE("A batch has the same bits however finely it is cut", "[attention]", float, Eigen::bfloat16,
                   kvc::Int8) {
  /// Claims to have many threads, and runs items in any order.
  struct Shuffled {
    Index threads;
    std::uint64_t seed;
    [[nodiscard]] Index concurrency() const { return threads; }
    void parallel_for(Index n, const std::function<void(Index)>& f) const {
      std::vector<Index> items(static_cast<std::size_t>(n));
      std::iota(items.begin(), items.end(), Index{0});
      std::ranges::shuffle(items, std::mt19937_64(seed));
      std::ranges::for_each(items, f);
    }
  };
  const std::uint64_t seed = seed_or(402);
  Random random(seed);
  for (int i = 0; i < cases_or(12); ++i) {
    CaseShape shape = random_shape(random, 100);
    shape.key_dim = shape.value_dim = random.between(Index{1}, Index{40});
    const Pos block_tokens = random.one_in(2) ? 4096 : random.one_in(2) ? 16 : random.between(Pos{1}, Pos{200});
    // A window begins in another split for each length.
    const Pos window = random.one_in(2) ? kvc::AttentionOptions{}.window : random.between(Pos{1}, Pos{1500});
    const Pos chunk = random.one_in(3) ? random.between(Pos{1}, Pos{1500}) : 0;
    const Pos kept = random.one_in(2) ? random.between(Pos{1}, Pos{700}) : 0;
    CAPTURE(seed, i, shape, block_tokens, window, chunk, kept);
    kvc::KvCache<TestType, kvc::PrefixShared<>> cache(
        {.layers = 1, .kv_heads = shape.kv_heads, .key_dim = shape.key_dim, .value_dim = shape.value_dim},
        {.blocks = 8 * (4096 / block_tokens + 2), .block_tokens = block_tokens});
    std::vector<kvc::SeqId> sequences{cache.open()};
    append(cache, sequences[0], random_tokens(random, random.between(Pos{600}, Pos{3000})));
    for (int n = random.between(0, 4); n > 0; --n) {
      const bool shares = !random.one_in(3);
      sequences.push_back(shares ? cache.fork(sequences[0], random.between(Pos{0}, cache.length(sequences[0])))
                                 : cache.open());
      append(cache, sequences.back(), random_tokens(random, random.between(Pos{1}, Pos{1000})));
    }

    const std::vector<AnyView<TestType>> views = views_of(cache, sequences);
    const Matrix<float> q = random_queries(std::ssize(sequences), shape, random);
    Matrix<float> expected(q.rows(), shape.query_heads() * shape.value_dim), cut(q.rows(), expected.cols());
    const std::span<const AnyView<TestType>> all(views);
    const std::vector<float> sinks = random_sinks(shape, random);
    const kvc::AttentionOptions options{
        .window = window, .chunk = chunk, .kept = kept, .softcap = shape.softcap, .sinks = sinks};
    for (Index b = 0; b < q.rows(); ++b) {  // each alone, where all is one run
      Attend<TestType>::decode(views[static_cast<std::size_t>(b)], q.cref().middle_rows(b, 1),
                               expected.ref().middle_rows(b, 1), options);
    }
    for (const Index threads : {0, 1, 2, 3, 7, 16, 1000}) {
      CAPTURE(threads);
      Attend<TestType>::decode(all, q.cref(), cut.ref(), options,
                               Shuffled{threads, static_cast<std::uint64_t>(threads) + seed});
      CHECK(same(cut, expected));
    }
  }
}
