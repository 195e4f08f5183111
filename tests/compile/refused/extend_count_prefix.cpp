// says: write extend\(seq, tokens\), or, for rows that no prompt
#include "kvc/cache.hpp"
#include "kvc/policy/prefix_shared.hpp"

void f(kvc::KvCache<float, kvc::PrefixShared<>>& cache, kvc::SeqId seq) { cache.commit(cache.extend(seq, 3)); }
