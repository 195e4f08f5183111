// One sequence, two layers, random projections: prefill of a prompt, then decode token by token.
#include "usage.hpp"

#include <Eigen/Core>
#include <cstdio>
#include <span>
#include <vector>

#include "kvc/attention/decode.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

void one_sequence() {
  const kvc::Shape shape{.layers = 2, .kv_heads = 2, .key_dim = 16};
  const kvc::Index query_heads = 8;  // four query heads read each kv head
  kvc::KvCache<float, kvc::Paged> cache(shape, {.blocks = 8, .block_tokens = 16});

  const kvc::SeqId seq = cache.open();
  for (const kvc::Pos tokens : {20, 1, 1}) {          // a prompt, then two tokens
    auto step = cache.extend(seq, tokens);            // room for all of them, or CapacityError
    Matrix out(tokens, query_heads * shape.key_dim);  // [n, Hq * Dv]
    for (kvc::Index layer = 0; layer < shape.layers; ++layer) {
      const Matrix q = Matrix::Random(tokens, query_heads * shape.key_dim);     // [n, Hq * D]
      const Matrix k = Matrix::Random(tokens, shape.kv_heads * shape.key_dim);  // [n, Hkv * D]
      const Matrix v = Matrix::Random(tokens, shape.kv_heads * shape.key_dim);  // [n, Hkv * Dv]
      cache.write(layer, step, k, v);
      if (tokens > 1) {
        kvc::prefill(cache.view(layer, seq), step.range(), q, out);
      } else {
        kvc::decode(cache.view(layer, seq), q, out);
      }
    }
    cache.commit(std::move(step));  // a step that is destroyed without this rolls back

    const kvc::Stats stats = cache.stats();
    std::printf("length %2d: %ld of %ld blocks, %2.0f %% of their slots unused\n", cache.length(seq),
                static_cast<long>(stats.blocks_referenced), static_cast<long>(stats.blocks_total),
                100 * stats.internal_waste());
  }

  const kvc::SeqId draft = cache.fork(seq, 18);  // shares the blocks; the next extend copies the partly shared one
  cache.commit(cache.extend(draft, 4));
  cache.truncate(draft, 19);
  std::printf("fork at 18, 4 tokens more, truncated: length %d, %ld rows copied\n", cache.length(draft),
              static_cast<long>(cache.stats().copied_tokens));
}

int main(int argc, char** argv) {
  return run_example(argc, argv,
                     "One sequence in a paged cache: prefill, two steps of decode, a fork and a truncation.",
                     one_sequence);
}
