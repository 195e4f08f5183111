// says: For a type of your own specialise kvc::Element
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

kvc::KvCache<double, kvc::Paged> cache({.key_dim = 4}, {.blocks = 2});
