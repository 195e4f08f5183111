// States of recurrent layers: where they lie, which lengths have them, and what prompts find.
#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/none.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/policy/synchronized.hpp"
#include "random_source.hpp"
#include "serve.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;
using Catch::Matchers::Contains;
using Shared = KvCache<float, PrefixShared<Lru>>;

/// One layer with rows of 128 bytes, and three recurrent ones with states of 1000.
LayerGroups model() {
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 16});
  layers.add_state(1000, 3);
  return layers;
}

std::vector<Pos> list(std::span<const Pos> lengths) { return {lengths.begin(), lengths.end()}; }

/// Opens with a prompt and computes it in one pass. Returns how much of it was found.
template <class Cache>
Opened computed(Cache& cache, const std::vector<Token>& prompt, std::vector<Pos> asked = {}) {
  const Opened opened = cache.open(prompt);
  cache.commit(cache.extend(opened.seq, std::span(prompt).subspan(static_cast<std::size_t>(opened.cached)), asked));
  return opened;
}
}  // namespace

TEST_CASE("Recurrent layers have numbers as all others, and no rows", "[states]") {
  LayerGroups layers;
  CHECK(layers.add_state(100) == 0);
  CHECK(layers.add({.kv_heads = 1, .key_dim = 16}) == 1);
  CHECK(layers.add_state(64) == 2);
  CHECK(layers.add_state(100, 2) == 3);
  CHECK(layers.layers() == 5);
  CHECK_FALSE(layers.is_plain());
  REQUIRE(layers.states().size() == 2);
  CHECK(layers.states()[0] == StateGroup{3, 100});
  CHECK(layers.states()[1] == StateGroup{1, 64});
  CHECK(layers.is_recurrent(0));
  CHECK_FALSE(layers.is_recurrent(1));
  CHECK(layers.state_place(4).kind == 0);
  CHECK(layers.state_place(4).layer == 2);
  CHECK(layers.place(1).group == 0);
  CHECK_THROWS_WITH(layers.place(0), Contains("layer is 0, must be one that stores rows"));
  CHECK_THROWS_WITH(layers.state_place(1), Contains("layer is 1, must be a recurrent one"));
  CHECK_THROWS_WITH(layers.add_reader_of(0), Contains("layer is 0, must be one that stores rows"));
  CHECK_THROWS_WITH(layers.add_state(0), Contains("bytes is 0"));
  const GroupRules rules = layers.rules([](const LayerGroup&) { return Index{128}; });
  CHECK(rules.states == std::vector<StateRule>{{3, 128}, {1, 64}});  // on lines of 64 bytes
}

TEST_CASE("Blocks have room for the state of a layer, and no more tokens than that takes", "[states]") {
  // A token takes 128 bytes, and a state 1024: 8 tokens.
  const auto sizes = [](Pos block_tokens) {
    const KvCache<float, Paged> cache(model(), {.blocks = 100, .block_tokens = block_tokens});
    const StateSizes states = cache.policy().state_sizes(0);
    return std::vector<Index>{cache.policy().block_tokens(0), states.in_block, states.blocks};
  };
  CHECK(sizes(1) == std::vector<Index>{8, 1, 3});
  CHECK(sizes(3) == std::vector<Index>{8, 1, 3});
  CHECK(sizes(8) == std::vector<Index>{8, 1, 3});
  CHECK(sizes(16) == std::vector<Index>{16, 2, 2});
  CHECK(sizes(64) == std::vector<Index>{64, 3, 1});
}

