// Random operations, saved in the middle and loaded into a cache of another kind: all rows are those of the model, and
// the loaded cache goes on correctly.
#include <concepts>
#include <map>
#include <memory>
#include <vector>

#include "any_cache.hpp"
#include "random_source.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;

struct OpenSequence {
  SeqId seq;
  Salt salt;
  Values values;
  bool known = true;  // all tokens were given
};

Value start_of(const Salt& salt) { return salt.empty() ? 0 : 99; }

template <class T>
std::unique_ptr<AnyCache> random_cache(Random& random) {
  const Pos tokens = random.between<Pos>(60, 400);
  if constexpr (!std::same_as<T, float>) {  // rows of other elements differ in their bytes alone
    return random.one_in(2) ? make_cache<T, Prefix4, HeadMajor>(tokens) : make_cache<T, Paged4, TokenMajor>(tokens);
  }
  switch (random.between(0, 8)) {
    case 0:
      return make_cache<T, Reserve, HeadMajor>(3 * tokens);
    case 1:
      return make_cache<T, GrowBest, TokenMajor>(tokens);
    case 2:
      return make_cache<T, Paged1, HeadMajor>(tokens);
    case 3:
      return make_cache<T, Paged4, TokenMajor>(tokens);
    case 4:
      return make_cache<T, Paged7, HeadMajor>(tokens);
    case 5:
      return make_cache<T, Prefix1, HeadMajor>(tokens);
    case 6:
      return make_cache<T, Prefix4, HeadMajor>(tokens);
    case 7:
      return make_cache<T, Prefix7, TokenMajor>(tokens);
    default:
      return make_cache<T, PrefixMru, TokenMajor>(tokens);
  }
}

void operate(Random& random, AnyCache& cache, std::vector<OpenSequence>& open, int operations) {
  const auto random_tokens = [&](int most) {
    Tokens tokens(random.between<std::size_t>(0, static_cast<std::size_t>(most)));
    for (Token& token : tokens) {
      token = random.one_in(8) ? random.between<Token>(-2, 2) : 1;
    }
    return tokens;
  };
  for (int i = 0; i < operations; ++i) {
    if (open.empty() || (open.size() < 7 && random.one_in(4))) {
      OpenSequence h;
      h.salt = random.one_in(3) ? Salt(SaltKind::tenant, "t") : Salt();
      const Tokens prompt = random_tokens(30);
      const auto opened = cache.try_open(prompt, h.salt);
      if (!opened) {
        continue;
      }
      h.seq = opened->seq;
      h.values = values_of({prompt.begin(), prompt.begin() + opened->cached}, start_of(h.salt));
      open.push_back(h);
    }
    const auto which = random.between<std::size_t>(0, open.size() - 1);
    OpenSequence& h = open[which];
    const Value last = h.values.empty() ? start_of(h.salt) : h.values.back();
    switch (random.between(0, 9)) {
      default: {
        const Tokens tokens = random_tokens(random.one_in(4) ? 25 : 5);
        const bool with_tokens = h.known && !random.one_in(12);
        const Values values = with_tokens ? values_of(tokens, last) : values_of(tokens, last + 12345);
        if (!tokens.empty() && cache.append(h.seq, with_tokens ? tokens : Tokens{}, values)) {
          h.values.insert(h.values.end(), values.begin(), values.end());
          h.known = h.known && with_tokens;
        }
        break;
      }
      case 6:
      case 7: {
        const auto at = random.between<Pos>(0, static_cast<Pos>(h.values.size()));
        if (open.size() < 9) {
          if (const auto forked = cache.try_fork(h.seq, at)) {
            // The tokens of later rows stay unknown: none are given any more.
            OpenSequence child{*forked, h.salt, {h.values.begin(), h.values.begin() + at}, h.known};
            open.push_back(child);
          }
        }
        break;
      }
      case 8: {
        const auto length = random.between<std::size_t>(0, h.values.size());
        cache.truncate(h.seq, static_cast<Pos>(length));
        h.values.resize(length);
        break;
      }
      case 9:
        cache.close(h.seq);
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(which));
        break;
    }
  }
}

void check(const AnyCache& cache, const std::vector<OpenSequence>& open, const std::string& when) {
  INFO(when << ", " << cache.name());
  cache.verify();
  for (std::size_t i = 0; i < open.size(); ++i) {
    INFO("sequence " << i);
    REQUIRE(cache.length(open[i].seq) == static_cast<Pos>(open[i].values.size()));
    REQUIRE((cache.rows(open[i].seq) == cache.rows_of(open[i].values)));
  }
}

template <class T>
void run(Random& random, int rounds) {
  int loads = 0;
  for (int round = 0; round < rounds; ++round) {
    auto cache = random_cache<T>(random);
    std::vector<OpenSequence> open;
    operate(random, *cache, open, random.between(1, 60));
    for (int hop = 0; hop < 3; ++hop) {
      check(*cache, open, "before it is saved, round " + std::to_string(round));
      std::vector<snapshot::SavedSequence> sequences;
      for (const OpenSequence& h : open) {
        sequences.push_back({h.seq, {}, h.salt});
      }
      io::MemorySink sink;
      cache->save(sequences, sink);
      const Bytes bytes = sink.take();
      auto next = random_cache<T>(random);
      INFO("round " << round << ", hop " << hop << ": " << cache->name() << " -> " << next->name());
      const Seen before(*next);
      snapshot::LoadOptions options;
      options.cached_prefixes = !random.one_in(3);
      const auto loaded = next->loaded(bytes, options);
      next->verify();
      if (!loaded) {
        REQUIRE(Seen(*next) == before);
        continue;
      }
      ++loads;
      const Stats from = cache->stats();
      const Stats to = next->stats();
      if (from.block_tokens > 1 && from.block_tokens == to.block_tokens &&
          cache->caches_prefixes() == next->caches_prefixes()) {
        REQUIRE(to.blocks_referenced == from.blocks_referenced);
        REQUIRE((!options.cached_prefixes || to.blocks_cached == from.blocks_cached));
        REQUIRE(to.tokens_stored == from.tokens_stored);
      }
      for (std::size_t i = 0; i < open.size(); ++i) {
        open[i].seq = loaded->sequences[i];
      }
      const std::string was = cache->name();
      cache = std::move(next);
      check(*cache, open, "loaded from " + was);
      operate(random, *cache, open, random.between(1, 60));
    }
    check(*cache, open, "in the end");
  }
  REQUIRE(loads > rounds / 2);
}
}  // namespace

TEST_CASE("Random operations, saved and loaded into another kind of cache", "[io][model]") {
  const std::uint64_t seed = seed_or(GENERATE(std::uint64_t{5}, any_seed));
  INFO("KVC_TEST_SEED=" << seed);
  Random random(seed);
  const int rounds = operations_or(100'000) / 500;
  run<float>(random, rounds);
#if !defined(KVC_FLOAT_AND_INT8_ALONE)
  run<Eigen::bfloat16>(random, rounds / 4);
#endif
}
