// PrefixShared beside the policy contract: pins, quotas, events, questions of a scheduler, clear. And the
// ways in which prefix caches of others have gone wrong, each by its name.
#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "kvc/policy/eviction/cost_aware.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/ordering.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "policies.hpp"
#include "random_source.hpp"
#include "serve.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;

OpenOptions tenant(const std::string& name) { return {.salt = Salt(SaltKind::tenant, name)}; }

using Plain = PrefixShared<Lru, kvc_test::SeededHash>;
}  // namespace

// --- questions of a scheduler -------------------------------------------------------------------

TEST_CASE("match_length tells what open would find, and changes nothing", "[prefix][scheduling]") {
  Plain policy({.blocks = 16, .block_tokens = 4});
  REQUIRE(policy.match_length(counting(0, 12)) == 0);
  serve_and_close(policy, counting(0, 12));
  const Stats before = policy.stats();
  for (const int size : {0, 1, 4, 5, 7, 8, 9, 12, 13, 40}) {
    CAPTURE(size);
    const Pos expected = policy.match_length(counting(0, size));
    REQUIRE(expected == std::max(0, std::min(12, size - 1)));
    REQUIRE(policy.match_length(counting(0, size), tenant("other")) == 0);
    const Opened opened = *policy.try_open(counting(0, size));
    REQUIRE(opened.cached == expected);
    policy.close(opened.seq);
  }
  REQUIRE(policy.stats().blocks_cached == before.blocks_cached);
}

TEST_CASE("A prompt is admitted if it fits beside the watermark", "[prefix][scheduling]") {
  Plain policy({.blocks = 8, .block_tokens = 4, .watermark = 2});
  REQUIRE(policy.admission(counting(0, 24)) == Admission::now);  // six of eight blocks
  REQUIRE(policy.admission(counting(0, 25)) == Admission::never);
  REQUIRE(policy.admission(counting(0, 20), 4) == Admission::now);
  REQUIRE(policy.admission(counting(0, 20), 5) == Admission::never);
  const Opened running = serve(policy, counting(0, 16));  // four blocks are referenced
  REQUIRE(policy.can_admit(counting(100, 8)));
  REQUIRE(policy.admission(counting(100, 9)) == Admission::later);
  REQUIRE(policy.can_admit(counting(0, 24)));  // four of its six blocks are there
  REQUIRE_FALSE(policy.can_admit(counting(0, 25)));
  policy.close(running.seq);
  // Cached blocks are room for others, but not for a prompt that shares them.
  REQUIRE(policy.can_admit(counting(100, 24)));
  REQUIRE(policy.can_admit(counting(0, 24)));
  REQUIRE_THROWS_WITH(policy.admission(counting(0, 4), -1), contains("reserve is -1"));
}

TEST_CASE("A prompt that fills the pool is admitted when nothing else is referenced, whatever is cached",
          "[prefix][scheduling]") {
  Plain policy({.blocks = 4, .block_tokens = 4});
  REQUIRE(policy.can_admit(counting(0, 16)));
  serve_and_close(policy, counting(0, 16));
  REQUIRE(policy.can_admit(counting(0, 16)));  // the last block matches partly, and there is no room for a copy
  serve_and_close(policy, counting(0, 16));
  const Opened open = serve(policy, counting(0, 12));
  REQUIRE(policy.admission(counting(0, 16)) == Admission::now);
  REQUIRE(policy.admission(counting(0, 11), 5) == Admission::later);  // its third block must be copied
  REQUIRE(policy.admission(counting(50, 8)) == Admission::later);
  policy.close(open.seq);
}

TEST_CASE("What is admitted fits", "[prefix][scheduling][model]") {
  const std::uint64_t seed = GENERATE(std::uint64_t{1}, kvc_test::any_seed);
  const std::uint64_t used = kvc_test::seed_or(seed);
  INFO("KVC_TEST_SEED=" << used);
  kvc_test::Random random(used);
  Plain policy({.blocks = 12, .block_tokens = 4});
  std::vector<SeqId> open;
  int admitted = 0;
  int later = 0;
  for (int i = 0; i < 4000; ++i) {
    Tokens prompt = counting(0, random.between(1, 40));
    for (Token& token : prompt) {
      token = random.one_in(10) ? 1 : 0;
    }
    const Admission admission = policy.admission(prompt);
    const Opened opened = *policy.try_open(prompt);
    const auto rest = std::span(std::as_const(prompt)).subspan(static_cast<std::size_t>(opened.cached));
    const bool fits = policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest).has_value();
    CAPTURE(i, prompt.size(), opened.cached);
    REQUIRE((admission == Admission::now) == fits);  // without a watermark
    admitted += admission == Admission::now ? 1 : 0;
    later += admission == Admission::later ? 1 : 0;
    if (fits) {
      policy.commit(opened.seq);
      open.push_back(opened.seq);
    } else {
      policy.close(opened.seq);
    }
    while (!open.empty() && random.one_in(2)) {
      policy.close(open.back());
      open.pop_back();
    }
  }
  REQUIRE(admitted > 1000);
  REQUIRE(later > 100);
}

