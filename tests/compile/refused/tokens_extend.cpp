// says: tokens must be 32-bit \(kvc::Token\)
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

void f(kvc::KvCache<float, kvc::Paged>& cache, kvc::SeqId seq, const std::vector<long>& tokens) {
  cache.commit(cache.extend(seq, tokens));
}
