// says: kvc takes rows of float
#include <Eigen/Core>

#include "kvc/attention/decode.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

using Cache = kvc::KvCache<float, kvc::Paged>;
void f(const Cache& cache, kvc::SeqId seq, const Eigen::MatrixXd& q, kvc::MatrixRef<float> out) {
  kvc::decode(cache.view(0, seq), 0.125 * q, out);
}
