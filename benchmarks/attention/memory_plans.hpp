// Every plan for memory beside the one that decode chooses.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "kvc/attention/memory_plan_choice.hpp"
#include "measure.hpp"

namespace kvc_bench {

namespace detail {
inline std::size_t memory_plan_call = 0;  // goes through the layers, also from case to case
}  // namespace detail

/// Calls until decode has decided which plan these calls use, and notices no more kinds of calls.
///
///   call(i, plan)   decode on layer i % layers; by the choice if there is no plan
template <class F>
void decide_memory_plan(F&& call) {
  const auto open = [] {
    const auto choices = kvc::memory_plan_choices();
    return std::ranges::any_of(choices, [](const kvc::MemoryPlanChoice& choice) { return !choice.is_decided; });
  };
  call(++detail::memory_plan_call, std::nullopt);
  for (int i = 0; i < 200 && open(); ++i) {
    call(++detail::memory_plan_call, std::nullopt);
  }
}

/// Times every plan and the choice by turns, and writes the counters `plan`, `of_best_plan` and ms[PLAN].
///
///   kind   of these calls
template <class F>
void compare_memory_plans(benchmark::State& state, const kvc::MemoryPlanKind& kind, F&& call) {
  constexpr int plans = int{std::size(kvc::memory_plans)};
  constexpr std::size_t least_rounds = 11;
  std::vector<std::vector<double>> seconds(plans + 1);  // the last: of the choice
  const auto begin = Clock::now();
  while (seconds.front().size() < least_rounds || seconds_between(begin, Clock::now()) < 0.1) {
    for (int p = 0; p <= plans; ++p) {
      const auto plan = p < plans ? std::optional(kvc::memory_plans[p]) : std::nullopt;
      const auto start = Clock::now();
      call(++detail::memory_plan_call, plan);
      seconds[static_cast<std::size_t>(p)].push_back(seconds_between(start, Clock::now()));
    }
  }
  kvc::MemoryPlan plan;  // where nothing is measured, the default
  for (const kvc::MemoryPlanChoice& choice : kvc::memory_plan_choices()) {
    plan = choice.kind == kind ? choice.plan : plan;
  }
  const auto chosen = std::ranges::find(kvc::memory_plans, plan) - std::begin(kvc::memory_plans);
  if (chosen < plans) {  // twice as many times of one plan
    auto& of = seconds[static_cast<std::size_t>(chosen)];
    of.insert(of.end(), seconds.back().begin(), seconds.back().end());
    seconds.back() = of;
  }
  std::vector<double> medians;
  for (auto& of : seconds) {
    const auto middle = of.begin() + static_cast<std::ptrdiff_t>(of.size() / 2);
    std::ranges::nth_element(of, middle);
    medians.push_back(*middle);
  }
  state.counters["of_best_plan"] = *std::ranges::min_element(medians) / medians.back();
  state.counters["plan"] = static_cast<double>(chosen);
  state.SetLabel(to_string(plan));
  for (int p = 0; p < plans; ++p) {
    state.counters["ms[" + to_string(kvc::memory_plans[p]) + "]"] = medians[static_cast<std::size_t>(p)] * 1e3;
  }
}

}  // namespace kvc_bench
