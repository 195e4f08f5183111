// Random operations on KvCache beside a plain model of it: rows in std::vectors. Every element type, layout and kind of
// policy.
#include <Eigen/Core>
#include <functional>
#include <map>

#include "catch.hpp"
#include "failing_allocation.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "policies.hpp"
#include "random_source.hpp"

namespace {
using namespace kvc;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr Shape shape{.layers = 2, .kv_heads = 3, .key_dim = 2, .value_dim = 1};

/// The row of a position: as in a model, it depends on all tokens before it. Small integers, exact in 16 bits.
float entry(const std::vector<Token>& tokens, std::size_t position, Index layer, Index column) {
  std::uint32_t h = 17;
  for (std::size_t i = 0; i <= position; ++i) {
    h = (h ^ static_cast<std::uint32_t>(tokens[i])) * 2654435761U;
    h ^= h >> 15;
  }
  h = (h + static_cast<std::uint32_t>(layer * 131 + column)) * 2654435761U;
  return static_cast<float>(h >> 24);  // 0 .. 255
}

Matrix rows_of(const std::vector<Token>& tokens, PosRange range, Index layer, Index columns, Index salt) {
  Matrix m(range.size(), columns);
  for (Pos p = range.first; p < range.last; ++p) {
    for (Index c = 0; c < columns; ++c) {
      m(p - range.first, c) = entry(tokens, static_cast<std::size_t>(p), layer, c + salt);
    }
  }
  return m;
}

template <class T, class Policy, class Layout>
void run(const typename Policy::Config& config, kvc_test::Random& random, int operations) {
  using Cache = KvCache<T, Policy, Layout>;
  Cache cache(shape, config);
  struct Sequence {
    SeqId seq;
    std::vector<Token> tokens;
  };
  std::map<int, Sequence> open;
  int next = 0;
  const Index key_columns = shape.kv_heads * shape.key_dim;
  const Index value_columns = shape.kv_heads * shape.value_dim;
  const auto check = [&](const Sequence& s) {
    const auto length = static_cast<Pos>(s.tokens.size());
    REQUIRE(cache.length(s.seq) == length);
    for (Index layer = 0; layer < shape.layers; ++layer) {
      Matrix k(length, key_columns);
      Matrix v(length, value_columns);
      cache.gather(layer, s.seq, {0, length}, k, v);
      REQUIRE(k == rows_of(s.tokens, {0, length}, layer, key_columns, 0));
      REQUIRE(v == rows_of(s.tokens, {0, length}, layer, value_columns, 1000));
    }
  };
  // The steps of one extension. False if there was no room.
  const auto append = [&](Sequence& s, const std::vector<Token>& more) {
    auto step = cache.try_extend(s.seq, more);
    if (!step) {
      return false;
    }
    std::vector<Token> tokens = s.tokens;
    tokens.insert(tokens.end(), more.begin(), more.end());
    for (Index layer = 0; layer < shape.layers; ++layer) {
      cache.write(layer, *step, rows_of(tokens, step->range(), layer, key_columns, 0),
                  rows_of(tokens, step->range(), layer, value_columns, 1000));
    }
    if (random.one_in(5)) {
      return true;  // the Append is destroyed: nothing has happened
    }
    cache.commit(std::move(*step));
    s.tokens = tokens;
    return true;
  };
  const auto random_tokens = [&](int most) {
    std::vector<Token> tokens(random.between<std::size_t>(0, static_cast<std::size_t>(most)));
    for (Token& token : tokens) {
      token = random.one_in(6) ? random.between<Token>(2, 3) : 1;
    }
    return tokens;
  };
  for (int i = 0; i < operations; ++i) {
    INFO("operation " << i);
    if (open.empty() || (open.size() < 6 && random.one_in(6))) {
      const std::vector<Token> prompt = random_tokens(25);
      if (const auto opened = cache.try_open(prompt)) {
        Sequence s{opened->seq, {prompt.begin(), prompt.begin() + opened->cached}};
        check(s);
        append(s, {prompt.begin() + opened->cached, prompt.end()});
        check(s);
        open.emplace(next++, s);
      }
      continue;
    }
    auto it = open.begin();
    std::advance(it, random.between<std::ptrdiff_t>(0, std::ssize(open) - 1));
    Sequence& s = it->second;
    switch (random.between(0, 9)) {
      default:
        append(s, random_tokens(random.one_in(5) ? 30 : 3));
        break;
      case 7: {
        const auto at = random.between<std::size_t>(0, s.tokens.size());
        if (const auto forked = cache.try_fork(s.seq, at); forked && open.size() < 6) {
          open.emplace(next++,
                       Sequence{*forked, {s.tokens.begin(), s.tokens.begin() + static_cast<std::ptrdiff_t>(at)}});
        } else if (forked) {
          cache.close(*forked);
        }
        break;
      }
      case 8:
        s.tokens.resize(random.between<std::size_t>(0, s.tokens.size()));
        cache.truncate(s.seq, s.tokens.size());
        break;
      case 9:
        cache.close(s.seq);
        open.erase(it);
        continue;
    }
    check(s);
    if (i % 32 == 0) {
      cache.verify();
      for (const auto& [id, other] : open) {
        check(other);
      }
    }
  }
  for (const auto& [id, s] : open) {
    cache.close(s.seq);
  }
  cache.verify();
  REQUIRE(cache.stats().blocks_referenced == 0);
}
}  // namespace