TEST_CASE("An extension has a state to read and those to write", "[states]") {
  KvCache<float, Paged> cache(model(), {.blocks = 100, .block_tokens = 8});
  const SeqId seq = cache.open();
  CHECK(cache.state(1, seq).empty());  // the initial one
  auto append = cache.extend(seq, counting(0, 10), {4, 7});
  CHECK(list(cache.states_to_write(append)) == std::vector<Pos>{4, 7, 10});
  for (const Pos length : {4, 7, 10}) {
    for (Index layer = 1; layer <= 3; ++layer) {
      const std::span<std::byte> state = cache.state_to_write(layer, append, length);
      REQUIRE(state.size() == 1000);
      CHECK(reinterpret_cast<std::uintptr_t>(state.data()) % 64 == 0);
      std::ranges::fill(state, static_cast<std::byte>(10 * length + layer));
    }
  }
  CHECK_THROWS_WITH(cache.state_to_write(1, append, 5), Contains("length is 5, must be one of which"));
  CHECK_THROWS_WITH(cache.state_to_write(0, append, 4), Contains("layer is 0, must be a recurrent one"));
  CHECK_THROWS_WITH(cache.view(2, seq), Contains("layer is 2, must be one that stores rows"));
  const SeqId fork = cache.fork(seq, 0);
  cache.commit(std::move(append));
  CHECK_THROWS_WITH(cache.states_to_write(append), Contains("append is committed"));

  CHECK(list(cache.policy().state_lengths(seq)) == std::vector<Pos>{10});  // the others are of no use any more
  CHECK(static_cast<int>(cache.state(3, seq)[999]) == 103);
  CHECK(cache.state(3, fork).empty());
  CHECK_THROWS_WITH(cache.state(3, seq, 7), Contains("length is 7, must be one of which"));
  CHECK_THROWS_WITH(cache.state(3, std::span<const BlockId>()), Contains("blocks.size() is 0, must be those of all"));
  CHECK_THROWS_WITH(cache.truncate(seq, 7), Contains("length is 7, must be one of 0, 10"));
  CHECK_THROWS_WITH(cache.fork(seq, 9), Contains("at is 9, must be one of 0, 10"));
  CHECK_THROWS_WITH(cache.extend(seq, counting(0, 3), {10}), Contains("states_at is 10, must be ascending"));
  CHECK_THROWS_WITH(cache.extend(seq, counting(0, 3), {14}), Contains("states_at is 14"));
  CHECK_THROWS_WITH(cache.extend(seq, counting(0, 3), {12, 11}), Contains("states_at is 11"));
  CHECK(cache.length(seq) == 10);
  cache.truncate(seq, 0);
  CHECK(cache.state(3, seq).empty());
  cache.verify();
}

TEST_CASE("With a reserve for speculation a sequence goes back to states that it asked for", "[states]") {
  KvCache<float, Paged> cache(model().with_rewind(4), {.blocks = 100, .block_tokens = 8});
  const SeqId seq = cache.open();
  cache.commit(cache.extend(seq, counting(0, 10)));
  cache.commit(cache.extend(seq, counting(10, 4), {11, 12, 13}));  // proposed tokens
  CHECK(list(cache.policy().state_lengths(seq)) == std::vector<Pos>{10, 11, 12, 13, 14});
  cache.truncate(seq, 12);  // two were accepted
  CHECK(list(cache.policy().state_lengths(seq)) == std::vector<Pos>{10, 11, 12});
  cache.commit(cache.extend(seq, counting(12, 5)));
  CHECK(list(cache.policy().state_lengths(seq)) == std::vector<Pos>{12, 17});
  cache.verify();
}

TEST_CASE("A prompt is found as far as there are states", "[states][prefix]") {
  Shared cache(model(), {.blocks = 400, .block_tokens = 8});
  const std::vector<Token> system = counting(1000, 32);
  const auto cached = [&](const std::vector<Token>& prompt) {
    const Pos length = cache.match_length(prompt);
    const Opened opened = computed(cache, prompt);
    CHECK(opened.cached == length);
    cache.close(opened.seq);
    cache.verify();
    return length;
  };

  SECTION("at the end of a prompt, in whole blocks, so that the same prompt and a longer one find it") {
    const std::vector<Token> prompt = counting(0, 45);
    CHECK(cached(prompt) == 0);
    CHECK(cached(prompt) == 40);
    CHECK(cached(joined(prompt, system)) == 40);
    CHECK(cached(counting(0, 30)) == 0);  // there are rows, but no state
  }
  SECTION("where two prompts have parted, once both have shown it") {
    CHECK(cached(joined(system, counting(0, 20))) == 0);
    CHECK(cached(joined(system, counting(100, 20))) == 0);
    CHECK(cached(joined(system, counting(200, 20))) == 32);
    CHECK(cached(joined(system, counting(300, 20))) == 32);
  }
  SECTION("where the caller asked for a state, of whole blocks") {
    const Opened first = computed(cache, joined(system, counting(0, 20)), {9, 32});
    CHECK(list(cache.policy().state_lengths(first.seq)) == std::vector<Pos>{48, 52});
    cache.close(first.seq);
    CHECK(cached(joined(system, counting(100, 20))) == 32);
  }
  SECTION("where a sequence was forked") {
    const Opened first = computed(cache, counting(0, 16));
    const SeqId fork = cache.fork(first.seq, 16);
    for (const SeqId seq : {first.seq, fork}) {
      cache.commit(cache.extend(seq, counting(seq == fork ? 100 : 200, 8)));
      CHECK(list(cache.policy().state_lengths(seq)) == std::vector<Pos>{24});
    }
    cache.close(first.seq);
    cache.close(fork);
    CHECK(cached(joined(counting(0, 16), system)) == 16);
  }
  SECTION("at the last whole block of an answer") {
    const Opened first = computed(cache, counting(0, 20));
    for (Token token = 20; token < 31; ++token) {
      cache.commit(cache.extend(first.seq, std::vector<Token>{token}));
    }
    CHECK(list(cache.policy().state_lengths(first.seq)) == std::vector<Pos>{24, 31});
    cache.close(first.seq);
    CHECK(cached(joined(counting(0, 31), system)) == 24);
    CHECK(cache.stats().blocks_referenced == 0);
  }
}

