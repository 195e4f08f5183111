// Random operations on caches with recurrent layers beside a plain model: a state after n tokens is a function of these
// n tokens, and is found again wherever a sequence begins from it.
#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <vector>

#include "catch.hpp"
#include "failing_allocation.hpp"
#include "kvc/cache.hpp"
#include "policies.hpp"
#include "random_source.hpp"

namespace {
using namespace kvc;
using kvc_test::Random;

/// A number that stands for tokens, in their order.
std::uint32_t digest(std::span<const Token> tokens, Index layer) {
  auto h = static_cast<std::uint32_t>(layer) + 17;
  for (const Token token : tokens) {
    h = (h ^ static_cast<std::uint32_t>(token)) * 2654435761U;
    h ^= h >> 15;
  }
  return h;
}

/// A model of layers with rows, with or without a window, and of recurrent layers of two sizes.
struct Model {
  LayerGroups layers;
  std::vector<Index> with_rows, recurrent;

  Model(Random& random, bool has_window) {
    for (int i = 0; i < 3; ++i) {
      with_rows.push_back(layers.add({.kv_heads = 1, .key_dim = 2, .window = has_window && i > 0 ? 5 : 0}));
      recurrent.push_back(layers.add_state(random.between(1, 3) * 24));
      recurrent.push_back(layers.add_state(200));
    }
    layers.with_rewind(random.one_in(2) ? 0 : 3);
  }
};

struct Sequence {
  SeqId seq;
  std::vector<Token> tokens;
  std::set<Pos> states;  // lengths of which it must have states
};

template <class Policy>
class Run {
 public:
  using Cache = KvCache<float, Policy>;

  Run(const Model& model, const typename Policy::Config& config, Random& random)
      : model_(model), cache_(model.layers, config), random_(random) {}

  [[nodiscard]] int found() const { return found_; }
  [[nodiscard]] int refused() const { return refused_; }

  void operator()(int operations) {
    for (int i = 0; i < operations; ++i) {
      INFO("operation " << i);
      step();
      if (i % 16 == 0) {
        cache_.verify();
        for (auto& [id, s] : open_) {
          check(s);
        }
      }
    }
    for (const auto& [id, s] : open_) {
      cache_.close(s.seq);
    }
    cache_.verify();
    const Stats stats = cache_.stats();
    REQUIRE(stats.blocks_referenced == 0);
    REQUIRE(stats.blocks_free + stats.blocks_cached == stats.blocks_total);
  }

 private:
  void step() {
    if (open_.empty() || (open_.size() < 5 && random_.one_in(5))) {
      begin();
      return;
    }
    auto it = open_.begin();
    std::advance(it, random_.between<std::ptrdiff_t>(0, std::ssize(open_) - 1));
    Sequence& s = it->second;
    switch (random_.between(0, 9)) {
      case 7:
        fork(s);
        break;
      case 8:
        truncate(s);
        break;
      case 9:
        seen_.push_back(s.tokens);
        cache_.close(s.seq);
        open_.erase(it);
        break;
      default:
        (void)append(s, random_tokens(random_.one_in(5) ? 20 : 2));
    }
  }

  std::vector<Token> random_tokens(int most) {
    std::vector<Token> tokens(random_.between<std::size_t>(0, static_cast<std::size_t>(most)));
    for (Token& token : tokens) {
      token = random_.one_in(6) ? random_.between<Token>(2, 3) : 1;
    }
    return tokens;
  }

  void begin() {
    std::vector<Token> prompt;
    if (!seen_.empty() && random_.one_in(2)) {
      const std::size_t recent = std::min<std::size_t>(seen_.size(), 4);
      prompt = seen_[seen_.size() - random_.between<std::size_t>(1, recent)];
      if (random_.one_in(3)) {
        prompt.resize(random_.between<std::size_t>(0, prompt.size()));
      }
    }
    const std::vector<Token> more = random_tokens(12);
    prompt.insert(prompt.end(), more.begin(), more.end());
    Pos expected = 0;
    if constexpr (MatchesPrefixes<Policy>) {
      expected = cache_.match_length(prompt);
      (void)cache_.admission(prompt, 3);
    }
    std::optional<Opened> opened;
    for (int allowed = random_.between(0, 40); !opened; allowed = 1000) {
      kvc_test::FailAllocation fail(allowed);
      try {
        opened = cache_.try_open(prompt);
        if (!opened) {
          ++refused_;
          return;
        }
      } catch (const std::bad_alloc&) {
      }
    }
    REQUIRE(opened->cached == expected);
    found_ += opened->cached > 0 ? 1 : 0;
    Sequence s{opened->seq, {prompt.begin(), prompt.begin() + opened->cached}, {}};
    if (opened->cached > 0) {
      s.states = {opened->cached};
    }
    check(s);
    (void)append(s, {prompt.begin() + opened->cached, prompt.end()});
    check(s);
    open_.emplace(next_++, s);
  }

