// Random operations on a policy beside a plain model of it, with allocations that fail now and then.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "failing_allocation.hpp"
#include "oracle_model.hpp"
#include "random_source.hpp"

namespace kvc_test {

/// Few distinct tokens, so that prompts often share prefixes.
inline std::vector<Token> random_tokens(Random& random, int most) {
  std::vector<Token> tokens(random.between<std::size_t>(0, static_cast<std::size_t>(most)));
  for (Token& token : tokens) {
    token = random.one_in(8) ? random.between<Token>(-3, 3) : 1;
  }
  return tokens;
}

inline void run(Random& random, OracleModel& model, int operations) {
  const auto pick = [&] {
    auto it = model.open.begin();
    std::advance(it, random.between<std::ptrdiff_t>(0, std::ssize(model.open) - 1));
    return it->first;
  };
  struct Pin {
    kvc::PinId id;
    std::vector<Token> prefix;
    kvc::OpenOptions options;
  };
  std::vector<Pin> pins;  // at most three, of a policy that has them
  int refused = 0;
  for (int i = 0; i < operations; ++i) {
    INFO("operation " << i);
    auto before = counts(model.policy.stats());
    if (random.one_in(64)) {
      if (pins.size() == 3 || (!pins.empty() && random.one_in(2))) {
        model.policy.unpin(pins.front().id);
        pins.erase(pins.begin());
      } else if (!model.open.empty()) {
        const OracleModel::Sequence& s = model.open.at(pick()).second;
        Pin pin{{}, s.tokens, model.options(s.salt)};
        pin.prefix.resize(std::min<std::size_t>(pin.prefix.size(), 16));
        if (const auto pinned = model.policy.try_pin(pin.prefix, pin.options.salt)) {
          pin.id = pinned->pin;
          pin.prefix.resize(static_cast<std::size_t>(pinned->tokens));
          pins.push_back(pin);
        }
      }
      before = counts(model.policy.stats());
    } else if (random.one_in(1000)) {
      model.policy.clear();
      for (Pin& pin : pins) {
        pin.prefix.clear();  // holds on to what nobody finds
      }
      before = counts(model.policy.stats());
    }
    for (Pin& pin : pins) {
      pin.prefix.push_back(0);  // a token that a match leaves over
      REQUIRE(model.policy.match_length(pin.prefix, pin.options) >= static_cast<Pos>(pin.prefix.size()) - 1);
      pin.prefix.pop_back();
    }
    const int what = model.open.empty() ? 0 : random.between(0, 12);
    const bool fail = random.one_in(16);
    const int id = model.open.empty() ? -1 : pick();
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
    bool extending = id >= 0 && model.open.at(id).second.extending;
    if (what <= 1) {
      // The model allocates too: only the policy's own failure is wanted, so arm it inside of the model's call.
      const std::vector<Token> prompt = random_tokens(random, 40);
      const std::string salt = random.one_in(3) ? "other" : "";
      if (fail) {
        done = attempt([&] {
          kvc::OpenOptions options;
          const auto opened = model.policy.try_open(prompt, options);
          if (opened) {
            model.policy.close(opened->seq);
          }
          return false;
        });
      } else {
        done = model.open_sequence(prompt, salt).has_value();
      }
    } else if (what <= 6 && !extending) {
      const std::vector<Token> tokens = random_tokens(random, random.one_in(6) ? 60 : 9);
      if (fail) {
        done = attempt([&] {
          const SeqId seq = model.open.at(id).first;
          if (const auto extension = model.policy.try_extend(seq, static_cast<Pos>(tokens.size()), tokens)) {
            model.carry_out(extension->copies);
            model.policy.rollback(seq);
          }
          return false;
        });
      } else {
        done = model.extend(id, tokens, !random.one_in(20));
      }
    } else if (what <= 9 && extending) {
      random.one_in(4) ? model.rollback(id) : model.commit(id);
      done = true;
    } else if (what == 10) {
      const Pos at = random.between<Pos>(0, static_cast<Pos>(model.open.at(id).second.rows.size()));
      done = model.open.size() < 12 && model.fork(id, at).has_value();
    } else if (what == 11 && !extending) {
      model.truncate(id, random.between<Pos>(0, static_cast<Pos>(model.open.at(id).second.rows.size())));
    } else if (what == 12 || model.open.size() >= 12) {
      model.close(id);
    }
    if (!done && !fail) {
      ++refused;
    }
    if (!done) {
      auto after = counts(model.policy.stats());
      if (fail) {  // an extension that was taken back may have made room by evicting
        std::get<0>(after) += std::get<1>(after);
        std::get<0>(before) += std::get<1>(before);
        std::get<1>(after) = std::get<1>(before) = 0;
      }
      REQUIRE(before == after);
    }
    if (i % 16 == 0) {
      model.check_all();
    } else if (id >= 0 && model.open.contains(id)) {
      model.check(id);
    }
  }
  INFO("an operation that is never refused for lack of room tests nothing of it");
  REQUIRE(refused > operations / 200);
  while (!model.open.empty()) {
    model.close(pick());
  }
  for (const Pin& pin : pins) {
    model.policy.unpin(pin.id);
  }
  model.check_all();
  const kvc::Stats stats = model.policy.stats();
  REQUIRE(stats.blocks_referenced == 0);
}

}  // namespace kvc_test
