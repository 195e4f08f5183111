// says: For a type of your own specialise kvc::Element
#include "kvc/kvc.hpp"

kvc::KvCache<double, kvc::Paged> cache({.key_dim = 4}, {.blocks = 2});
