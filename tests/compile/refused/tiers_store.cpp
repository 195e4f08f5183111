// says: BlockStore
#include "kvc/cache.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/tier/tiers.hpp"

struct NoStore {
  static constexpr bool persistent = false;
};
using Policy = kvc::PrefixShared<kvc::ReuseHazard, kvc::ChainHash, kvc::EventCallback>;
void f(kvc::KvCache<float, Policy>& cache, NoStore& store) { kvc::tier::Tiers tiers(cache, {.model = "m"}, store); }
