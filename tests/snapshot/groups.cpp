// Snapshots of caches with layer groups: rows and states come back bit for bit in a cache of any policy, block size and
// layout, a loaded sequence goes on and is found by its tokens, and damage is an error.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "any_groups.hpp"
#include "catch.hpp"
#include "failing_allocation.hpp"
#include "forge.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/policy/synchronized.hpp"
#include "kvc/snapshot/snapshot.hpp"
#include "random_source.hpp"

namespace snapshot_groups_test {

namespace {
using namespace kvc;
using namespace kvc_test;
using Bytes = std::vector<std::byte>;

/// A cache that is saved and loaded.
struct AnySaved : AnyGroups {
  virtual Bytes saved(const std::vector<SeqId>& sequences, const std::vector<Tokens>& tokens) const = 0;
  virtual std::optional<snapshot::Loaded> loaded(std::span<const std::byte> bytes, bool converts = false) = 0;
};

template <class T, class P, class L>
struct SavedOf final : GroupsOf<T, P, L, AnySaved> {
  using GroupsOf<T, P, L, AnySaved>::GroupsOf;
  using GroupsOf<T, P, L, AnySaved>::cache;
  Bytes saved(const std::vector<SeqId>& sequences, const std::vector<Tokens>& tokens) const override {
    std::vector<snapshot::SavedSequence> list;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      list.push_back({sequences[i], {}, {}});
      if (!this->finds()) {
        list.back().tokens = std::span(tokens[i]).first(static_cast<std::size_t>(cache.length(sequences[i])));
      }
    }
    io::MemorySink sink;
    snapshot::save(cache, std::span<const snapshot::SavedSequence>(list), sink);
    return sink.take();
  }
  std::optional<snapshot::Loaded> loaded(std::span<const std::byte> bytes, bool converts = false) override {
    io::MemorySource source(bytes, "some bytes");
    return snapshot::try_load(cache, source, {.convert_elements = converts});
  }
};

using Prefix = PrefixShared<Lru>;
using Make = std::function<std::unique_ptr<AnySaved>(const LayerGroups&)>;
template <class T, class P, class L>
Make make(const typename P::Config& config) {
  return [config](const LayerGroups& layers) { return std::make_unique<SavedOf<T, P, L>>(layers, config); };
}
std::vector<Make> makers() {
  return {make<float, Paged, HeadMajor>({.blocks = 900, .block_tokens = 1}),
          make<float, Paged, TokenMajor>({.blocks = 400, .block_tokens = 4}),
          make<float, Prefix, HeadMajor>({.blocks = 400, .block_tokens = 4}),
          make<float, Prefix, TokenMajor>({.blocks = 900, .block_tokens = 3}),
          make<float, Contiguous, HeadMajor>({.sequences = 16, .max_tokens = 60, .mode = Contiguous::Mode::grow})};
}

struct Saved {
  SeqId seq;
  Tokens tokens;
  Salt salt;
};

/// Sequences after random operations.
std::vector<Saved> random_sequences(AnyGroups& cache, Random& random) {
  std::vector<Saved> all;
  for (int i = 0; i < 40; ++i) {
    const auto at = all.empty() ? 0 : random.between<std::size_t>(0, all.size() - 1);
    switch (all.empty() ? 0 : random.between(0, 6)) {
      case 0:
        if (all.size() < 6) {
          const Salt salt = random.one_in(4) ? Salt(SaltKind::tenant, "t") : Salt{};
          all.push_back({cache.open(salt), {random.between(0, 1)}, salt});
          for (int n = 0; n < 59; ++n) {
            all.back().tokens.push_back(random.between(0, 9));
          }
        }
        break;
      case 1:
        if (all.size() < 6) {
          const Pos length = cache.length(all[at].seq);
          const Pos cut = random.between(std::max(0, length - 2), length);
          if (const auto forked = cache.fork(all[at].seq, cut)) {
            all.push_back({*forked, all[at].tokens, all[at].salt});
            for (auto n = static_cast<std::size_t>(std::max(cut, 1)); n < 60; ++n) {
              all.back().tokens[n] = random.between(0, 9);
            }
          }
        }
        break;
      case 2:
        cache.truncate(all[at].seq, std::max(0, cache.length(all[at].seq) - random.between(0, 2)));
        break;
      default:
        cache.extend(all[at].seq, all[at].tokens,
                     std::min(random.between(1, random.one_in(3) ? 12 : 3), 60 - cache.length(all[at].seq)));
    }
  }
  return all;
}

void check_loaded(AnyGroups& cache, const snapshot::Loaded& loaded, const std::vector<Saved>& saved,
                  const std::vector<Pos>& lengths) {
  cache.verify();
  REQUIRE(loaded.sequences.size() == saved.size());
  for (std::size_t i = 0; i < saved.size(); ++i) {
    const SeqId seq = loaded.sequences[i];
    REQUIRE(cache.length(seq) == lengths[i]);
    REQUIRE(loaded.contents.tokens_of(i).size() == static_cast<std::size_t>(lengths[i]));
    cache.check(seq, saved[i].tokens);
  }
  for (std::size_t i = 0; i < saved.size(); ++i) {  // they go on
    const Pos more = std::min(5, 60 - lengths[i]);
    REQUIRE((more == 0 || cache.extend(loaded.sequences[i], saved[i].tokens, more)));
    cache.check(loaded.sequences[i], saved[i].tokens);
    cache.verify();
  }
}
}  // namespace

