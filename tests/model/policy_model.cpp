// Random operations on each policy beside a plain model of it, with allocations that fail now and then.
#include "failing_allocation.hpp"
#include "policies.hpp"
#include "random_source.hpp"
#include "shadow.hpp"

namespace {
using namespace kvc_test;

/// Few distinct tokens, so that prompts often share prefixes.
std::vector<Token> random_tokens(Random& random, int most) {
  std::vector<Token> tokens(random.between<std::size_t>(0, static_cast<std::size_t>(most)));
  for (Token& token : tokens) {
    token = random.one_in(8) ? random.between<Token>(-3, 3) : 1;
  }
  return tokens;
}

void run(Random& random, Shadow& shadow, int operations) {
  const auto pick = [&] {
    auto it = shadow.open.begin();
    std::advance(it, random.between<std::ptrdiff_t>(0, std::ssize(shadow.open) - 1));
    return it->first;
  };
  int refused = 0;
  for (int i = 0; i < operations; ++i) {
    INFO("operation " << i);
    auto before = counts(shadow.policy.stats());
    const int what = shadow.open.empty() ? 0 : random.between(0, 12);
    const bool fail = random.one_in(16);
    const int id = shadow.open.empty() ? -1 : pick();
    const auto attempt = [&](auto operation) {  // true if it took place
      if (!fail) {
        return operation();
      }
      const FailAllocation armed(random.between(0, 3));
      try {
        return operation();
      } catch (const std::bad_alloc&) {
        return false;
      }
    };
    bool done = true;
    bool extending = id >= 0 && shadow.open.at(id).second.extending;
    if (what <= 1) {
      // The model allocates too: only the policy's own failure is wanted, so arm it inside of the model's call.
      const std::vector<Token> prompt = random_tokens(random, 40);
      const std::string salt = random.one_in(3) ? "other" : "";
      if (fail) {
        done = attempt([&] {
          kvc::OpenOptions options;
          const auto opened = shadow.policy.try_open(prompt, options);
          if (opened) {
            shadow.policy.close(opened->seq);
          }
          return false;
        });
      } else {
        done = shadow.open_sequence(prompt, salt).has_value();
      }
    } else if (what <= 6 && !extending) {
      const std::vector<Token> tokens = random_tokens(random, random.one_in(6) ? 60 : 9);
      if (fail) {
        done = attempt([&] {
          const SeqId seq = shadow.open.at(id).first;
          if (const auto extension = shadow.policy.try_extend(seq, static_cast<Pos>(tokens.size()), tokens)) {
            shadow.carry_out(extension->copy);
            shadow.policy.rollback(seq);
          }
          return false;
        });
      } else {
        done = shadow.extend(id, tokens, !random.one_in(20));
      }
    } else if (what <= 9 && extending) {
      random.one_in(4) ? shadow.rollback(id) : shadow.commit(id);
      done = true;
    } else if (what == 10) {
      const Pos at = random.between<Pos>(0, static_cast<Pos>(shadow.open.at(id).second.rows.size()));
      done = shadow.open.size() < 12 && shadow.fork(id, at).has_value();
    } else if (what == 11 && !extending) {
      shadow.truncate(id, random.between<Pos>(0, static_cast<Pos>(shadow.open.at(id).second.rows.size())));
    } else if (what == 12 || shadow.open.size() >= 12) {
      shadow.close(id);
    }
    if (!done && !fail) {
      ++refused;
    }
    if (!done) {
      auto after = counts(shadow.policy.stats());
      if (fail) {  // an extension that was taken back may have made room by evicting
        std::get<0>(after) += std::get<1>(after);
        std::get<0>(before) += std::get<1>(before);
        std::get<1>(after) = std::get<1>(before) = 0;
      }
      REQUIRE(before == after);
    }
    if (i % 16 == 0) {
      shadow.check_all();
    } else if (id >= 0 && shadow.open.contains(id)) {
      shadow.check(id);
    }
  }
  INFO("an operation that is never refused for lack of room tests nothing of it");
  REQUIRE(refused > operations / 200);
  while (!shadow.open.empty()) {
    shadow.close(pick());
  }
  shadow.check_all();
  const kvc::Stats stats = shadow.policy.stats();
  REQUIRE(stats.blocks_referenced == 0);
}
}  // namespace

TEMPLATE_TEST_CASE("A policy does what the model does", "[policy][model]", KVC_ALL_POLICIES) {
  const std::uint64_t seed = GENERATE(std::uint64_t{1}, std::uint64_t{2}, kvc_test::any_seed);
  const std::uint64_t used = seed_or(seed);
  INFO("KVC_TEST_SEED=" << used);
  Random random(used);
  Shadow shadow(make_policy<TestType>(128, 12, 60));
  run(random, shadow, 40'000);
}