  bool append(Sequence& s, const std::vector<Token>& more) {
    const auto length = static_cast<Pos>(s.tokens.size());
    const auto end = static_cast<Pos>(length + std::ssize(more));
    std::vector<Pos> asked;
    for (Pos p = length + 1; p <= end; ++p) {
      if (random_.one_in(5)) {
        asked.push_back(p);
      }
    }
    std::optional<Append<Policy>> step;
    for (int allowed = random_.between(0, 20); !step; allowed = 1000) {
      kvc_test::FailAllocation fail(allowed);
      try {
        step = cache_.try_extend(s.seq, more, asked);
        if (!step) {
          ++refused_;
          return false;
        }
      } catch (const std::bad_alloc&) {
        REQUIRE(cache_.policy().reserved(s.seq) == length);
      }
    }
    std::vector<Token> tokens = s.tokens;
    tokens.insert(tokens.end(), more.begin(), more.end());
    for (const Index layer : model_.with_rows) {
      std::vector<float> rows;
      for (Pos p = length; p < end; ++p) {
        for (Index c = 0; c < 2; ++c) {
          rows.push_back(row(tokens, p, layer));
        }
      }
      cache_.write(layer, *step, {rows.data(), end - length, 2}, {rows.data(), end - length, 2});
    }
    const std::span<const Pos> wanted = cache_.states_to_write(*step);
    REQUIRE(std::ranges::includes(wanted, asked));
    if (more.empty()) {
      REQUIRE(wanted.empty());
    } else {
      REQUIRE(wanted.back() == end);
    }
    for (const Pos at : wanted) {
      REQUIRE((length < at && at <= end));
      for (const Index layer : model_.recurrent) {
        const std::span<std::byte> state = cache_.state_to_write(layer, *step, at);
        REQUIRE(reinterpret_cast<std::uintptr_t>(state.data()) % 64 == 0);
        std::ranges::fill(state, expected(tokens, at, layer));
      }
    }
    check(s);  // what others have, and what this one begins from, is still there
    if (random_.one_in(5)) {
      return true;  // the Append is destroyed: nothing has happened
    }
    for (const Pos at : wanted) {
      s.states.insert(at);
    }
    cache_.commit(std::move(*step));
    s.tokens = tokens;
    keep(s);
    return true;
  }

  void fork(Sequence& s) {
    const Pos at = random_.one_in(3) ? random_.between<Pos>(0, static_cast<Pos>(s.tokens.size())) : a_state_of(s);
    if (open_.size() >= 5) {
      return;
    }
    try {
      const std::optional<SeqId> seq = cache_.try_fork(s.seq, at);
      REQUIRE((at == 0 || s.states.contains(at)));
      if (!seq) {
        return;
      }
      Sequence other{*seq, {s.tokens.begin(), s.tokens.begin() + at}, {}};
      if (at > 0) {
        other.states = {at};
      }
      check(other);
      open_.emplace(next_++, other);
    } catch (const std::invalid_argument&) {
      REQUIRE((at > 0 && (!s.states.contains(at) || at < oldest(s))));
    }
  }

  void truncate(Sequence& s) {
    const Pos length = random_.one_in(3) ? random_.between<Pos>(0, static_cast<Pos>(s.tokens.size())) : a_state_of(s);
    try {
      cache_.truncate(s.seq, length);
      REQUIRE((length == 0 || s.states.contains(length)));
      s.tokens.resize(static_cast<std::size_t>(length));
      std::erase_if(s.states, [&](Pos at) { return at > length; });
    } catch (const std::invalid_argument&) {
      REQUIRE((length > 0 && (!s.states.contains(length) || length < oldest(s))));
    }
    check(s);
  }