TEST_CASE("A cache with layer groups comes back under any policy, block size and layout", "[io]") {
  const std::uint64_t seed = seed_or(20);
  CAPTURE(seed);
  Random random(seed);
  for (const LayerGroups& layers :
       {mixed_layers(), cross_layers(), mixed_layers().with_rewind(3), latent_layers(), recurrent_layers(),
        recurrent_layers().with_rewind(4), states_alone().with_rewind(2)}) {
    for (const Make& from : makers()) {
      const auto source = from(layers);
      const std::vector<Saved> saved = random_sequences(*source, random);
      std::vector<SeqId> sequences;
      std::vector<Tokens> tokens;
      std::vector<Pos> lengths;
      for (const Saved& s : saved) {
        source->check(s.seq, s.tokens);
        sequences.push_back(s.seq);
        tokens.push_back(s.tokens);
        lengths.push_back(source->length(s.seq));
      }
      const Bytes bytes = source->saved(sequences, tokens);
      for (const Make& to : makers()) {
        const auto cache = to(layers);
        CAPTURE(source->name(), cache->name());
        const auto loaded = cache->loaded(bytes);
        REQUIRE(loaded);
        if (cache->name() == source->name()) {
          CHECK(cache->stats().blocks_referenced <= source->stats().blocks_referenced + std::ssize(saved));
        }
        // The loaded cache is saved and loaded again.
        const auto third = to(layers);
        const auto again = third->loaded(cache->saved(loaded->sequences, tokens));
        REQUIRE(again);
        check_loaded(*third, *again, saved, lengths);
        check_loaded(*cache, *loaded, saved, lengths);
      }
    }
  }
}

TEST_CASE("Sequences that were loaded with layer groups are found by their tokens", "[io]") {
  for (const LayerGroups& layers : {mixed_layers(), cross_layers(), recurrent_layers(), states_alone()}) {
    SavedOf<float, Prefix, HeadMajor> source(layers, {.blocks = 200, .block_tokens = 4});
    Tokens tokens;
    for (Token i = 0; i < 40; ++i) {
      tokens.push_back(i);
    }
    const Salt salt(SaltKind::multimodal, "an input");
    const SeqId seq = source.open(salt);
    REQUIRE(source.extend(seq, tokens, 32));
    const Bytes bytes = source.saved({seq}, {tokens});
    for (const Pos block : {4, 2}) {
      SavedOf<float, Prefix, TokenMajor> cache(layers, {.blocks = 400, .block_tokens = block});
      const auto loaded = cache.loaded(bytes);
      REQUIRE(loaded);
      REQUIRE(cache.match(tokens, salt) == source.match(tokens, salt));
      REQUIRE(cache.match(tokens, salt) == 32);
      REQUIRE(cache.match(tokens, {}) == 0);
      for (const bool is_closed : {false, true}) {
        const Opened opened = cache.open_prompt(tokens, salt);
        REQUIRE(opened.cached == 32);
        cache.check(opened.seq, tokens);
        cache.close(opened.seq);
        if (!is_closed) {
          cache.close(loaded->sequences[0]);
        }
      }
      cache.verify();
    }
  }
}