TEST_CASE("Requests are ordered by arrival, or by what is cached of them", "[prefix][scheduling]") {
  struct Request {
    double arrival;
    Tokens prompt;
  };
  Plain policy({.blocks = 32, .block_tokens = 4});
  serve_and_close(policy, counting(0, 16));
  const std::vector<Request> requests = {
      {3.0, counting(50, 8)}, {1.0, counting(0, 9)}, {2.0, counting(0, 20)}, {1.0, counting(70, 8)}};
  REQUIRE(order_of_arrival(requests, &Request::arrival) == std::vector<std::size_t>{1, 3, 2, 0});
  const auto prompt_of = [](const Request& r) { return std::span<const Token>(r.prompt); };
  REQUIRE(longest_prefix_first(policy, requests, prompt_of) == std::vector<std::size_t>{2, 1, 0, 3});
  REQUIRE(longest_prefix_first(policy, std::vector<Request>{}, prompt_of).empty());
  REQUIRE(longest_prefix_first(policy, requests, &Request::prompt) == std::vector<std::size_t>{2, 1, 0, 3});
  const auto strangers = [](const Request&) { return tenant("other"); };
  REQUIRE(longest_prefix_first(policy, requests, prompt_of, strangers) == std::vector<std::size_t>{0, 1, 2, 3});
}

// --- pins ---------------------------------------------------------------------------------------

TEST_CASE("A pinned prefix is not evicted", "[prefix][pin]") {
  Plain policy({.blocks = 8, .block_tokens = 4});
  serve_and_close(policy, counting(0, 10));
  REQUIRE_FALSE(policy.try_pin(counting(50, 8)));  // nothing of it is cached
  REQUIRE_FALSE(policy.try_pin(counting(0, 3)));   // not one full block
  REQUIRE_FALSE(policy.try_pin(counting(0, 8), Salt(SaltKind::tenant, "other")));
  const auto pinned = policy.try_pin(counting(0, 10));
  REQUIRE(pinned);
  REQUIRE(pinned->tokens == 8);
  REQUIRE(policy.stats().pins == 1);
  REQUIRE(policy.stats().sequences == 0);
  REQUIRE(policy.stats().blocks_referenced == 2);
  for (Token first = 100; first < 200; first += 24) {
    serve_and_close(policy, counting(first, 24));  // all that is left
  }
  REQUIRE(policy.match_length(counting(0, 10)) == 8);
  policy.unpin(pinned->pin);
  policy.verify();
  serve_and_close(policy, counting(300, 32));
  REQUIRE(policy.match_length(counting(0, 10)) == 0);
  REQUIRE(policy.stats().pins == 0);
}

TEST_CASE("Unbalanced pins: each is taken back once, and a prefix stays until the last", "[prefix][pin][bug]") {
  Plain policy({.blocks = 4, .block_tokens = 4});
  serve_and_close(policy, counting(0, 8));
  const PinId a = policy.try_pin(counting(0, 8))->pin;
  const PinId b = policy.try_pin(counting(0, 8))->pin;
  policy.unpin(a);
  REQUIRE_THROWS_WITH(policy.unpin(a), contains("a pin that is there"));
  REQUIRE_THROWS_AS(policy.unpin(PinId{}), std::invalid_argument);
  serve_and_close(policy, counting(100, 8));
  REQUIRE(policy.match_length(counting(0, 8)) == 7);
  policy.unpin(b);
  policy.verify();
  const SeqId seq = policy.try_open(counting(0, 8))->seq;
  const PinId c = policy.try_pin(counting(0, 8))->pin;
  static_assert(!std::is_constructible_v<PinId, SeqId> && !std::is_convertible_v<PinId, SeqId>);
  policy.unpin(c);
  policy.close(seq);
  policy.verify();
}

