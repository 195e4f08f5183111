// Plans for memory: their text, and how one is chosen from times.
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "kvc/attention/memory_plan.hpp"
#include "kvc/attention/memory_plan_choice.hpp"
#include "random_source.hpp"

using kvc::MemoryPlan;
using kvc::MemoryPlanKind;
using kvc::detail::MemoryPlanChooser;
using kvc::detail::MemoryPlanSettings;
using kvc::detail::MemoryPlanTrial;
using kvc_test::contains;

namespace {
constexpr kvc::Index long_call = MemoryPlanChooser::least_bytes;

std::chrono::steady_clock::duration micros(double us) {
  return std::chrono::nanoseconds(static_cast<std::int64_t>(us * 1e3));
}

/// Gives a trial times until it chooses; time(plan, call) is that of a call.
template <class F>
int chosen(F time, std::vector<int>* calls = nullptr) {
  MemoryPlanTrial trial;
  for (int call = 0; call < 1000; ++call) {
    const int plan = trial.next();
    if (calls != nullptr) {
      ++(*calls)[static_cast<std::size_t>(plan)];
    }
    if (const auto choice = trial.add(plan, time(plan, call))) {
      return *choice;
    }
  }
  return -1;
}

/// The plan of a kind once calls of it took `time(plan)`, and whether one was chosen.
template <class F>
kvc::MemoryPlanChoice run_calls(MemoryPlanChooser& chooser, const MemoryPlanKind& kind, F time, int calls = 200) {
  for (int i = 0; i < calls; ++i) {
    const MemoryPlanChooser::Use use = chooser.use(kind, long_call);
    chooser.add(use, time(use.plan));
  }
  for (const kvc::MemoryPlanChoice& choice : chooser.choices()) {
    if (choice.kind == kind) {
      return choice;
    }
  }
  FAIL("the kind is not known");
  return {};
}
const MemoryPlanKind a_kind{"bf16", 16, 8, 128, 128, false};
}  // namespace

TEST_CASE("A memory plan is read from its text", "[memory_plan]") {
  for (const MemoryPlan& plan : kvc::memory_plans) {
    CHECK(kvc::parse_memory_plan(to_string(plan)) == plan);
  }
  const MemoryPlan plan{MemoryPlan::Level::second, 17, MemoryPlan::Heads::one_by_one};
  CHECK(to_string(plan) == "second:17:one_by_one");
  CHECK(kvc::parse_memory_plan("second:17:one_by_one") == plan);
  CHECK(kvc::memory_plans[0] == MemoryPlan{});
  CHECK(to_string(MemoryPlan{}) == "first");
  for (const char* text : {"", "third", "first:", "first:x", "first:-1", "first:4097",
                           "first:1:", "first:1:in_turn:", "first:1:sideways", " first", "first:1x"}) {
    CAPTURE(text);
    CHECK_FALSE(kvc::parse_memory_plan(text));
  }
}

TEST_CASE("KVC_MEMORY_PLAN has four forms, and others are refused", "[memory_plan]") {
  CHECK(MemoryPlanSettings::parse("").measures);
  CHECK(MemoryPlanSettings::parse("measure").measures);
  CHECK_FALSE(MemoryPlanSettings::parse("off").measures);
  CHECK(MemoryPlanSettings::parse("off").plan == MemoryPlan{});
  CHECK_FALSE(MemoryPlanSettings::parse("second:208").measures);
  CHECK(to_string(MemoryPlanSettings::parse("second:208").plan) == "second:208");
  CHECK_THROWS_WITH(MemoryPlanSettings::parse("fast"), contains("KVC_MEMORY_PLAN is fast"));
  CHECK_THROWS_WITH(MemoryPlanSettings::parse("a=second,b=fast"), contains("b=fast"));

  MemoryPlanChooser chooser(MemoryPlanSettings::parse(to_string(a_kind) + "=none,other=second"));
  CHECK(to_string(chooser.use(a_kind, 1).plan) == "none");
  CHECK(chooser.use(a_kind, long_call).entry == -1);
  MemoryPlanKind other = a_kind;
  other.kv_heads = 9;
  CHECK(chooser.use(other, long_call).entry >= 0);  // measured
}

