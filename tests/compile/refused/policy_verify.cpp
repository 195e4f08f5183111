// says: c\.verify\(\)
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

struct WithoutVerify : kvc::Paged {
  using Paged::Paged;
  void verify(int) const {}
};
kvc::KvCache<float, WithoutVerify> cache({.key_dim = 4}, {.blocks = 2});
