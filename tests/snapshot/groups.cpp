// Snapshots of caches with layer groups.
#include "any_cache.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;
}  // namespace

TEST_CASE("A cache with layer groups is neither saved nor loaded into", "[io]") {
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 2, .window = 4}, 2);
  KvCache<float, Paged> cache(layers, {.blocks = 4, .block_tokens = 4});
  io::MemorySink sink;
  REQUIRE_THROWS_WITH(snapshot::save(cache, sink), contains("snapshot::Writer knows no other"));
  REQUIRE(sink.take().empty());
  io::MemorySource source({}, "nothing");
  REQUIRE_THROWS_WITH(snapshot::load(cache, source), contains("snapshot::Reader knows no other"));
}
