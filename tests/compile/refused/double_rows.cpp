// says: kvc takes rows of float
#include <Eigen/Core>

#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

using Cache = kvc::KvCache<float, kvc::Paged>;
void f(Cache& cache, const Cache::Append& append, const Eigen::MatrixXd& k) { cache.write(0, append, k, k); }