TEST_CASE("Eviction when all is pinned: the answer is no room, at once", "[prefix][pin][eviction][bug]") {
  Plain policy({.blocks = 4, .block_tokens = 4});
  serve_and_close(policy, counting(0, 16));
  const PinId pin = policy.try_pin(counting(0, 16))->pin;
  const Opened opened = *policy.try_open(counting(50, 4));
  REQUIRE_FALSE(policy.try_extend(opened.seq, 4, counting(50, 4)));
  REQUIRE(policy.admission(counting(50, 4)) == Admission::later);
  policy.verify();
  policy.unpin(pin);
  REQUIRE(policy.try_extend(opened.seq, 4, counting(50, 4)));
  policy.commit(opened.seq);
  policy.close(opened.seq);
  policy.verify();
}

// --- quota --------------------------------------------------------------------------------------

TEST_CASE("A tenant keeps no more cached blocks than its quota, and loses its own oldest", "[prefix][quota]") {
  Plain policy({.blocks = 32, .block_tokens = 4, .tenant_quota = 3});
  serve_and_close(policy, counting(0, 8), tenant("a"));
  serve_and_close(policy, counting(0, 8), tenant("b"));
  REQUIRE(policy.stats().blocks_cached == 4);
  serve_and_close(policy, counting(100, 8), tenant("a"));  // one too many: the end of its older prefix goes
  REQUIRE(policy.stats().blocks_cached == 5);
  REQUIRE(policy.match_length(counting(0, 9), tenant("a")) == 4);
  REQUIRE(policy.match_length(counting(100, 9), tenant("a")) == 8);
  REQUIRE(policy.match_length(counting(0, 9), tenant("b")) == 8);
  // Referenced blocks do not count until they are released.
  const Opened big = serve(policy, counting(200, 24), tenant("b"));
  REQUIRE(policy.match_length(counting(0, 9), tenant("b")) == 8);
  policy.close(big.seq);
  policy.verify();
  REQUIRE(policy.match_length(counting(200, 25), tenant("b")) == 12);
  REQUIRE(policy.match_length(counting(0, 9), tenant("b")) == 0);
}

TEST_CASE("The quota is a tenant's, whatever else its salts hold", "[prefix][quota][salt]") {
  Plain policy({.blocks = 32, .block_tokens = 4, .tenant_quota = 3});
  for (const char* adapter : {"x", "y", "z"}) {
    OpenOptions options = tenant("a");
    options.salt.add(SaltKind::lora, adapter);
    serve_and_close(policy, counting(0, 8), options);
  }
  REQUIRE(policy.stats().blocks_cached == 3);
  REQUIRE(Salt(SaltKind::tenant, "a").add(SaltKind::lora, "x").tenant() == Salt(SaltKind::tenant, "a").tenant());
  REQUIRE(Salt(SaltKind::lora, "a").tenant().empty());
  for (int i = 0; i < 100; ++i) {  // tenants come and go
    serve_and_close(policy, counting(0, 8), tenant(std::to_string(i)));
  }
}

// --- events -------------------------------------------------------------------------------------

namespace {
/// The state of a router: enough to say how much of a prompt the cache holds.
class Mirror {
 public:
  void apply(const EventRing::Record& event) {
    REQUIRE(event.number == next_++);
    switch (event.kind) {
      case EventRing::Record::Kind::stored:
        REQUIRE(!key_of_.contains(event.block));
        REQUIRE((event.parent == no_block || key_of_.contains(event.parent)));
        key_of_[event.block] = {event.parent == no_block ? event.salt : "", event.parent, event.tokens};
        REQUIRE(blocks_.emplace(key_of_[event.block], event.block).second);
        break;
      case EventRing::Record::Kind::removed:
        REQUIRE(key_of_.contains(event.block));
        for (const auto& [block, key] : key_of_) {
          REQUIRE(std::get<1>(key) != event.block);  // children go before their parents
        }
        blocks_.erase(key_of_[event.block]);
        key_of_.erase(event.block);
        break;
      case EventRing::Record::Kind::cleared:
        blocks_.clear();
        key_of_.clear();
        break;
    }
  }
  [[nodiscard]] Pos full_blocks(const Tokens& prompt, const std::string& salt, Pos block_tokens) const {
    BlockId parent = no_block;
    Pos found = 0;
    for (std::size_t i = 0; i + static_cast<std::size_t>(block_tokens) < prompt.size();
         i += static_cast<std::size_t>(block_tokens)) {
      const auto first = prompt.begin() + static_cast<std::ptrdiff_t>(i);
      const auto known = blocks_.find({i == 0 ? salt : "", parent, Tokens(first, first + block_tokens)});
      if (known == blocks_.end()) {
        break;
      }
      parent = known->second;
      ++found;
    }
    return found;
  }
  [[nodiscard]] Index size() const { return std::ssize(blocks_); }

