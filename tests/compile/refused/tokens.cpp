// says: tokens must be 32-bit \(kvc::Token\)
#include <cstdint>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

kvc::Opened f(kvc::KvCache<float, kvc::Paged>& cache, const std::vector<std::int64_t>& prompt) {
  return cache.open(prompt);
}
