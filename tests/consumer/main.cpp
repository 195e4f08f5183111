// The smallest use of the library: a cache of one token, whose value is read back.
#include <array>
#include <iostream>

#include "kvc/cache.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/version.hpp"

int main() {
  constexpr kvc::Index dim = 4;
  kvc::KvCache<float, kvc::Contiguous> cache({.layers = 1, .kv_heads = 1, .key_dim = dim},
                                             {.sequences = 1, .max_tokens = 8});
  const std::array<float, dim> k{1, 0, 0, 0};
  const std::array<float, dim> v{1, 2, 3, 4};

  const kvc::SeqId seq = cache.open();
  auto step = cache.extend(seq, 1);
  cache.write(0, step, {k.data(), 1, dim}, {v.data(), 1, dim});
  cache.commit(std::move(step));

  std::array<float, dim> found{};
  cache.view(0, seq).for_each_run(0, {0, 1}, [&](const auto& run) {
    for (kvc::Index i = 0; i < dim; ++i) {
      found[static_cast<std::size_t>(i)] = run.v[i];
    }
  });
  std::cout << "kvc " << KVC_VERSION_STRING << ": " << cache.length(seq) << " token\n";
  return found == v ? 0 : 1;
}
