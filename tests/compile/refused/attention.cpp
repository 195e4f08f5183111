// says: include kvc/cuda/view.cuh
#include "device_space.hpp"
#include "kvc/attention/decode.hpp"

void f(const FarCache& cache, kvc::SeqId seq, kvc::MatrixRef<const float> q, kvc::MatrixRef<float> out) {
  kvc::decode(cache.view(0, seq), q, out);
}