TEMPLATE_TEST_CASE("KvCache does what the model does", "[cache][model]", kvc_test::Reserve, kvc_test::GrowBest,
                   kvc_test::Paged4, kvc_test::Prefix4) {
  const std::uint64_t seed = kvc_test::seed_or(GENERATE(std::uint64_t{7}, kvc_test::any_seed));
  INFO("KVC_TEST_SEED=" << seed);
  kvc_test::Random random(seed);
  using Policy = typename TestType::Policy;
  const auto config = TestType::config(96, 8, 40);
  const int operations = kvc_test::operations_or(50'000);
  run<float, Policy, HeadMajor>(config, random, operations);
  run<float, Policy, TokenMajor>(config, random, operations * 2 / 5);
  run<Eigen::half, Policy, HeadMajor>(config, random, operations * 2 / 5);
  run<Eigen::bfloat16, Policy, TokenMajor>(config, random, operations / 5);
}

TEMPLATE_TEST_CASE("An operation whose n-th allocation fails changes nothing, for every n", "[cache][failure]",
                   kvc_test::Reserve, kvc_test::GrowFirst, kvc_test::Paged4, kvc_test::Prefix4) {
  using Cache = KvCache<float, typename TestType::Policy>;
  const auto config = TestType::config(96, 8, 40);
  const std::vector<Token> prompt{1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  OpenOptions salted;
  salted.salt.add(SaltKind::tenant, "a tenant with a name too long to be stored in place");
  struct State {
    Cache cache;
    SeqId a;
    explicit State(const typename TestType::Policy::Config& c)
        : cache(shape, c), a(cache.open(std::vector<Token>{1, 2, 3}).seq) {
      cache.commit(cache.extend(a, std::vector<Token>{1, 2, 3, 4, 5}));
    }
  };
  const auto everything = [](const State& s) {
    const Stats t = s.cache.stats();
    return std::tuple(t.blocks_free, t.blocks_cached, t.blocks_referenced, t.sequences, t.tokens_stored,
                      s.cache.length(s.a), s.cache.policy().reserved(s.a));
  };
  const std::vector<std::pair<const char*, std::function<void(State&)>>> operations{
      {"open", [&](State& s) { (void)s.cache.open(prompt); }},
      {"open with a new salt", [&](State& s) { (void)s.cache.open(prompt, salted); }},
      {"extend by one", [&](State& s) { s.cache.commit(s.cache.extend_without_tokens(s.a, 1)); }},
      {"extend by blocks", [&](State& s) { s.cache.commit(s.cache.extend_without_tokens(s.a, 30)); }},
      {"extend by tokens", [&](State& s) { s.cache.commit(s.cache.extend(s.a, prompt)); }},
      {"fork", [&](State& s) { (void)s.cache.fork(s.a, 5); }},
      {"truncate", [&](State& s) { s.cache.truncate(s.a, 2); }},
      {"close", [&](State& s) { s.cache.close(s.a); }},
  };
  for (const auto& [name, operation] : operations) {
    int failures = 0;
    for (;; ++failures) {
      INFO(name << ", allocation " << failures);
      REQUIRE(failures < 50);
      State state(config);
      const auto before = everything(state);
      bool refused = false;
      {
        const kvc_test::FailAllocation armed(failures);
        try {
          operation(state);
        } catch (const std::bad_alloc&) {
          refused = true;
        }
      }
      state.cache.verify();
      if (!refused) {
        break;
      }
      REQUIRE(everything(state) == before);
    }
    if (std::string(name) == "truncate" || std::string(name) == "close") {
      REQUIRE(failures == 0);  // what gives back room must not need any
    }
  }
}