TEST_CASE("A memory plan is chosen where it is clearly faster, whatever the noise", "[memory_plan]") {
  constexpr int plans = MemoryPlanTrial::plans;
  kvc_test::Random random(5);
  int right = 0;
  for (int run = 0; run < 100; ++run) {
    const int best = random.between(1, plans - 1);
    right += chosen([&](int plan, int) {
               const double disturbed = random.one_in(3) ? random.uniform(1, 3) : 1;
               return (plan == best ? 0.9 : 1.0) * disturbed * random.uniform(1, 1.01F);
             }) == best;
  }
  CHECK(right >= 95);

  int kept = 0;  // none is faster: whichever is chosen costs nothing
  for (int run = 0; run < 100; ++run) {
    kept += chosen([&](int, int) {
              return (random.one_in(3) ? random.uniform(1, 3) : 1) * random.uniform(1, 1.015F);
            }) == 0;
  }
  CHECK(kept >= 85);
  // One call that found all of its rows in a cache, behind the first rounds.
  CHECK(chosen([](int plan, int call) { return plan == 3 && call / plans == 4 ? 0.2 : 1.0; }) == 0);

  std::vector<int> calls(plans);
  CHECK(chosen([](int plan, int) { return plan == 4 ? 2.0 : plan == 3 ? 1.2 : 1.0; }, &calls) == 0);
  CHECK(calls[4] == MemoryPlanTrial::limits[0].rounds);
  CHECK(calls[3] == MemoryPlanTrial::limits[1].rounds);
  CHECK(calls[0] == MemoryPlanTrial::rounds);
}

TEST_CASE("A memory plan is chosen once per kind, and short calls are not timed", "[memory_plan]") {
  MemoryPlanChooser chooser({});
  CHECK(chooser.use(a_kind, long_call - 1).entry == -1);
  CHECK(chooser.choices().empty());
  const auto choice = run_calls(chooser, a_kind, [](const MemoryPlan& plan) {
    return micros(plan.level == MemoryPlan::Level::second && plan.lines == 208 ? 80 : 100);
  });
  CHECK(choice.is_decided);
  CHECK(to_string(choice) == "bf16/runs:16/heads:8/dims:128-128/threads:1=second:208");
  CHECK(to_string(chooser.use(a_kind, 1).plan) == "second:208");  // short calls use it, too

  MemoryPlanKind parallel = a_kind;
  parallel.parallel = true;
  CHECK_FALSE(run_calls(chooser, parallel, [](const MemoryPlan&) { return micros(100); }, 3).is_decided);
  CHECK(chooser.use(parallel, 1).plan == MemoryPlan{});
  CHECK(run_calls(chooser, parallel, [](const MemoryPlan&) { return micros(100); }).plan == MemoryPlan{});
}

TEST_CASE("Memory plans are chosen by several threads at the same time", "[memory_plan][threads]") {
  MemoryPlanChooser chooser({});
  std::vector<std::jthread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 400; ++i) {
        MemoryPlanKind kind = a_kind;
        kind.kv_heads = (i + t) % 5;
        const auto use = chooser.use(kind, long_call);
        chooser.add(use, micros(use.plan.level == MemoryPlan::Level::second && use.plan.lines == 208 ? 80 : 100));
      }
    });
  }
  threads.clear();
  const auto choices = chooser.choices();
  CHECK(choices.size() == 5);
  for (const kvc::MemoryPlanChoice& choice : choices) {
    CHECK(choice.is_decided);
    CHECK(to_string(choice.plan) == "second:208");
  }
}

TEST_CASE("Kinds of calls beyond those that are kept use the default plan", "[memory_plan]") {
  MemoryPlanChooser chooser({});
  MemoryPlanKind kind = a_kind;
  for (kind.kv_heads = 1; kind.kv_heads <= 256; ++kind.kv_heads) {
    CHECK(chooser.use(kind, long_call).entry >= 0);
  }
  CHECK(chooser.use(kind, long_call).entry == -1);
  CHECK(chooser.use(kind, long_call).plan == MemoryPlan{});
}