TEST_CASE("A snapshot with layer groups is refused by a cache with others, and loads with other elements", "[io]") {
  SavedOf<float, Paged, HeadMajor> source(mixed_layers(), {.blocks = 100, .block_tokens = 4});
  const Tokens tokens(60, 3);
  const SeqId seq = source.open({});
  REQUIRE(source.extend(seq, tokens, 20));
  const Bytes bytes = source.saved({seq}, {tokens});

  SavedOf<float, Paged, HeadMajor> other(cross_layers(), {.blocks = 100, .block_tokens = 4});
  REQUIRE_THROWS_WITH(other.loaded(bytes), contains("groups as the cache has, found number 0"));
  const Shape shape{.layers = 1, .kv_heads = 2, .key_dim = 3, .value_dim = 2};
  SavedOf<float, Paged, HeadMajor> plain(shape, {.blocks = 100, .block_tokens = 4});
  REQUIRE_THROWS_WITH(plain.loaded(bytes), contains("version 1 of the format, found 2"));
  SavedOf<float, Paged, HeadMajor> into(mixed_layers(), {.blocks = 100, .block_tokens = 4});
  REQUIRE_THROWS_WITH(into.loaded(plain.saved({}, {})), contains("version 2 of the format, found 1"));
  SavedOf<Eigen::bfloat16, Paged, TokenMajor> small(mixed_layers(), {.blocks = 100, .block_tokens = 3});
  REQUIRE_THROWS_WITH(small.loaded(bytes), contains("or LoadOptions::convert_elements"));
  const auto converted = small.loaded(bytes, true);
  REQUIRE(converted);
  small.check(converted->sequences[0], tokens);
  SavedOf<float, Paged, HeadMajor> full(mixed_layers(), {.blocks = 6, .block_tokens = 4});
  REQUIRE(!full.loaded(bytes));
  REQUIRE(full.stats().blocks_free == 6);
  REQUIRE(full.stats().sequences == 0);
}

TEST_CASE("Prefixes that no sequence references come back with layer groups", "[io]") {
  for (const LayerGroups& layers : {mixed_layers(), cross_layers(), latent_layers(), mixed_layers().with_rewind(3),
                                    recurrent_layers(), states_alone()}) {
    SavedOf<float, Prefix, HeadMajor> source(layers, {.blocks = 600, .block_tokens = 4});
    const Salt salt(SaltKind::multimodal, "an input");
    std::vector<Tokens> prompts;
    for (const int number : {1, 2, 3, 4, 5}) {  // the first three begin alike
      Tokens prompt(60, number > 3 ? 9 : 8);
      prompt[0] = 8;
      for (std::size_t i = 17; i < prompt.size(); ++i) {
        prompt[i] = static_cast<Token>((i * i + static_cast<std::size_t>(number)) % 7);
      }
      prompts.push_back(prompt);
    }
    std::vector<Pos> found;
    for (const Tokens& prompt : prompts) {
      const Tokens beginning(prompt.begin(), prompt.begin() + 38);
      const Opened opened = source.open_prompt(beginning, salt);
      REQUIRE(source.extend(opened.seq, prompt, 38 - opened.cached));
      for (int i = 0; i < 9; ++i) {
        REQUIRE(source.extend(opened.seq, prompt, 1));
      }
      if (&prompt != &prompts[1]) {
        source.close(opened.seq);
      }
    }
    for (const Tokens& prompt : prompts) {
      found.push_back(source.match(prompt, salt));
      REQUIRE(found.back() >= 16);
    }
    const Bytes bytes = source.saved({}, {});
    for (const Pos block : {4, 2, 8}) {
      SavedOf<float, Prefix, TokenMajor> cache(layers, {.blocks = 1500, .block_tokens = block});
      CAPTURE(block, layers.groups().size(), layers.states().size());
      REQUIRE(cache.loaded(bytes)->sequences.empty());
      cache.verify();
      REQUIRE(cache.stats().blocks_referenced == 0);
      for (std::size_t i = 0; i < prompts.size(); ++i) {
        const Pos match = cache.match(prompts[i], salt);
        if (block == 4) {
          REQUIRE(match == found[i]);
        }
        const Opened opened = cache.open_prompt(prompts[i], salt);
        REQUIRE(opened.cached == match);
        if (match > 0) {
          cache.check(opened.seq, prompts[i]);
        }
        cache.close(opened.seq);
      }
      cache.verify();
    }
    // Without room in a policy that finds nothing, or where they are not wanted, they are left out.
    SavedOf<float, Paged, HeadMajor> paged(layers, {.blocks = 1, .block_tokens = 4});
    REQUIRE(paged.loaded(bytes)->sequences.empty());
    REQUIRE(paged.stats().blocks_free == 1);
    SavedOf<float, Prefix, HeadMajor> without(layers, {.blocks = 600, .block_tokens = 4});
    io::MemorySource from(bytes, "some bytes");
    REQUIRE(snapshot::try_load(without.cache, from, {.cached_prefixes = false}));
    REQUIRE(without.match(prompts[0], salt) == 0);
    SavedOf<float, Prefix, HeadMajor> full(layers, {.blocks = 3, .block_tokens = 4});
    REQUIRE(!full.loaded(bytes));
    REQUIRE(full.stats().blocks_free == 3);
  }
}

