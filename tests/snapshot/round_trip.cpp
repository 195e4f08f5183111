// Snapshots come back bit for bit: from every policy, layout and element type, into every other where that is possible.
#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "any_cache.hpp"
#include "element_types.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "random_source.hpp"
#include "serve.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;

const Salt tenant(SaltKind::tenant, "a tenant");
constexpr Value tenant_value = 77;  // rows of another tenant differ

/// Sequences with tails, forks, salts and unknown tokens, and an empty one; their rows, in the order of opening.
struct Scene {
  std::vector<SeqId> sequences;
  std::vector<Values> values;

  explicit Scene(AnyCache& cache) {
    const Tokens prompt = counting(1, 19);
    add(cache.serve(prompt), values_of(prompt));
    fork(cache, 0, 10, {5, 6, 7, 8, 9});  // forks in the middle of a block of 4 or 7
    fork(cache, 0, 19, {});               // shares all
    fork(cache, 0, 13, {});               // ends within what it shares
    fork(cache, 0, 8, counting(50, 9));
    fork(cache, 4, 12, {1});  // of a fork
    add(cache.serve(prompt, tenant, tenant_value), values_of(prompt, tenant_value));
    add(cache.try_open({}, tenant)->seq, {});
    const SeqId silent = cache.try_open({}, {})->seq;
    REQUIRE(cache.append(silent, {}, values_of(counting(9, 6), 5)));
    add(silent, values_of(counting(9, 6), 5));
    cache.close(cache.serve(counting(200, 23)));
    cache.verify();
  }
  void add(SeqId seq, Values v) {
    sequences.push_back(seq);
    values.push_back(std::move(v));
  }
  void fork(AnyCache& cache, std::size_t parent, Pos at, const Tokens& more) {
    const SeqId seq = cache.try_fork(sequences[parent], at).value();
    Values v(values[parent].begin(), values[parent].begin() + at);
    const Values next = values_of(more, v.empty() ? 0 : v.back());
    v.insert(v.end(), next.begin(), next.end());
    REQUIRE((more.empty() || cache.append(seq, more, next)));
    add(seq, v);
  }
  void check(const AnyCache& cache, const std::vector<SeqId>& loaded) const {
    REQUIRE(loaded.size() == values.size());
    for (std::size_t i = 0; i < loaded.size(); ++i) {
      INFO("sequence " << i);
      REQUIRE(cache.length(loaded[i]) == static_cast<Pos>(values[i].size()));
      REQUIRE((cache.rows(loaded[i]) == cache.rows_of(values[i])));
    }
    cache.verify();
  }
};

using Caches = std::vector<std::unique_ptr<AnyCache>>;

/// Every policy with every layout.
Caches caches_of_every_kind() {
  Caches all;
  const auto add = [&all]<class Layout>() {
    all.push_back(make_cache<float, Reserve, Layout>(800));
    all.push_back(make_cache<float, GrowBest, Layout>());
    all.push_back(make_cache<float, Paged4, Layout>());
    all.push_back(make_cache<float, Prefix4, Layout>());
  };
  add.template operator()<HeadMajor>();
  add.template operator()<TokenMajor>();
  return all;
}

/// One type has its scales in planes of their own where it is token-major.
template <class T>
using TokenMajorOf = std::conditional_t<std::is_same_v<T, TypeWithPlanes>, ScalePlanes<TokenMajor>, TokenMajor>;

/// Rows of another element type differ in their bytes, which depend on the layout: one policy for each.
template <class T>
Caches caches_of_element() {
  Caches all;
  all.push_back(make_cache<T, Prefix4, HeadMajor>());
  all.push_back(make_cache<T, Paged4, TokenMajorOf<T>>());
  return all;
}

