// says: call cache.view
#include "kvc/cuda/view.cuh"
#include "kvc/policy/paged.hpp"

void f(kvc::KvCache<float, kvc::Paged>& cache) { (void)kvc::cuda::view(cache, 0); }
