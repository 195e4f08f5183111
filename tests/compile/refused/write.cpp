// says: kvc/cuda/append.cuh
#include "device_space.hpp"

void f(FarCache& cache, const FarCache::Append& append, kvc::MatrixRef<const float> k) { cache.write(0, append, k, k); }