  /// The states that must be there after a commit: that of the length less the reserve, and those above it; maybe more.
  void keep(Sequence& s) {
    const std::span<const Pos> held = cache_.policy().state_lengths(s.seq);
    const Pos settled = std::max(static_cast<Pos>(s.tokens.size()) - model_.layers.rewind(), 0);
    const auto newest = s.states.upper_bound(settled);
    for (auto at = newest == s.states.begin() ? newest : std::prev(newest); at != s.states.end(); ++at) {
      REQUIRE(std::ranges::binary_search(held, *at));
    }
    REQUIRE(std::ranges::includes(s.states, held));
    s.states = {held.begin(), held.end()};
  }
  /// The least length to which groups with rows can be cut, but for 0.
  Pos oldest(const Sequence& s) const {
    Pos from = 0;
    for (Index g = 0; g < cache_.policy().groups(); ++g) {
      from = std::max(from, cache_.policy().retained_from(s.seq, g));
    }
    return from;
  }
  Pos a_state_of(const Sequence& s) {
    if (s.states.empty()) {
      return 0;
    }
    auto at = s.states.begin();
    std::advance(at, random_.between<std::ptrdiff_t>(0, std::ssize(s.states) - 1));
    return *at;
  }

  static float row(const std::vector<Token>& tokens, Pos position, Index layer) {
    return static_cast<float>(digest(std::span(tokens).first(static_cast<std::size_t>(position) + 1), layer) >> 12);
  }
  static std::byte expected(const std::vector<Token>& tokens, Pos length, Index layer) {
    return static_cast<std::byte>(digest(std::span(tokens).first(static_cast<std::size_t>(length)), layer) >> 20 & 255);
  }

  void check(const Sequence& s) {
    REQUIRE(cache_.length(s.seq) == std::ssize(s.tokens));
    for (const Index layer : model_.recurrent) {
      for (const Pos at : s.states) {
        const auto state = cache_.state(layer, s.seq, at);
        REQUIRE(std::ranges::count(state, expected(s.tokens, at, layer)) == std::ssize(state));
      }
      REQUIRE(cache_.state(layer, s.seq).empty() == s.tokens.empty());
    }
    if (!s.tokens.empty()) {
      const auto last = static_cast<Pos>(s.tokens.size() - 1);
      std::vector<float> k(2), v(2);
      cache_.gather(model_.with_rows[1], s.seq, {last, last + 1}, {k.data(), 1, 2}, {v.data(), 1, 2});
      REQUIRE(k[1] == row(s.tokens, last, model_.with_rows[1]));
    }
  }

  const Model& model_;
  Cache cache_;
  Random& random_;
  std::map<int, Sequence> open_;
  std::vector<std::vector<Token>> seen_;  // tokens of closed sequences
  int next_ = 0;
  int found_ = 0;
  int refused_ = 0;
};

}  // namespace

TEMPLATE_TEST_CASE("Recurrent states are those of the tokens before them", "[states][model]", kvc_test::Reserve,
                   kvc_test::GrowFirst, kvc_test::Paged4, kvc_test::Paged7, kvc_test::Prefix4, kvc_test::Prefix7,
                   kvc_test::PrefixMru, kvc_test::Colliding4) {
  const std::uint64_t seed = kvc_test::seed_or(GENERATE(std::uint64_t{3}, kvc_test::any_seed));
  INFO("KVC_TEST_SEED=" << seed);
  Random random(seed);
  const int operations = kvc_test::operations_or(20'000) / 2;
  int found = 0;    // openings that found a prefix
  int refused = 0;  // operations without room
  for (const bool has_window : {false, true}) {
    CAPTURE(has_window);
    const Model model(random, has_window);
    auto config = TestType::config(random.between<Pos>(100, 180), 8, 60);
    if constexpr (kvc::ConfiguresStates<typename TestType::Policy>) {
      config.states = 40;
    }
    Run<typename TestType::Policy> run(model, config, random);
    run(operations);
    found += run.found();
    refused += run.refused();
  }
  if (seed == 3) {  // with others, too, but for some of them
    CHECK((!MatchesPrefixes<typename TestType::Policy> || found > operations / 1000));
    CHECK(refused > operations / 1000);
  }
}