 private:
  using Key = std::tuple<std::string, BlockId, Tokens>;
  std::map<Key, BlockId> blocks_;
  std::map<BlockId, Key> key_of_;
  std::uint64_t next_ = 0;
};
}  // namespace

TEST_CASE("A router that hears all events knows the index", "[prefix][events][model]") {
  const std::uint64_t seed = GENERATE(std::uint64_t{1}, kvc_test::any_seed);
  const std::uint64_t used = kvc_test::seed_or(seed);
  INFO("KVC_TEST_SEED=" << used);
  kvc_test::Random random(used);
  PrefixShared<ReuseHazard, kvc_test::SeededHash, EventRing> policy({.blocks = 24, .block_tokens = 2});
  Mirror mirror;
  std::vector<SeqId> open;
  const auto random_prompt = [&] {
    Tokens prompt(random.between<std::size_t>(1, 16));
    for (Token& token : prompt) {
      token = random.one_in(5) ? 1 : 0;
    }
    return prompt;
  };
  for (int i = 0; i < std::max(1000, kvc_test::cases_or(3000)); ++i) {
    const std::string salt = random.one_in(3) ? "other" : "";
    const OpenOptions options = salt.empty() ? OpenOptions{} : tenant(salt);
    const Tokens prompt = random_prompt();
    const Opened opened = *policy.try_open(prompt, options);
    const auto rest = std::span(prompt).subspan(static_cast<std::size_t>(opened.cached));
    if (policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest)) {
      policy.commit(opened.seq);
    }
    open.push_back(opened.seq);
    while (open.size() > 4 || (!open.empty() && random.one_in(2))) {
      policy.close(open.front());
      open.erase(open.begin());
    }
    if (random.one_in(200)) {
      policy.clear();
      policy.verify();
    }
    while (const auto event = policy.events().poll()) {
      mirror.apply(*event);
    }
    if (random.one_in(50)) {  // a router that begins now knows the same
      Index cached = 0;
      Mirror late;
      policy.for_each_cached([&](const BlockStored& stored) {
        late.apply({EventRing::Record::Kind::stored, static_cast<std::uint64_t>(cached++), stored.block, stored.parent,
                    std::string(stored.salt), Tokens(stored.tokens.begin(), stored.tokens.end())});
      });
      REQUIRE(late.size() == mirror.size());
      REQUIRE(late.full_blocks(prompt, options.salt.bytes(), 2) == policy.match_length(prompt, options) / 2);
    }
    for (int k = 0; k < 3; ++k) {
      const Tokens question = random_prompt();
      REQUIRE(mirror.full_blocks(question, options.salt.bytes(), 2) == policy.match_length(question, options) / 2);
    }
  }
  REQUIRE(policy.events().lost() == 0);
}

TEST_CASE("A ring that is full loses the oldest events, and shows it by a gap", "[prefix][events]") {
  PrefixShared<Lru, kvc_test::SeededHash, EventRing> policy({.blocks = 8, .block_tokens = 1});
  policy.events().resize(3);
  serve_and_close(policy, counting(0, 5));
  REQUIRE(policy.events().lost() == 2);
  REQUIRE(policy.events().size() == 3);
  const auto event = policy.events().poll();
  REQUIRE(event->number == 2);
  REQUIRE(event->tokens == Tokens{2});
  REQUIRE_THROWS_WITH(policy.events().resize(0), contains("events is 0"));
}

