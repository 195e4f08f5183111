// says: include kvc/element/float16.hpp
#include <Eigen/Core>

#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

kvc::KvCache<Eigen::bfloat16, kvc::Paged> cache({.key_dim = 4}, {.blocks = 2});