TEST_CASE("States are evicted with all their blocks, and make room for anything", "[states][prefix]") {
  Shared cache(model(), {.blocks = 40, .block_tokens = 8});
  Index evictions = 0;
  for (Token i = 0; i < 20; ++i) {
    const Opened opened = computed(cache, counting(1000 * i, 30));
    cache.close(opened.seq);
    cache.verify();
    const Stats stats = cache.stats();
    CHECK(stats.blocks_free + stats.blocks_cached == 40);
    CHECK(cache.available() == 40);
    evictions = stats.evictions;
  }
  CHECK(evictions > 0);
  const SeqId all = cache.open();
  cache.commit(cache.extend(all, counting(50'000, 8 * 37)));  // and three blocks of a state
  CHECK(cache.stats().blocks_free + cache.stats().blocks_cached == 0);
  CHECK_FALSE(cache.try_extend(all, counting(0, 1)));
  cache.verify();
}

namespace {
/// What the default eviction and LRU find of the same requests, in tokens: some prompts are continued, long ones are
/// not.
std::pair<std::vector<Pos>, std::vector<Pos>> found_by_both(const GroupRules& rules) {
  PrefixShared<> learned({.blocks = 160, .block_tokens = 4}, rules);
  PrefixShared<Lru> lru({.blocks = 160, .block_tokens = 4}, rules);
  Random random(seed_or(5));
  std::vector<std::vector<Token>> talks(12);
  Token fresh = 0;
  std::pair<std::vector<Pos>, std::vector<Pos>> found;
  for (int i = 0; i < 4000; ++i) {
    std::vector<Token> once;
    std::vector<Token>& prompt = random.one_in(3) ? once : talks[random.between<std::size_t>(0, talks.size() - 1)];
    if (prompt.size() > 60) {
      prompt.clear();
    }
    for (int more = &prompt == &once ? 48 : 6; more > 0; --more) {
      prompt.push_back(fresh++);
    }
    const auto computed_by = [&](auto& policy) {
      const Opened opened = *policy.try_open(prompt);
      const auto rest = std::span(prompt).subspan(static_cast<std::size_t>(opened.cached));
      REQUIRE(policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest).has_value());
      policy.commit(opened.seq);
      policy.close(opened.seq);
      return opened.cached;
    };
    found.first.push_back(computed_by(learned));
    found.second.push_back(computed_by(lru));
  }
  return found;
}
}  // namespace

TEST_CASE("Where there are states, the default eviction does as LRU does", "[states][prefix][eviction]") {
  const auto [learned, lru] = found_by_both(model().rules());
  REQUIRE(std::ranges::count_if(lru, [](Pos found) { return found > 0; }) > 100);
  REQUIRE(learned == lru);
  const auto [other, plain] = found_by_both({});
  REQUIRE(other != plain);  // else the comparison would show nothing
}

TEST_CASE("Admission counts the states of a sequence", "[states][prefix]") {
  Shared cache(model(), {.blocks = 40, .block_tokens = 8});
  // 5 lengths of 3 blocks each: before and after a pass, of the last whole block, of the prompt, and where prompts
  // part.
  CHECK(cache.admission(counting(0, 8 * 20), 0) == Admission::now);
  CHECK(cache.admission(counting(0, 8 * 30), 0) == Admission::never);
  const Opened opened = computed(cache, counting(0, 8 * 20));
  CHECK(cache.admission(counting(5000, 8 * 20), 0) == Admission::later);
  cache.close(opened.seq);
  CHECK(cache.admission(counting(5000, 8 * 20), 0) == Admission::now);
}

TEST_CASE("A model may have recurrent layers alone", "[states][prefix]") {
  LayerGroups layers;
  layers.add_state(1000, 3);
  layers.add_state(100);
  Shared cache(layers, {.blocks = 60, .block_tokens = 8});
  CHECK(cache.policy().state_sizes(0).blocks == 3);
  CHECK(cache.policy().state_sizes(1).blocks == 1);
  const Opened first = computed(cache, counting(0, 45));
  CHECK(cache.stats().blocks_referenced == 8);  // at the end, and at the last whole block
  CHECK(cache.length(first.seq) == 45);
  cache.close(first.seq);
  const Opened second = computed(cache, counting(0, 100));
  CHECK(second.cached == 40);
  CHECK(cache.admission(counting(0, 1000), 1000) == Admission::now);  // whatever their number
  cache.truncate(second.seq, 0);
  cache.close(second.seq);
  cache.verify();
  KvCache<float, Contiguous> contiguous(layers, {.max_tokens = 1000});
  const SeqId one = contiguous.open();
  contiguous.commit(contiguous.extend(one, 1000));
  CHECK(contiguous.state(2, one).size() == 1000);
  CHECK(contiguous.state(3, one).size() == 100);
  contiguous.verify();
  KvCache<float, Paged> paged(layers, {.blocks = 8});
  const SeqId seq = paged.open();
  paged.commit(paged.extend(seq, 100'000));
  CHECK(paged.stats().blocks_referenced == 4);
  paged.commit(paged.extend(seq, 1));
  CHECK_FALSE(paged.try_extend(seq, counting(0, 2), std::vector<Pos>{100'002}));
  paged.verify();
}

TEST_CASE("Contiguous has room for so many states of each sequence", "[states]") {
  const auto mode = GENERATE(Contiguous::Mode::reserve, Contiguous::Mode::grow);
  KvCache<float, Contiguous> cache(model().with_rewind(1),
                                   {.sequences = 2, .max_tokens = 40, .mode = mode, .states = 4});
  const SeqId seq = cache.open(), other = cache.open();
  for (const SeqId s : {seq, other}) {
    auto append = cache.extend(s, counting(0, 10), {4, 8, 9});
    for (const Pos length : cache.states_to_write(append)) {
      for (Index layer = 1; layer <= 3; ++layer) {
        std::ranges::fill(cache.state_to_write(layer, append, length),
                          static_cast<std::byte>(length + 20 * layer + (s == seq ? 0 : 100)));
      }
    }
    cache.commit(std::move(append));
    CHECK(list(cache.policy().state_lengths(s)) == std::vector<Pos>{9, 10});
  }
  CHECK(static_cast<int>(cache.state(2, seq)[999]) == 50);
  CHECK(static_cast<int>(cache.state(2, other)[0]) == 150);
  CHECK_THROWS_WITH(cache.extend(seq, counting(10, 5), {11, 12}), Contains("at most 4 lengths (config.states)"));
  cache.commit(cache.extend(seq, counting(10, 5), {12}));
  CHECK(cache.length(seq) == 15);
  cache.close(other);
  const SeqId fork = cache.fork(seq, 12);
  CHECK(list(cache.policy().state_lengths(fork)) == std::vector<Pos>{12});
  cache.truncate(seq, 12);
  cache.close(seq);
  CHECK(cache.state(1, fork).size() == 1000);
  cache.verify();
  CHECK_THROWS_WITH(
      (KvCache<float, Contiguous>(model().with_rewind(1), {.sequences = 2, .max_tokens = 40, .states = 2})),
      Contains("config.states is 2, must be 0, or at least 2 and the reserve"));
}

TEST_CASE("A policy with a lock holds states if the policy behind the lock does", "[states]") {
  KvCache<float, Synchronized<PrefixShared<Lru>>> cache(model(), {.blocks = 100, .block_tokens = 8});
  const SeqId seq = cache.open();
  auto append = cache.extend(seq, counting(0, 10), {8});
  std::ranges::fill(cache.state_to_write(2, append, 10), std::byte{7});
  cache.commit(std::move(append));
  CHECK(cache.state(2, seq)[0] == std::byte{7});
  cache.close(seq);
  CHECK(cache.match_length(counting(0, 10)) == 8);
}

TEST_CASE("What does not know states refuses a model with recurrent layers", "[states]") {
  KvCache<None, Paged> none(model(), {.blocks = 100, .block_tokens = 8});
  const SeqId seq = none.open();
  const auto append = none.extend(seq, counting(0, 4));
  CHECK(list(none.states_to_write(append)) == std::vector<Pos>{4});
  CHECK_THROWS_WITH(none.state_to_write(1, append, 4), Contains("element type is none"));

  KvCache<float, Paged> plain(Shape{1, 1, 16}, {.blocks = 10});
  const SeqId other = plain.open();
  CHECK_THROWS_WITH(plain.extend(other, counting(0, 4), {2}), Contains("there are no recurrent layers"));
  CHECK(plain.states_to_write(plain.extend(other, 4)).empty());
}
