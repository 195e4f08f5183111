// says: kvc/cuda/rows.cuh
#include "device_space.hpp"

void f(const FarCache& cache, kvc::SeqId seq, kvc::MatrixRef<float> k) { cache.gather(0, seq, {0, 1}, k, k); }