void check_round_trip(const Caches& from, const Caches& to) {
  for (std::size_t i = 0; i < from.size(); ++i) {
    AnyCache& a = *from[i];
    AnyCache& b = *to[i];
    INFO(a.name());
    const Scene scene(a);
    scene.check(a, scene.sequences);
    const Bytes bytes = a.saved(scene.sequences);
    const auto loaded = b.loaded(bytes);
    REQUIRE(loaded);
    scene.check(b, loaded->sequences);
    const Stats before = a.stats();
    const Stats after = b.stats();
    if (before.block_tokens > 1) {  // a contiguous sequence reserves by other rules
      REQUIRE(after.blocks_referenced == before.blocks_referenced);
      REQUIRE(after.blocks_cached == before.blocks_cached);
      REQUIRE(after.blocks_free == before.blocks_free);
    }
    REQUIRE(after.tokens_stored == before.tokens_stored);
    REQUIRE(after.sequences == before.sequences);
    for (const auto& [prompt, salt] : {std::pair(counting(1, 20), Salt()), std::pair(counting(1, 20), tenant),
                                       std::pair(counting(200, 30), Salt()), std::pair(counting(200, 30), tenant)}) {
      REQUIRE(b.match_length(prompt, salt) == a.match_length(prompt, salt));
    }
    // Shared blocks are copied before they are written, and the cache stays usable.
    const Value next = next_value(scene.values[2].back(), 1000);
    REQUIRE(b.append(loaded->sequences[2], {1000}, {next}));
    Values longer = scene.values[2];
    longer.push_back(next);
    REQUIRE((b.rows(loaded->sequences[2]) == b.rows_of(longer)));
    REQUIRE((b.rows(loaded->sequences[0]) == b.rows_of(scene.values[0])));
    for (const SeqId seq : loaded->sequences) {
      b.close(seq);
    }
    b.verify();
    REQUIRE(b.stats().blocks_referenced == 0);
  }
}
}  // namespace

TEST_CASE("A snapshot comes back bit for bit, shared blocks are shared, and cached prefixes are found", "[io]") {
  check_round_trip(caches_of_every_kind(), caches_of_every_kind());
}

TEMPLATE_TEST_CASE("A snapshot of any element type comes back bit for bit", "[io]", KVC_OTHER_ELEMENTS) {
  check_round_trip(caches_of_element<TestType>(), caches_of_element<TestType>());
}

namespace {
/// One cache of each kind, with the same room.
template <class T>
std::vector<std::unique_ptr<AnyCache>> all_kinds() {
  std::vector<std::unique_ptr<AnyCache>> all;
  all.push_back(make_cache<T, GrowBest, HeadMajor>(400));
  all.push_back(make_cache<T, GrowBest, TokenMajor>(400));
  all.push_back(make_cache<T, Paged4, HeadMajor>(400));
  all.push_back(make_cache<T, Paged4, TokenMajor>(400));
  all.push_back(make_cache<T, Paged7, HeadMajor>(400));
  all.push_back(make_cache<T, Prefix1, TokenMajor>(400));
  all.push_back(make_cache<T, Prefix4, HeadMajor>(400));
  all.push_back(make_cache<T, Prefix7, HeadMajor>(400));
  all.push_back(make_cache<T, Colliding4, TokenMajor>(400));
  return all;
}
}  // namespace

TEST_CASE("A snapshot loads into any policy, block size and layout", "[io]") {
  for (const auto& from : all_kinds<float>()) {
    const Scene scene(*from);
    const Bytes bytes = from->saved(scene.sequences);
    for (const auto& to : all_kinds<float>()) {
      INFO(from->name() << " -> " << to->name());
      const auto loaded = to->loaded(bytes);
      REQUIRE(loaded);
      scene.check(*to, loaded->sequences);
      if (from->caches_prefixes() && to->caches_prefixes()) {
        const Pos block = to->block_tokens();
        REQUIRE(to->match_length(counting(1, 20), {}) >= 19 / block * block);
        REQUIRE(to->match_length(counting(1, 20), tenant) >= 19 / block * block);
        const Pos cached =
            23 / from->block_tokens() * from->block_tokens();  // of a closed sequence only full blocks stay cached
        REQUIRE(to->match_length(counting(200, 30), {}) >= cached / block * block);
        REQUIRE(to->match_length(counting(9, 6), {}) == 0);  // the tokens of these rows are unknown
      }
    }
  }
}