TEST_CASE("A callback hears what happens, in order", "[prefix][events]") {
  PrefixShared<Lru, kvc_test::SeededHash, EventCallback> policy({.blocks = 2, .block_tokens = 2});
  std::vector<std::string> heard;
  policy.events().call([&](const EventCallback::Event& event) {
    if (const auto* stored = std::get_if<BlockStored>(&event)) {
      heard.push_back("stored " + std::to_string(stored->number) + " of " + std::to_string(stored->tokens.size()));
    } else if (const auto* removed = std::get_if<BlockRemoved>(&event)) {
      heard.push_back("removed " + std::to_string(removed->number));
    } else {
      heard.push_back("cleared " + std::to_string(std::get<AllBlocksCleared>(event).number));
    }
  });
  serve_and_close(policy, counting(0, 4));
  serve_and_close(policy, counting(10, 2));
  policy.clear();
  REQUIRE(heard ==
          std::vector<std::string>{"stored 0 of 2", "stored 1 of 2", "removed 2", "stored 3 of 2", "cleared 4"});
}

// --- clear --------------------------------------------------------------------------------------

TEST_CASE("After clear nothing that was there is matched, and open sequences go on", "[prefix][clear]") {
  Plain policy({.blocks = 16, .block_tokens = 4});
  serve_and_close(policy, counting(0, 12));
  const Opened open = serve(policy, counting(0, 13));
  const Opened unfinished = *policy.try_open(counting(50, 4));
  REQUIRE(policy.try_extend(unfinished.seq, 4, counting(50, 4)));
  const Opened empty = *policy.try_open();
  const PinId pin = policy.try_pin(counting(0, 12))->pin;
  policy.clear();
  policy.verify();
  REQUIRE(policy.match_length(counting(0, 13)) == 0);
  REQUIRE(policy.length(open.seq) == 13);
  REQUIRE(policy.stats().blocks_cached == 0);
  // Rows computed on top of forgotten rows, and rows that were uncommitted, are not matchable either.
  REQUIRE(policy.try_extend(open.seq, 7, counting(13, 7)));
  policy.commit(open.seq);
  policy.commit(unfinished.seq);
  REQUIRE(policy.try_extend(unfinished.seq, 4, counting(54, 4)));
  policy.commit(unfinished.seq);
  policy.verify();
  REQUIRE(policy.match_length(counting(0, 21)) == 0);
  REQUIRE(policy.match_length(counting(50, 9)) == 0);
  // A sequence that was empty then computes all of its rows now.
  REQUIRE(policy.try_extend(empty.seq, 4, counting(90, 4)));
  policy.commit(empty.seq);
  REQUIRE(policy.match_length(counting(90, 5)) == 4);
  policy.unpin(pin);
  policy.close(open.seq);
  policy.close(unfinished.seq);
  policy.close(empty.seq);
  policy.verify();
  REQUIRE(policy.stats().blocks_cached == 1);
  REQUIRE(serve_and_close(policy, counting(0, 12)) == 0);
  REQUIRE(serve_and_close(policy, counting(0, 12)) == 11);
}

// --- the ways in which others have gone wrong ---------------------------------------------------

TEST_CASE("Abort mid-extend: every block comes back", "[prefix][bug]") {
  Plain policy({.blocks = 8, .block_tokens = 4});
  serve_and_close(policy, counting(0, 10));
  const Opened opened = *policy.try_open(counting(0, 20));
  REQUIRE(policy.try_extend(opened.seq, 10, counting(10, 10)));
  policy.close(opened.seq);  // without commit or rollback
  policy.verify();
  REQUIRE(policy.stats().blocks_referenced == 0);
  REQUIRE(policy.match_length(counting(0, 20)) == 8);  // nothing that was not committed
}

TEST_CASE("Double close: the second is an error, and changes nothing", "[prefix][bug]") {
  Plain policy({.blocks = 8, .block_tokens = 4});
  const Opened a = serve(policy, counting(0, 8));
  policy.close(a.seq);
  const Opened b = serve(policy, counting(0, 8));  // takes the same slot
  REQUIRE_THROWS_AS(policy.close(a.seq), std::invalid_argument);
  REQUIRE(policy.contains(b.seq));
  policy.verify();
}

TEST_CASE("Eviction of the head of a chain: its end goes first, and nothing is stranded", "[prefix][eviction][bug]") {
  PrefixShared<kvc_test::Mru, kvc_test::SeededHash> policy({.blocks = 4, .block_tokens = 2});
  serve_and_close(policy, counting(0, 6));  // Mru names the head, which was released last
  serve_and_close(policy, counting(50, 4));
  REQUIRE(policy.match_length(counting(0, 7)) == 4);
  serve_and_close(policy, counting(60, 6));
  policy.verify();
}

