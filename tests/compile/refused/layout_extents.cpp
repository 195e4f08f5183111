// says: layout\.extents\(\)
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

struct WithoutExtents : private kvc::HeadMajor {
  using HeadMajor::HeadMajor, HeadMajor::name, HeadMajor::size, HeadMajor::block_size, HeadMajor::k, HeadMajor::v;
  using HeadMajor::k_stride, HeadMajor::v_stride;
};
kvc::KvCache<float, kvc::Paged, WithoutExtents> cache({.key_dim = 4}, {.blocks = 2});