TEST_CASE("Scales in planes of their own and scales in rows load into each other", "[io]") {
  const auto check = [](AnyCache& from, AnyCache& to) {
    INFO(from.name() << " -> " << to.name());
    const Scene scene(from);
    const auto loaded = to.loaded(from.saved(scene.sequences));
    REQUIRE(loaded);
    scene.check(to, loaded->sequences);
  };
  const auto in_rows = [] { return make_cache<TypeWithPlanes, Prefix4, HeadMajor>(400); };
  const auto in_planes = [] { return make_cache<TypeWithPlanes, Paged4, TokenMajorOf<TypeWithPlanes>>(400); };
  check(*in_rows(), *in_planes());
  check(*in_planes(), *in_rows());
}

TEST_CASE("Elements of 16 and 32 bits are converted when asked, and only then", "[io]") {
  const auto check = [](AnyCache& from, AnyCache& to) {
    INFO(from.name() << " -> " << to.name());
    const Scene scene(from);
    const Bytes bytes = from.saved(scene.sequences);
    const Seen before(to);
    if (from.element() != to.element()) {
      REQUIRE_THROWS_WITH(to.loaded(bytes), contains("expected elements " + to.element() +
                                                     ", or LoadOptions::convert_elements, found " + from.element()));
      REQUIRE(Seen(to) == before);
    }
    const auto loaded = to.loaded(bytes, {.cached_prefixes = true, .convert_elements = true});
    REQUIRE(loaded);
    scene.check(to, loaded->sequences);  // small integers, which every type holds exactly
  };
  const auto a = [] { return make_cache<float, Paged4, HeadMajor>(); };
  const auto b = [] { return make_cache<Eigen::half, Prefix7, TokenMajor>(400); };
  const auto c = [] { return make_cache<Eigen::bfloat16, GrowBest, HeadMajor>(400); };
  check(*a(), *b()), check(*a(), *c()), check(*b(), *a()), check(*b(), *c()), check(*c(), *a()), check(*c(), *b());
  check(*a(), *make_cache<float, Prefix4, TokenMajor>());
  const auto quantised = make_cache<Int8, Paged4, HeadMajor>();
  const auto plain = a();
  const Bytes codes = quantised->saved({quantised->serve({1, 2})});
  const Bytes numbers = plain->saved({plain->serve({1, 2})});
  for (const bool convert : {false, true}) {
    REQUIRE_THROWS_WITH(plain->loaded(codes, {.convert_elements = convert}),
                        contains("expected elements f32, found int8"));
    REQUIRE_THROWS_WITH(quantised->loaded(numbers, {.convert_elements = convert}),
                        contains("expected elements int8, found f32"));
  }
}

TEST_CASE("Conversion rounds to nearest", "[io]") {
  constexpr Shape shape{.layers = 1, .kv_heads = 1, .key_dim = 4};
  KvCache<float, Paged> from(shape, {.blocks = 2});
  const SeqId seq = from.open();
  auto step = from.extend(seq, 1);
  const float k[4] = {1.0F / 3, 1e30F, -2049.0F, 6e-8F};
  from.write(0, step, {k, 1, 4}, {k, 1, 4});
  from.commit(std::move(step));
  io::MemorySink sink;
  snapshot::save(from, sink);
  KvCache<Eigen::half, Paged> to(shape, {.blocks = 2});
  io::MemorySource source(sink.bytes());
  const snapshot::Loaded loaded = snapshot::load(to, source, {.convert_elements = true});
  float back[4];
  float value[4];
  to.gather(0, loaded.sequences[0], {0, 1}, {back, 1, 4}, {value, 1, 4});
  for (int i = 0; i < 4; ++i) {
    REQUIRE(back[i] == static_cast<float>(Eigen::half(k[i])));
  }
}

