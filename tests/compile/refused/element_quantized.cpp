// says: kvc/element/quantized.hpp
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

kvc::KvCache<kvc::Int8, kvc::Paged> cache({.key_dim = 4}, {.blocks = 2});
