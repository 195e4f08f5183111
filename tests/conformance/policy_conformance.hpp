// The contract of kvc/policy/concept.hpp, as tests that any policy must pass. For a policy of your own: a Case type as those of
// policies.hpp, and   TEMPLATE_TEST_CASE("Mine keeps the policy contract", "[policy]", MyCase) { conformance<TestType>(); }
#pragma once

#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>

#include "catch.hpp"
#include "oracle_model.hpp"

namespace kvc_test {

inline std::vector<Token> iota_tokens(Token first, int count) {
  std::vector<Token> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// `subject` has room for at least 96 tokens, in 4 sequences of up to 24.
inline void conformance(std::unique_ptr<AnyPolicy> subject) {
  OracleModel model(std::move(subject));
  AnyPolicy& policy = model.policy;
  const auto all_unused = counts(policy.stats());

  SECTION("geometry is positive and does not change") {
    REQUIRE(policy.blocks() >= 1);
    REQUIRE(policy.block_tokens() >= 1);
    REQUIRE(policy.blocks() * policy.block_tokens() >= 96);
  }

  SECTION("an opened sequence is empty, and an extension counts once it is committed") {
    const int a = *model.open_sequence({}, "");
    const SeqId seq = model.open.at(a).first;
    REQUIRE(policy.length(seq) == 0);
    REQUIRE(model.extend(a, iota_tokens(0, 9), true));
    REQUIRE(policy.length(seq) == 0);
    REQUIRE(policy.reserved(seq) == 9);
    model.commit(a);
    REQUIRE(policy.length(seq) == 9);
    model.check_all();
  }

  SECTION("runs cover any range, in order, and nothing else") {
    const int a = *model.open_sequence({}, "");
    REQUIRE(model.extend(a, iota_tokens(0, 23), true));
    model.commit(a);
    for (Pos first = 0; first <= 23; ++first) {
      for (Pos last = first; last <= 23; ++last) {
        Pos next = first;
        policy.for_each_run(model.open.at(a).first, {first, last}, [&](const kvc::SlotRun& run) {
          REQUIRE(run.first == next);
          REQUIRE(run.count > 0);
          next += run.count;
        });
        REQUIRE(next == last);
      }
    }
  }

  SECTION("sequences do not share slots that either may write") {
    const int a = *model.open_sequence({}, "");
    const int b = *model.open_sequence({}, "");
    REQUIRE(model.extend(a, iota_tokens(0, 11), true));
    REQUIRE(model.extend(b, iota_tokens(0, 11), true));
    std::set<std::pair<Index, Pos>> slots;
    std::size_t total = 0;
    for (const int id : {a, b}) {
      policy.for_each_run(model.open.at(id).first, {0, 11}, [&](const kvc::SlotRun& run) {
        for (Pos i = 0; i < run.count; ++i, ++total) {
          slots.emplace(kvc::to_index(run.block), run.offset + i);
        }
      });
    }
    REQUIRE(slots.size() == total);
  }

  SECTION("a rollback restores what was") {
    const int a = *model.open_sequence({}, "");
    REQUIRE(model.extend(a, iota_tokens(0, 5), true));
    model.commit(a);
    const auto before = counts(policy.stats());
    REQUIRE(model.extend(a, iota_tokens(5, 14), true));
    model.rollback(a);
    REQUIRE(counts(policy.stats()) == before);
    model.check_all();
  }

  SECTION("a rollback restores a shared tail") {
    const int a = *model.open_sequence({}, "");
    REQUIRE(model.extend(a, iota_tokens(0, 6), true));
    model.commit(a);
    const int b = *model.fork(a, 5);
    const auto before = counts(policy.stats());
    REQUIRE(model.extend(b, iota_tokens(50, 7), true));
    model.check_all();
    model.rollback(b);
    REQUIRE(counts(policy.stats()) == before);
    model.check_all();
  }

  SECTION("an extension that does not fit changes nothing, and one that fits still fits") {
    const int a = *model.open_sequence({}, "");
    REQUIRE(model.extend(a, iota_tokens(0, 5), true));
    model.commit(a);
    const auto before = counts(policy.stats());
    REQUIRE_FALSE(model.extend(a, iota_tokens(5, 200), true));
    REQUIRE(counts(policy.stats()) == before);
    model.check_all();
    REQUIRE(model.extend(a, iota_tokens(5, 19), true));
    model.commit(a);
    model.check_all();
  }

  SECTION("an extension by nothing is one") {
    const int a = *model.open_sequence({}, "");
    REQUIRE(model.extend(a, {}, true));
    model.commit(a);
    REQUIRE(model.extend(a, iota_tokens(0, 3), true));
    model.commit(a);
    REQUIRE(model.extend(a, {}, true));
    model.rollback(a);
    model.check_all();
  }

  SECTION("a fork goes its own way, wherever it was taken") {
    const int a = *model.open_sequence({}, "");
    REQUIRE(model.extend(a, iota_tokens(0, 10), true));
    model.commit(a);
    for (const Pos at : {0, 1, 5, 8, 10}) {
      const int b = *model.fork(a, at);
      REQUIRE(model.extend(b, iota_tokens(100 * at, 7), true));
      model.commit(b);
      REQUIRE(model.extend(a, iota_tokens(1000 + at, 2), true));
      model.commit(a);
      model.check_all();
      model.close(b);
      model.check_all();
    }
  }

  SECTION("a fork outlives its parent") {
    const int a = *model.open_sequence({}, "");
    REQUIRE(model.extend(a, iota_tokens(0, 10), true));
    model.commit(a);
    const int b = *model.fork(a, 7);
    model.close(a);
    model.check_all();
    REQUIRE(model.extend(b, iota_tokens(70, 5), true));
    model.commit(b);
    model.check_all();
  }

  SECTION("a fork of a sequence that is being extended has its committed positions only") {
    const int a = *model.open_sequence({}, "");
    REQUIRE(model.extend(a, iota_tokens(0, 6), true));
    model.commit(a);
    REQUIRE(model.extend(a, iota_tokens(6, 4), true));
    const int b = *model.fork(a, 6);
    REQUIRE(model.extend(b, iota_tokens(60, 3), true));
    SECTION("and the parent commits") { model.commit(a); }
    SECTION("and the parent rolls back") { model.rollback(a); }
    SECTION("and the parent is closed") { model.close(a); }
    model.commit(b);
    model.check_all();
  }

  SECTION("truncate forgets the end, and what comes after it is new") {
    const int a = *model.open_sequence({}, "");
    REQUIRE(model.extend(a, iota_tokens(0, 20), true));
    model.commit(a);
    for (const Pos length : {19, 12, 8, 3, 0}) {
      model.truncate(a, length);
      model.check_all();
      REQUIRE(model.extend(a, iota_tokens(500 + length, 4), true));
      model.commit(a);
      model.check_all();
      model.truncate(a, length);
    }
  }

  SECTION("truncating a sequence does not touch its forks") {
    const int a = *model.open_sequence({}, "");
    REQUIRE(model.extend(a, iota_tokens(0, 15), true));
    model.commit(a);
    const int b = *model.fork(a, 15);
    model.truncate(a, 5);
    REQUIRE(model.extend(a, iota_tokens(300, 8), true));
    model.commit(a);
    model.check(b);
    model.check_all();
  }

  SECTION("closing gives back everything") {
    for (int round = 0; round < 3; ++round) {
      const int a = *model.open_sequence({}, "");
      const int b = *model.open_sequence({}, "");
      REQUIRE(model.extend(a, iota_tokens(0, 21), false));
      REQUIRE(model.extend(b, iota_tokens(0, 3), false));
      model.commit(a);
      SECTION("also of a sequence that is being extended") {}
      model.close(a);
      model.close(b);
      REQUIRE(counts(policy.stats()) == all_unused);
      policy.verify();
    }
  }

  SECTION("a handle that outlived its sequence is refused, also when its slot is in use again") {
    const int a = *model.open_sequence({}, "");
    const SeqId stale = model.open.at(a).first;
    model.close(a);
    const int b = *model.open_sequence({}, "");
    REQUIRE(policy.contains(model.open.at(b).first));
    for (const SeqId seq : {stale, SeqId{}, SeqId{1000, 0}}) {
      REQUIRE_FALSE(policy.contains(seq));
      REQUIRE_THROWS_AS(policy.length(seq), std::invalid_argument);
      REQUIRE_THROWS_AS(policy.reserved(seq), std::invalid_argument);
      REQUIRE_THROWS_AS(policy.try_extend(seq, 1, {}), std::invalid_argument);
      REQUIRE_THROWS_AS(policy.commit(seq), std::invalid_argument);
      REQUIRE_THROWS_AS(policy.try_fork(seq, 0), std::invalid_argument);
      REQUIRE_THROWS_AS(policy.truncate(seq, 0), std::invalid_argument);
      REQUIRE_THROWS_AS(policy.close(seq), std::invalid_argument);
      REQUIRE_THROWS_AS(policy.for_each_run(seq, PosRange{0, 0}, [](const kvc::SlotRun&) {}), std::invalid_argument);
      policy.rollback(seq);  // never throws, changes nothing
    }
    model.check_all();
    REQUIRE_THROWS_WITH(policy.length(stale), contains("seq is {slot") && contains("must be an open sequence"));
  }

  SECTION("positions outside of a sequence are refused") {
    const int a = *model.open_sequence({}, "");
    const SeqId seq = model.open.at(a).first;
    REQUIRE(model.extend(a, iota_tokens(0, 6), true));
    model.commit(a);
    const auto ignore = [](const kvc::SlotRun&) {};
    REQUIRE_THROWS_WITH(policy.try_fork(seq, 7), contains("at is 7") && contains("between 0 and 6"));
    REQUIRE_THROWS_AS(policy.try_fork(seq, -1), std::invalid_argument);
    REQUIRE_THROWS_AS(policy.truncate(seq, 7), std::invalid_argument);
    REQUIRE_THROWS_AS(policy.truncate(seq, -1), std::invalid_argument);
    REQUIRE_THROWS_AS(policy.try_extend(seq, -1, {}), std::invalid_argument);
    REQUIRE_THROWS_AS(policy.try_extend(seq, std::numeric_limits<Pos>::max(), {}), std::invalid_argument);
    REQUIRE_THROWS_AS(policy.try_extend(seq, 3, iota_tokens(0, 2)), std::invalid_argument);
    REQUIRE_THROWS_AS(policy.for_each_run(seq, PosRange{0, 7}, ignore), std::invalid_argument);
    REQUIRE_THROWS_AS(policy.for_each_run(seq, PosRange{-1, 2}, ignore), std::invalid_argument);
    REQUIRE_THROWS_AS(policy.for_each_run(seq, PosRange{4, 2}, ignore), std::invalid_argument);
    model.check_all();
  }

  SECTION("there is one extension of a sequence at a time") {
    const int a = *model.open_sequence({}, "");
    const SeqId seq = model.open.at(a).first;
    REQUIRE_THROWS_AS(policy.commit(seq), std::invalid_argument);
    REQUIRE(model.extend(a, iota_tokens(0, 6), true));
    REQUIRE_THROWS_AS(policy.try_extend(seq, 1, {}), std::invalid_argument);
    REQUIRE_THROWS_AS(policy.truncate(seq, 0), std::invalid_argument);
    model.commit(a);
    REQUIRE_THROWS_AS(policy.commit(seq), std::invalid_argument);
    policy.rollback(seq);  // nothing is under way: nothing happens
    model.check_all();
  }
}

template <class Case>
void conformance() {
  conformance(make_policy<Case>(96, 4, 24));
}

}  // namespace kvc_test
