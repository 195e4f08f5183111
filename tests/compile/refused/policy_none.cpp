// says: second argument of KvCache is not a policy
#include "kvc/kvc.hpp"

kvc::KvCache<float, kvc::Lru> cache({.key_dim = 4}, {});
