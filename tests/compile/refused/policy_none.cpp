// says: second argument of KvCache is not a policy
#include "kvc/cache.hpp"
#include "kvc/policy/eviction/lru.hpp"

kvc::KvCache<float, kvc::Lru> cache({.key_dim = 4}, {});