TEST_CASE("A snapshot of other recurrent states is refused, and says which", "[io][states]") {
  const auto cache_of = [](const LayerGroups& layers) {
    return std::make_unique<SavedOf<float, Paged, HeadMajor>>(layers, Paged::Config{.blocks = 100, .block_tokens = 4});
  };
  const auto model = [](Index bytes, int states) {
    LayerGroups layers;
    layers.add({.kv_heads = 1, .key_dim = 2});
    layers.add_state(bytes, states);
    return layers;
  };
  const auto refused = [&](const LayerGroups& saved, const LayerGroups& own, const char* reason) {
    const auto source = cache_of(saved);
    const Tokens tokens(60, 3);
    const SeqId seq = source->open({});
    REQUIRE(source->extend(seq, tokens, 9));
    const auto cache = cache_of(own);
    REQUIRE_THROWS_WITH(cache->loaded(source->saved({seq}, {tokens})), contains(reason));
    REQUIRE(cache->stats().blocks_free == 100);
  };
  refused(model(128, 2), model(256, 2), "256 bytes in a state of kind 0, as the cache has, found 128");
  refused(model(128, 2), model(128, 3), "4 layers, as the cache has, found 3");
  LayerGroups rows;
  rows.add({.kv_heads = 1, .key_dim = 2}, 2);
  rows.add({.kv_heads = 1, .key_dim = 2, .window = 3});
  refused(model(128, 2), rows, "groups");
  refused(rows, model(128, 2), "groups");
  LayerGroups other;  // the same states in other layers
  other.add_state(128, 2);
  other.add({.kv_heads = 1, .key_dim = 2});
  refused(model(128, 2), other, "layers as the cache has, found number 0 to be another");
}

TEST_CASE("Compressed rows come back where their tokens are", "[io]") {
  const auto model = [](Pos tokens_per_row) {
    LayerGroups layers;
    layers.add({.kv_heads = 2, .key_dim = 16, .value_dim = 8, .tokens_per_row = tokens_per_row}, 2);
    layers.add({.kv_heads = 1, .key_dim = 2, .window = 5});
    return layers;
  };
  using Cache = KvCache<float, Paged>;
  Cache source(model(4), {.blocks = 100, .block_tokens = 8});
  const SeqId seq = source.open();
  constexpr Pos length = 30;
  auto step = source.extend(seq, length);
  for (Index layer = 0; layer < 2; ++layer) {
    const Pos count = source.rows_to_write(layer, step);
    REQUIRE(count == length / 4);
    source.write(layer, step, RowMatrix::Random(count, 32), RowMatrix::Random(count, 16));
  }
  source.write(2, step, RowMatrix::Random(length, 2), RowMatrix::Random(length, 2));
  source.commit(std::move(step));
  io::MemorySink sink;
  snapshot::save(source, std::vector<SeqId>{seq}, sink);
  for (const Pos block : {4, 12}) {
    Cache cache(model(4), {.blocks = 100, .block_tokens = block});
    io::MemorySource from(sink.bytes(), "some bytes");
    const SeqId got = snapshot::load(cache, from).sequences[0];
    for (Index layer = 0; layer < 2; ++layer) {
      const auto mine = source.compressed_view(layer, seq, length), theirs = cache.compressed_view(layer, got, length);
      for (Index head = 0; head < 2; ++head) {
        const auto rows_of = [&](const auto& view) {
          std::vector<float> all;
          view.for_each_run(head, {0, length / 4}, [&](const KvRun<float>& run) {
            for (Index i = 0; i < run.rows; ++i) {
              all.insert(all.end(), run.k + i * run.k_stride, run.k + i * run.k_stride + 16);
              all.insert(all.end(), run.v + i * run.v_stride, run.v + i * run.v_stride + 8);
            }
          });
          return all;
        };
        REQUIRE(rows_of(mine).size() == 24 * (length / 4));
        REQUIRE(rows_of(mine) == rows_of(theirs));
      }
    }
  }
  LayerGroups other;  // whose tokens have as many elements
  other.add({.kv_heads = 2, .key_dim = 4, .value_dim = 2}, 2);
  other.add({.kv_heads = 1, .key_dim = 2, .window = 5});
  Cache cache(other, {.blocks = 100, .block_tokens = 8});
  io::MemorySource from(sink.bytes(), "some bytes");
  REQUIRE_THROWS_WITH(snapshot::load(cache, from), contains("groups as the cache has, found number 0 to be another"));
}

