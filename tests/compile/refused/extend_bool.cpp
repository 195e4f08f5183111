// says: write extend\(seq, 1\) for one position
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

void f(kvc::KvCache<float, kvc::Paged>& cache, kvc::SeqId seq) { cache.commit(cache.extend(seq, true)); }
