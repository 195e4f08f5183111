// PolicyLaws: the laws of a policy, each a function that throws ContractError where the policy breaks it. Part of
// testing/policy_conformance.hpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <numeric>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/testing/contract.hpp"
#include "kvc/testing/policy_interface.hpp"
#include "kvc/testing/policy_model.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {
namespace detail {

/// The tokens first, first + 1, ...
inline std::vector<Token> tokens_from(Token first, int count) {
  std::vector<Token> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Whether f throws an E. Without exceptions nothing can be refused, and f is not called.
template <class E, class F>
[[nodiscard]] bool throws([[maybe_unused]] F&& f) {
#if KVC_HAS_EXCEPTIONS
  try {
    f();
  } catch (const E&) {
    return true;
  } catch (...) {
  }
  return false;
#else
  return true;
#endif
}

/// The laws. Each gets a model of a new policy with room for at least 96 tokens, in 4 sequences of up to 24.
class PolicyLaws {
 public:
  PolicyLaws(PolicyInterface& policy, std::string subject) : policy_(policy), model_(policy, std::move(subject)) {}

  [[nodiscard]] static auto all() {
    return std::array{&PolicyLaws::geometry,
                      &PolicyLaws::extension,
                      &PolicyLaws::runs,
                      &PolicyLaws::slots_of_two_sequences,
                      &PolicyLaws::rollback,
                      &PolicyLaws::rollback_of_a_shared_tail,
                      &PolicyLaws::no_room,
                      &PolicyLaws::empty_extension,
                      &PolicyLaws::forks,
                      &PolicyLaws::fork_outlives_its_parent,
                      &PolicyLaws::fork_of_an_uncommitted_sequence,
                      &PolicyLaws::truncate,
                      &PolicyLaws::truncate_and_forks,
                      &PolicyLaws::close,
                      &PolicyLaws::stale_handles,
                      &PolicyLaws::arguments,
                      &PolicyLaws::one_extension_at_a_time,
                      &PolicyLaws::random_operations};
  }

  void geometry() {
    law(policy_.blocks() >= 1 && policy_.block_tokens() >= 1, {"a pool has at least one block of one slot"});
    law(policy_.blocks() * policy_.block_tokens() >= 96, {"the suite needs a pool of 96 slots or more"});
    model_.check_all();
  }

  void extension() {
    const int a = opened();
    law(policy_.length(model_.seq(a)) == 0, {"a sequence without a prompt is not empty"});
    extend(a, 0, 9);
    law(policy_.length(model_.seq(a)) == 0, {"an extension counts before it is committed"});
    law(policy_.reserved(model_.seq(a)) == 9, {"reserved(seq) does not count an uncommitted extension"});
    model_.check_all();
    model_.commit(a);
    model_.check_all();
  }

  void runs() {
    const int a = filled(23);
    for (Pos first = 0; first <= 23; ++first) {
      for (Pos last = first; last <= 23; ++last) {
        model_.for_each_slot(a, {first, last}, [](Pos, std::size_t) {});
      }
    }
  }

  void slots_of_two_sequences() {
    const int a = opened();
    const int b = opened();
    extend(a, 0, 11);
    extend(b, 0, 11);
    std::set<std::size_t> slots;
    for (const int id : {a, b}) {
      model_.for_each_slot(id, {0, 11}, [&](Pos, std::size_t slot) {
        law(slots.insert(slot).second, {"two positions that are being written share slot ", std::to_string(slot)});
      });
    }
    model_.check_all();
  }

  void rollback() {
    const int a = filled(5);
    const auto before = counts(policy_.stats());
    extend(a, 5, 14);
    model_.rollback(a);
    law(counts(policy_.stats()) == before, {"rollback does not restore the counts"});
    model_.check_all();
  }

  void rollback_of_a_shared_tail() {
    const int a = filled(6);
    const int b = forked(a, 5);
    const auto before = counts(policy_.stats());
    extend(b, 50, 7);
    model_.check_all();
    model_.rollback(b);
    law(counts(policy_.stats()) == before, {"rollback does not restore the counts of a shared tail"});
    model_.check_all();
  }

  void no_room() {
    const int a = filled(5);
    const auto before = counts(policy_.stats());
    // One slot too many, and the longest extension there is.
    for (const Pos count : {static_cast<Pos>(policy_.blocks() * policy_.block_tokens() - 4), max_pos - 5}) {
      law(!policy_.try_extend(model_.seq(a), count, {}),
          {"try_extend of ", std::to_string(count), " tokens finds room"});
      law(counts(policy_.stats()) == before, {"try_extend that finds no room changes the counts"});
      model_.check_all();
    }
    extend(a, 5, 19);
    model_.commit(a);
    model_.check_all();
    while (const auto more = model_.open_sequence()) {  // fill the pool, by one sequence or by many
      if (!model_.extend(*more, tokens_from(1000 * *more, 24))) {
        model_.check_all();
        model_.close(*more);
        break;
      }
      model_.commit(*more);
      law(model_.open.size() < 2000, {"the suite needs a pool of less than 48,000 slots"});
    }
    model_.check_all();
  }

  void empty_extension() {
    const int a = opened();
    extend(a, 0, 0);
    model_.commit(a);
    extend(a, 0, 3);
    model_.commit(a);
    extend(a, 0, 0);
    model_.rollback(a);
    model_.check_all();
  }

  void forks() {
    const int a = filled(10);
    for (const Pos at : {0, 1, 5, 8, 10}) {
      const int b = forked(a, at);
      model_.check_all();
      extend(b, 100 * at, 7);
      model_.commit(b);
      extend(a, 1000 + at, 2);
      model_.commit(a);
      model_.check_all();
      model_.close(b);
      model_.check_all();
    }
  }

  void fork_outlives_its_parent() {
    const int a = filled(10);
    const int b = forked(a, 7);
    model_.close(a);
    model_.check_all();
    extend(b, 70, 5);
    model_.commit(b);
    model_.check_all();
  }

  void fork_of_an_uncommitted_sequence() {
    for (int end = 0; end < 3; ++end) {  // the parent commits, rolls back, or is closed
      const int a = filled(6);
      extend(a, 6, 4);
      const int b = forked(a, 6);
      model_.check_all();
      extend(b, 60, 3);
      end == 0 ? model_.commit(a) : end == 1 ? model_.rollback(a) : model_.close(a);
      model_.commit(b);
      model_.check_all();
      model_.close(b);
      if (end < 2) {
        model_.close(a);
      }
    }
  }

  void truncate() {
    const int a = filled(20);
    for (const Pos length : {19, 12, 8, 3, 0}) {
      model_.truncate(a, length);
      model_.check_all();
      extend(a, 500 + length, 4);
      model_.commit(a);
      model_.check_all();
      model_.truncate(a, length);
    }
  }

  void truncate_and_forks() {
    const int a = filled(15);
    const int b = forked(a, 15);
    model_.truncate(a, 5);
    extend(a, 300, 8);
    model_.commit(a);
    model_.check(b);
    model_.check_all();
  }

  void close() {
    const auto unused = counts(policy_.stats());
    for (int round = 0; round < 3; ++round) {
      const int a = opened();
      const int b = opened();
      // Without tokens: rows that are cached would stay.
      law(model_.extend(a, tokens_from(0, 21), false) && model_.extend(b, tokens_from(0, 3), false),
          {"21 and 3 tokens find no room"});
      model_.commit(a);  // and b is closed uncommitted
      model_.close(a);
      model_.close(b);
      law(counts(policy_.stats()) == unused, {"close does not free all that the sequence had"});
      model_.check_all();
    }
  }

  void stale_handles() {
    const int a = opened();
    const SeqId stale = model_.seq(a);
    model_.close(a);
    const int b = filled(5);  // uses the slot again
    for (const SeqId seq : {stale, SeqId{}, SeqId{1000, 0}}) {
      law(!policy_.contains(seq), {"contains(seq) of a closed sequence"});
      refuses("length of a closed sequence", [&] { (void)policy_.length(seq); });
      refuses("reserved of a closed sequence", [&] { (void)policy_.reserved(seq); });
      refuses("try_extend of a closed sequence", [&] { (void)policy_.try_extend(seq, 1, {}); });
      refuses("commit of a closed sequence", [&] { policy_.commit(seq); });
      refuses("try_fork of a closed sequence", [&] { (void)policy_.try_fork(seq, 0); });
      refuses("truncate of a closed sequence", [&] { policy_.truncate(seq, 0); });
      refuses("close of a closed sequence", [&] { policy_.close(seq); });
      refuses("for_each_run of a closed sequence",
              [&] { policy_.for_each_run(seq, PosRange{0, 0}, [](const SlotRun&) {}); });
      policy_.rollback(seq);  // changes nothing
    }
    model_.check(b);
    model_.check_all();
  }

  void arguments() {
    const int a = filled(6);
    const SeqId seq = model_.seq(a);
    const auto ignore = [](const SlotRun&) {};
    refuses("try_fork behind the length", [&] { (void)policy_.try_fork(seq, 7); });
    refuses("try_fork at -1", [&] { (void)policy_.try_fork(seq, -1); });
    refuses("truncate to more than the length", [&] { policy_.truncate(seq, 7); });
    refuses("truncate to -1", [&] { policy_.truncate(seq, -1); });
    refuses("try_extend by -1", [&] { (void)policy_.try_extend(seq, -1, {}); });
    refuses("try_extend beyond 2^31 - 1 positions", [&] { (void)policy_.try_extend(seq, max_pos, {}); });
    refuses("try_extend by 3 positions and 2 tokens", [&] { (void)policy_.try_extend(seq, 3, tokens_from(0, 2)); });
    refuses("for_each_run behind the reserved length", [&] { policy_.for_each_run(seq, PosRange{0, 7}, ignore); });
    refuses("for_each_run from -1", [&] { policy_.for_each_run(seq, PosRange{-1, 2}, ignore); });
    refuses("for_each_run backwards", [&] { policy_.for_each_run(seq, PosRange{4, 2}, ignore); });
    model_.check_all();
  }

  void one_extension_at_a_time() {
    const int a = opened();
    const SeqId seq = model_.seq(a);
    refuses("commit of nothing", [&] { policy_.commit(seq); });
    extend(a, 0, 6);
    refuses("try_extend of an uncommitted sequence", [&] { (void)policy_.try_extend(seq, 1, {}); });
    refuses("truncate of an uncommitted sequence", [&] { policy_.truncate(seq, 0); });
    refuses("try_fork of uncommitted positions", [&] { (void)policy_.try_fork(seq, 1); });
    model_.check_all();
    model_.commit(a);
    refuses("commit of nothing", [&] { policy_.commit(seq); });
    policy_.rollback(seq);  // nothing is uncommitted: changes nothing
    model_.check_all();
  }

  /// Some thousand random operations, many of which find no room.
  void random_operations() {
    std::uint32_t state = 1;
    const auto random = [&](int below) {
      state = state * 1664525U + 1013904223U;
      return static_cast<int>((std::uint64_t{state} * static_cast<std::uint64_t>(below)) >> 32);
    };
    const auto random_tokens = [&](int most) {  // few different ones, so that prefixes are shared
      std::vector<Token> tokens(static_cast<std::size_t>(random(most + 1)));
      for (Token& token : tokens) {
        token = random(8) == 0 ? random(3) : 7;
      }
      return tokens;
    };
    for (int i = 0; i < 3000; ++i) {
      const auto before = counts(policy_.stats());
      bool done = true;
      if (model_.open.empty() || (model_.open.size() < 12 && random(8) == 0)) {
        done = model_.open_sequence(random_tokens(24), random(3) == 0 ? "other" : "").has_value();
      } else {
        auto it = model_.open.begin();
        std::advance(it, random(static_cast<int>(model_.open.size())));
        const int id = it->first;
        const auto length = static_cast<int>(it->second.second.rows.size());
        const bool extending = it->second.second.extending;
        const int what = random(12);
        if (what < 6) {
          if (extending) {
            random(4) == 0 ? model_.rollback(id) : model_.commit(id);
          } else {
            done = model_.extend(id, random_tokens(random(6) == 0 ? 40 : 6), random(20) != 0);
          }
        } else if (what < 8) {
          done = model_.open.size() >= 12 || model_.fork(id, random(length + 1)).has_value();
        } else if (what < 10 && !extending) {
          model_.truncate(id, random(length + 1));
        } else if (what >= 10) {
          model_.close(id);
        }
      }
      law(done || counts(policy_.stats()) == before, {"an operation that finds no room changes the counts"});
      model_.check_all();
    }
    while (!model_.open.empty()) {
      model_.close(model_.open.begin()->first);
    }
    model_.check_all();
    law(policy_.stats().blocks_referenced == 0, {"blocks are referenced, and no sequence is open"});
  }

 private:
  void law(bool ok, std::initializer_list<std::string_view> parts) const { model_.law(ok, parts); }
  template <class F>
  void refuses(std::string_view what, F&& f) {
    law(throws<std::invalid_argument>(f), {what, " does not throw std::invalid_argument"});
  }
  int opened() {
    const std::optional<int> id = model_.open_sequence();
    law(id.has_value(), {"try_open finds no room in a pool that is nearly empty"});
    return *id;
  }
  void extend(int id, Token first, int count) {
    law(model_.extend(id, tokens_from(first, count)),
        {"try_extend by ", std::to_string(count), " tokens finds no room in a pool that is nearly empty"});
  }
  int filled(int count) {
    const int id = opened();
    extend(id, 0, count);
    model_.commit(id);
    return id;
  }
  int forked(int id, Pos at) {
    const std::optional<int> fork = model_.fork(id, at);
    law(fork.has_value(), {"try_fork finds no room in a pool that is nearly empty"});
    return *fork;
  }

  PolicyInterface& policy_;
  PolicyModel model_;
};

}  // namespace detail
}  // namespace testing
}  // namespace v0
}  // namespace kvc
