// Which limit an operation met, and what a policy could not learn.
#include <vector>

#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/policy/synchronized.hpp"

namespace {
using namespace kvc;
using kvc_test::contains;
}  // namespace

TEST_CASE("An error of capacity says which limit was met", "[contiguous][paged][prefix]") {
  const auto error_of = [](auto&& operation) {
    try {
      operation();
    } catch (const CapacityError& error) {
      return error;
    }
    FAIL("there was room");
    return CapacityError("", 0, {});
  };
  const Shape shape{.key_dim = 1};
  SECTION("the sequences that may be open") {
    KvCache<float, Contiguous> cache(shape, {.sequences = 2, .max_tokens = 8});
    const SeqId a = cache.open();
    const SeqId b = cache.open();
    for (const CapacityError& error :
         {error_of([&] { (void)cache.open(); }), error_of([&] { (void)cache.fork(a, 0); })}) {
      REQUIRE(error.limit() == Limit::sequences);
      REQUIRE(error.allowed() == 2);
      REQUIRE(error.needed() == 3);
      REQUIRE_THAT(error.what(), contains("the limit of 2 open sequences is reached"));
    }
    cache.close(b);
    REQUIRE(cache.why_not_open() == LimitMet{});
  }
  SECTION("the tokens of a sequence") {
    KvCache<float, Contiguous> cache(shape, {.sequences = 2, .max_tokens = 8});
    const SeqId seq = cache.open({.max_tokens = 5});
    cache.commit(cache.extend(seq, 2));
    const CapacityError error = error_of([&] { (void)cache.extend(seq, 4); });
    REQUIRE(error.limit() == Limit::max_tokens);
    REQUIRE_THAT(error.what(), contains("max_tokens of the sequence is 5, and it would have 6"));
  }
  SECTION("the slots of the pool, or their order") {
    KvCache<float, Contiguous> cache(
        shape,
        {.sequences = 4, .max_tokens = 40, .pool_tokens = 40, .mode = Contiguous::Mode::grow, .growth_tokens = 1});
    const SeqId a = cache.open();
    cache.commit(cache.extend(a, 10));
    const SeqId b = cache.open();
    cache.commit(cache.extend(b, 10));
    const SeqId c = cache.open();
    cache.commit(cache.extend(c, 10));
    cache.close(b);  // holes of 10 and 10
    const SeqId d = cache.open();
    const CapacityError fragmented = error_of([&] { (void)cache.extend(d, 15); });
    REQUIRE(fragmented.limit() == Limit::fragmentation);
    REQUIRE_THAT(fragmented.what(),
                 contains("15 slots in one piece are needed; 20 slots are free, but the largest hole "
                          "has 10"));
    const CapacityError full = error_of([&] { (void)cache.extend(d, 21); });
    REQUIRE(full.limit() == Limit::pool);
    REQUIRE_THAT(full.what(), contains("21 slots are needed, and of the pool's 40 slots 20 are free"));
    REQUIRE(cache.why_not_extend(d, 10) == LimitMet{});
  }
  SECTION("the blocks of the pool") {
    KvCache<float, Paged> paged(shape, {.blocks = 4, .block_tokens = 4});
    const SeqId seq = paged.open();
    paged.commit(paged.extend(seq, 6));
    const CapacityError error = error_of([&] { (void)paged.extend(seq, 11); });
    REQUIRE(error.limit() == Limit::pool);
    REQUIRE(error.allowed() == 8);
    REQUIRE(error.needed() == 12);
    REQUIRE(paged.why_not_extend(seq, 10) == LimitMet{});
    KvCache<float, Synchronized<PrefixShared<>>> shared(shape, {.blocks = 4, .block_tokens = 4});
    const SeqId other = shared.open();
    REQUIRE(error_of([&] { (void)shared.extend_without_tokens(other, 17); }).limit() == Limit::pool);
  }
}

TEST_CASE("Positions without tokens are counted, and are not after their tokens are published", "[prefix]") {
  KvCache<float, PrefixShared<>> cache({.key_dim = 1}, {.blocks = 16, .block_tokens = 4});
  const SeqId known = cache.open();
  cache.commit(cache.extend(known, {1, 2, 3, 4, 5}));
  REQUIRE(cache.stats().tokens_unknown == 0);
  const SeqId seq = cache.open();
  cache.commit(cache.extend_without_tokens(seq, 6));
  cache.commit(cache.extend(seq, {7, 8}));  // behind unknown ones: nobody finds these either
  REQUIRE(cache.stats().tokens_unknown == 8);
  {
    const auto uncommitted = cache.extend_without_tokens(seq, 3);
    REQUIRE(cache.stats().tokens_unknown == 8);
  }
  SECTION("published") {
    cache.publish_tokens(seq, std::vector<Token>{10, 11, 12, 13, 14, 15, 7, 8});
    REQUIRE(cache.stats().tokens_unknown == 0);
    REQUIRE(cache.match_length(std::vector<Token>{10, 11, 12, 13, 14, 15, 7, 8, 9}) == 8);
    cache.close(seq);
    REQUIRE(cache.stats().tokens_unknown == 0);
  }
  SECTION("closed") {
    cache.close(seq);
    REQUIRE(cache.stats().tokens_unknown == 8);
  }
  SECTION("of a policy that matches nothing, none") {
    KvCache<float, Paged> paged({.key_dim = 1}, {.blocks = 16, .block_tokens = 4});
    const SeqId plain = paged.open();
    paged.commit(paged.extend(plain, 3));
    paged.commit(paged.extend_without_tokens(plain, 3));
    REQUIRE(paged.length(plain) == 6);
    REQUIRE(paged.stats().tokens_unknown == 0);
  }
  cache.verify();
}
