// says: reports events to an EventCallback
#include "kvc/cache.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/tier/host_store.hpp"
#include "kvc/tier/tiers.hpp"

void f(kvc::KvCache<float, kvc::PrefixShared<>>& cache, kvc::tier::HostStore<>& store) {
  kvc::tier::Tiers tiers(cache, {.model = "m"}, store);
}