TEST_CASE("States that sequences share are stored once, and shared again", "[io][states]") {
  const LayerGroups layers = recurrent_layers().with_rewind(6);
  SavedOf<float, Paged, HeadMajor> source(layers, {.blocks = 300, .block_tokens = 4});
  Tokens tokens;
  for (Token i = 0; i < 60; ++i) {
    tokens.push_back(i % 7);
  }
  const SeqId seq = source.open({});
  REQUIRE(source.extend(seq, tokens, 16));
  REQUIRE(source.extend(seq, tokens, 3));
  const SeqId at_16 = source.fork(seq, 16).value();
  const SeqId at_19 = source.fork(seq, 19).value();
  const Bytes bytes = source.saved({at_16, seq, at_19}, {tokens, tokens, tokens});
  REQUIRE(Forge(bytes).at("stat").payload.size() == 2 * 100);  // after 16 and after 19 tokens
  SavedOf<float, Paged, TokenMajor> cache(layers, {.blocks = 300, .block_tokens = 4});
  const auto loaded = cache.loaded(bytes).value();
  REQUIRE(cache.stats().blocks_referenced == source.stats().blocks_referenced);
  const auto blocks = [&](std::size_t i, Pos length) {
    return cache.cache.policy().state_blocks(loaded.sequences[i], 0, length)[0];
  };
  REQUIRE(blocks(0, 16) == blocks(1, 16));
  REQUIRE(blocks(1, 19) == blocks(2, 19));
  for (std::size_t i = 0; i < 3; ++i) {
    cache.check(loaded.sequences[i], tokens);
    REQUIRE(cache.extend(loaded.sequences[i], tokens, 5));
    cache.check(loaded.sequences[i], tokens);
  }
  cache.verify();

  // A policy takes those that it has room for and a sequence keeps: here that of the end, and one more.
  SavedOf<float, Contiguous, HeadMajor> other(recurrent_layers(), {.sequences = 4, .max_tokens = 60});
  const auto again = other.loaded(bytes).value();
  for (std::size_t i = 0; i < 3; ++i) {
    REQUIRE(other.cache.policy().state_lengths(again.sequences[i]).size() == 1);
    REQUIRE(other.extend(again.sequences[i], tokens, 5));
    other.check(again.sequences[i], tokens);
  }
}

TEST_CASE("A damaged snapshot with layer groups is refused, and changes nothing", "[io][format]") {
  const bool has_states = GENERATE(false, true);
  const LayerGroups layers = has_states ? recurrent_layers().with_rewind(20) : mixed_layers();
  SavedOf<float, Prefix, HeadMajor> source(layers, {.blocks = 100, .block_tokens = 2});
  const Tokens tokens(60, 3);
  const SeqId seq = source.open({});
  REQUIRE(source.extend(seq, tokens, 8));
  REQUIRE(source.extend(seq, tokens, 5));
  REQUIRE(source.fork(seq, 13));
  const Bytes bytes = source.saved({seq, *source.fork(seq, 13)}, {});
  SavedOf<float, Prefix, HeadMajor> cache(layers, {.blocks = 100, .block_tokens = 2});
  const auto refuses = [&](std::span<const std::byte> damaged) {
    try {
      const auto loaded = cache.loaded(damaged);
      return false;
    } catch (const FormatError&) {
      return cache.stats().blocks_free == 100 && cache.stats().sequences == 0;
    }
  };
  const auto step = static_cast<std::size_t>(100 / kvc_test::cases_or(100));
  for (std::size_t at = 0; at < bytes.size(); at += step) {
    Bytes damaged = bytes;
    for (std::size_t bit = 0; bit < 8 && (at < 10 || at >= 12); ++bit) {  // not the minor version
      if (step > 1 && bit != at / step % 8) {
        continue;  // of some bytes one bit each
      }
      damaged[at] = bytes[at] ^ static_cast<std::byte>(1U << bit);
      INFO(at);
      REQUIRE(refuses(damaged));
    }
    REQUIRE(refuses(std::span(bytes).first(at)));
  }
  // With right checksums: every field of the records to values that are not possible, or are.
  const Forge good(bytes);
  int refused = 0;
  for (std::size_t section = 0; section < good.sections.size(); ++section) {
    const std::size_t words = good.sections[section].payload.size() / 4;
    for (std::size_t word = 0; word < std::min<std::size_t>(words, 200); word += step) {
      for (const std::int32_t value : {-2, 0, 1, 7, 1 << 30}) {
        Forge forged = good;
        forged.sections[section].set(word * 4, value);
        SavedOf<float, Prefix, HeadMajor> victim(layers, {.blocks = 100, .block_tokens = 2});
        try {
          (void)victim.loaded(forged.bytes());
        } catch (const FormatError&) {
          ++refused;
          REQUIRE(victim.stats().blocks_free == 100);
        }
        victim.verify();
      }
    }
  }
  REQUIRE(refused > static_cast<int>(500 / step));
}

