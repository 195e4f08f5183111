// says: include kvc/cuda/view.cuh
#include "device_space.hpp"

void f(const FarCache& cache, kvc::SeqId seq) {
  cache.view(0, seq).for_each_run(0, {0, 1}, [](const kvc::KvRun<float>& run) { return *run.k; });
}
