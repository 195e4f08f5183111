// Forward declarations first: what follows defines the same types, with the same default arguments.
#include "kvc/fwd.hpp"

namespace {
using Cache = kvc::KvCache<float, kvc::PrefixShared<>>;
int step(Cache& cache, kvc::SeqId seq, kvc::Append<kvc::PrefixShared<>>* append);
}  // namespace

#include "kvc/element/none.hpp"
#include "kvc/kvc.hpp"

namespace {
int step(Cache& cache, kvc::SeqId seq, Cache::Append* append) {
  *append = cache.extend(seq, {1, 2, 3});
  cache.commit(static_cast<Cache::Append&&>(*append));
  return cache.length(seq);
}
}  // namespace

int step_elsewhere() {
  Cache cache({.key_dim = 4}, {.blocks = 2});
  Cache::Append append;
  return step(cache, cache.open(), &append);
}

kvc::Pos length_elsewhere(const kvc::KvCache<float, kvc::Paged>& cache, kvc::SeqId seq) { return cache.length(seq); }
