// The smallest use of attention: over a cache of one token it gives back that token's value.
#include <array>
#include <iostream>

#include "kvc/kvc.hpp"

int main() {
  constexpr kvc::Index dim = 4;
  kvc::KvCache<float, kvc::Contiguous> cache({.layers = 1, .kv_heads = 1, .key_dim = dim},
                                             {.sequences = 1, .max_tokens = 8});
  const std::array<float, dim> k{1, 0, 0, 0};
  const std::array<float, dim> v{1, 2, 3, 4};
  std::array<float, dim> out{};

  const kvc::SeqId seq = cache.open();
  auto step = cache.extend(seq, 1);
  cache.write(0, step, {k.data(), 1, dim}, {v.data(), 1, dim});
  kvc::decode(cache.view(0, seq), {k.data(), 1, dim}, {out.data(), 1, dim});
  cache.commit(std::move(step));

  std::cout << "kvc " << KVC_VERSION_STRING << ": " << cache.length(seq) << " token\n";
  return out == v ? 0 : 1;
}