TEST_CASE("A long chain under one victim is given up from its end", "[prefix][eviction]") {
  constexpr int length = 1 << 12;
  PrefixShared<kvc_test::Mru, kvc_test::SeededHash> policy({.blocks = length, .block_tokens = 1});
  serve_and_close(policy, counting(0, length));
  const Opened opened = *policy.try_open();
  REQUIRE(policy.try_extend(opened.seq, length - 1));
  policy.commit(opened.seq);
  policy.verify();
  REQUIRE(policy.match_length(counting(0, length)) == 1);
}

TEST_CASE("Claim while evicting: what a sequence has matched is not evicted for its own extension", "[prefix][bug]") {
  Plain policy({.blocks = 4, .block_tokens = 4});
  serve_and_close(policy, counting(0, 8));
  serve_and_close(policy, counting(50, 8));
  const Opened opened = *policy.try_open(counting(0, 16));
  REQUIRE(opened.cached == 8);
  const std::array<BlockId, 2> claimed = {policy.block_table(opened.seq)[0], policy.block_table(opened.seq)[1]};
  REQUIRE(policy.try_extend(opened.seq, 8, counting(8, 8)));
  for (const BlockId taken : policy.block_table(opened.seq).subspan(2)) {
    REQUIRE(taken != claimed[0]);
    REQUIRE(taken != claimed[1]);
  }
  policy.commit(opened.seq);
  policy.verify();
}

TEST_CASE("Salt aliasing: an adapter that is called like a tenant, or a token like a salt, shares nothing",
          "[prefix][salt][bug]") {
  PrefixShared<Lru, kvc_test::ConstantHash> policy({.blocks = 64, .block_tokens = 1});  // every hash collides
  const std::vector<Salt> salts = {Salt{},
                                   Salt(SaltKind::tenant, "a"),
                                   Salt(SaltKind::lora, "a"),
                                   Salt(SaltKind::multimodal, "a"),
                                   Salt(SaltKind::custom, "a"),
                                   Salt(SaltKind::tenant, "a").add(SaltKind::lora, "a"),
                                   Salt(SaltKind::lora, "a").add(SaltKind::tenant, "a"),
                                   Salt(SaltKind::tenant, ""),
                                   Salt(SaltKind::tenant, std::string("a\0", 2))};
  for (const Salt& salt : salts) {
    REQUIRE(serve_and_close(policy, {1, 2, 3}, {.salt = salt}) == 0);
  }
  for (const Salt& salt : salts) {  // all are there, side by side
    REQUIRE(policy.match_length(Tokens{1, 2, 3, 4}, {.salt = salt}) == 3);
  }
}

TEST_CASE("An eviction policy is configured through the cache that it serves", "[prefix][eviction]") {
  using Priced = PrefixShared<CostAware>;
  const Priced policy({.blocks = 4, .block_tokens = 4, .eviction = {.slope = 2}});
  REQUIRE(policy.config().eviction.slope == 2);
  REQUIRE_THROWS_WITH(Priced({.blocks = 4, .eviction = {.slope = -1}}), contains("config.eviction.slope is -1"));
  using Learning = PrefixShared<ReuseHazard>;
  REQUIRE_THROWS_WITH(Learning({.blocks = 4, .eviction = {.trust = 2}}), contains("config.eviction.trust is 2"));
  REQUIRE_THROWS_AS(Learning({.blocks = 4, .eviction = {.largest_factor = 0.5}}), std::invalid_argument);
  REQUIRE_THROWS_AS(Learning({.blocks = 4, .eviction = {.prior_prompts = 0}}), std::invalid_argument);
  REQUIRE_THROWS_AS(Learning({.blocks = 4, .eviction = {.smoothing = -1}}), std::invalid_argument);
}

TEST_CASE("The parameters of an eviction policy decide what is evicted", "[prefix][eviction]") {
  // A prefix of three blocks, used once, and one of one block, used twice. Only a steep slope makes the long one dear.
  const auto evicted_first = [](double slope) {
    PrefixShared<CostAware> policy({.blocks = 4, .block_tokens = 1, .eviction = {.slope = slope}});
    serve_and_close(policy, counting(0, 3));
    serve_and_close(policy, counting(50, 1));
    policy.close(policy.try_open(counting(50, 2))->seq);
    serve_and_close(policy, counting(90, 1));  // needs one of the four blocks
    return policy.match_length(counting(50, 2)) == 0 ? "short" : "long";
  };
  REQUIRE(evicted_first(0) == std::string("long"));
  REQUIRE(evicted_first(10) == std::string("short"));
}