TEST_CASE("The caller can give tokens and salt for a policy that keeps none", "[io]") {
  const auto from = make_cache<float, Paged4, HeadMajor>();
  const Tokens prompt = counting(1, 18);
  const SeqId seq = from->serve(prompt);
  io::MemorySink sink;
  const snapshot::SavedSequence saved{seq, prompt, tenant};
  from->save(std::span(&saved, 1), sink);
  const auto to = make_cache<float, Prefix4, HeadMajor>();
  const auto loaded = to->loaded(sink.bytes());
  REQUIRE(loaded->contents.tokens_of(0) == prompt);
  REQUIRE(
      loaded->contents.salts[static_cast<std::size_t>(loaded->contents.salt_of(loaded->contents.sequences[0].last))] ==
      tenant);
  REQUIRE(to->match_length(counting(1, 19), tenant) == 16);
  REQUIRE(to->match_length(counting(1, 19), {}) == 0);
  to->close(loaded->sequences[0]);
  REQUIRE(to->match_length(counting(1, 19), tenant) == 16);
}

TEST_CASE("Some sequences are saved, and cached prefixes only on request", "[io]") {
  const auto from = make_cache<float, Prefix4, HeadMajor>();
  const Scene scene(*from);
  const Bytes all = from->saved(scene.sequences);
  const Bytes two = from->saved({scene.sequences[5], scene.sequences[1]}, {.cached_prefixes = false});
  REQUIRE(two.size() < all.size());
  const auto to = make_cache<float, Prefix4, HeadMajor>();
  const auto loaded = to->loaded(two);
  REQUIRE((to->rows(loaded->sequences[0]) == to->rows_of(scene.values[5])));
  REQUIRE((to->rows(loaded->sequences[1]) == to->rows_of(scene.values[1])));
  REQUIRE(to->stats().sequences == 2);
  REQUIRE(to->match_length(counting(200, 30), {}) == 0);
  REQUIRE(to->loaded(all, {.cached_prefixes = false}));
  REQUIRE(to->match_length(counting(200, 30), {}) == 0);
  to->verify();
  const auto nothing = make_cache<float, Prefix4, HeadMajor>();
  const Bytes empty = nothing->saved({});
  REQUIRE(to->loaded(empty)->sequences.empty());
  to->verify();
}

TEST_CASE("Loading into a cache in use merges equal blocks, and touches nothing else", "[io]") {
  const auto from = make_cache<float, Prefix4, HeadMajor>();
  const Scene scene(*from);
  const Bytes bytes = from->saved(scene.sequences);
  const auto to = make_cache<float, Prefix4, HeadMajor>();
  const SeqId own = to->serve(counting(1, 19));
  const Index before = to->stats().blocks_referenced;
  const auto loaded = to->loaded(bytes);
  scene.check(*to, loaded->sequences);
  REQUIRE((to->rows(own) == to->rows_of(values_of(counting(1, 19)))));
  REQUIRE(to->stats().merges > 0);
  // Four full blocks are equal; the loaded copy of the fourth stays too, for the fork that ends in the middle of it.
  REQUIRE(to->stats().blocks_referenced == from->stats().blocks_referenced + before - 3);
}

TEST_CASE("A cache with a synchronised policy is saved and loaded like one without", "[io]") {
  using Locked = Synchronized<PrefixShared<Lru, SeededHash>>;
  CacheOf<float, Locked, HeadMajor> from({.blocks = 64, .block_tokens = 4});
  const Scene scene(from);
  CacheOf<float, Locked, HeadMajor> to({.blocks = 64, .block_tokens = 4});
  const auto loaded = to.loaded(from.saved(from.sequences()));
  scene.check(to, loaded->sequences);
  REQUIRE(to.match_length(counting(200, 30), {}) == 20);
}
