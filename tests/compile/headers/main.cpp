#include "kvc/kvc.hpp"

// In the other translation unit, which includes and instantiates the same.
kvc::Pos length_elsewhere(const kvc::KvCache<float, kvc::Paged>& cache, kvc::SeqId seq);

int main() {
  kvc::KvCache<float, kvc::Paged> cache({.layers = 1, .kv_heads = 1, .key_dim = 4}, {.blocks = 2, .block_tokens = 4});
  const kvc::SeqId seq = cache.open();
  cache.commit(cache.extend(seq, 3));
  return length_elsewhere(cache, seq) == cache.length(seq) ? 0 : 1;
}
