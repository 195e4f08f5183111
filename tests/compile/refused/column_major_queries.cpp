// says: Declare the Eigen matrix with Eigen::RowMajor
#include <Eigen/Core>

#include "kvc/attention/decode.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

using Cache = kvc::KvCache<float, kvc::Paged>;
void f(const Cache& cache, kvc::SeqId seq, const Eigen::MatrixXf& q, kvc::MatrixRef<float> out) {
  kvc::decode(cache.view(0, seq), q, out);
}