TEST_CASE("Sequences that share rows under tokens which differ are not saved and are loaded apart", "[io][format]") {
  SavedOf<float, Paged, HeadMajor> source(mixed_layers(), {.blocks = 100, .block_tokens = 4});
  const Tokens tokens(60, 3);
  const SeqId seq = source.open({});
  REQUIRE(source.extend(seq, tokens, 12));
  const SeqId second = source.fork(seq, 12).value(), third = source.fork(seq, 12).value();
  Tokens other = tokens;
  other[2] = 9;
  const std::span<const Token> known = std::span(tokens).first(12), others = std::span(other).first(12);
  const auto saved = [&](std::span<const Token> of_second, std::span<const Token> of_third) {
    const std::vector<snapshot::SavedSequence> list{{seq, {}, {}}, {second, of_second, {}}, {third, of_third, {}}};
    io::MemorySink sink;
    snapshot::save(source.cache, std::span<const snapshot::SavedSequence>(list), sink);
    return sink.take();
  };
  REQUIRE_THROWS_WITH(saved(known, others), contains("tokens is different from those of a sequence that shares"));
  REQUIRE_THROWS_WITH(saved(others.first(3), known), contains("must be the same"));
  REQUIRE_NOTHROW(saved(others.first(2), known));

  Forge forged(saved(known, known));  // the first sequence knows no tokens, and the others share its rows
  REQUIRE(forged.at("tokn").payload.size() == 24 * sizeof(Token));
  forged.at("tokn").set((12 + 2) * sizeof(Token), other[2]);
  SavedOf<float, Prefix, HeadMajor> cache(mixed_layers(), {.blocks = 100, .block_tokens = 4});
  const auto loaded = cache.loaded(forged.bytes());
  REQUIRE(loaded);
  cache.verify();
  for (const SeqId each : loaded->sequences) {
    cache.check(each, tokens);  // the rows are those of the file
  }
  REQUIRE(cache.match(tokens, {}) == 12);
  REQUIRE(cache.match(other, {}) == 12);
}

TEST_CASE("A load of layer groups whose n-th allocation fails changes nothing", "[io][failure]") {
  SavedOf<float, Prefix, HeadMajor> source(mixed_layers(), {.blocks = 200, .block_tokens = 4});
  Tokens tokens(60, 3);
  const SeqId seq = source.open(Salt(SaltKind::tenant, "a tenant with a name too long to be stored in place"));
  REQUIRE(source.extend(seq, tokens, 20));
  const SeqId fork = source.fork(seq, 20).value();
  tokens[20] = 4;
  REQUIRE(source.extend(fork, tokens, 20));
  const SeqId alone = source.open({});
  REQUIRE(source.extend(alone, tokens, 30));
  const Bytes bytes = source.saved({seq, fork, alone}, {});
  int failures = 0;
  const int step = kvc_test::cases_or(3) < 3 ? 3 : 1;  // of all that allocate, or of every third
  for (bool refused = true; refused; failures += step) {
    CAPTURE(failures);
    REQUIRE(failures < 2000);
    SavedOf<float, Prefix, HeadMajor> cache(mixed_layers(), {.blocks = 200, .block_tokens = 4});
    io::MemorySource memory(bytes);
    refused = false;
    {
      const FailAllocation armed(failures);
      try {
        (void)snapshot::try_load(cache.cache, memory);
      } catch (const std::bad_alloc&) {
        refused = true;
      }
    }
    cache.verify();
    if (refused) {
      REQUIRE(cache.stats().blocks_free == 200);
      REQUIRE(cache.stats().sequences == 0);
    }
  }
  REQUIRE(failures > 50);
}

}  // namespace snapshot_groups_test
