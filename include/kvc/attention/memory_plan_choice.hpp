// Which MemoryPlan decode uses: one choice per kind of call, made once per process by timing calls.
//
// The calls that are timed are those of the caller, with the layout, the threads and the memory that the process really
// has. Their results are the same with every plan, so nothing is computed twice: a measurement costs what its slower
// plans lose in a few calls. Calls that read less than MemoryPlanChooser::least_bytes are never timed.
//
// The environment variable KVC_MEMORY_PLAN, read at the first call, decides instead:
//
//   measure           the same as if it were not set
//   off               the default plan; nothing is timed
//   PLAN              this plan, such as second:208; nothing is timed
//   KIND=PLAN,...     these plans for these kinds of calls, such as what memory_plan_choices() of an earlier process
//                     gave (to_string of each, joined by commas); other kinds are measured
//
// AttentionOptions::memory_plan, where it is given, comes before all of these.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/attention/memory_plan.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// A kind of decode call: what decides which plan is fastest, beside the processor. As text, such as
/// "bf16/runs:16/heads:8/dims:128-128/threads:2+".
struct MemoryPlanKind {
  static constexpr Index most_run = 128;

  std::string element;  ///< Element<T>::name
  Index run = 0;        ///< positions of a head that lie together, about, as a power of two; most_run: or more
  Index kv_heads = 1;
  Index key_dim = 1;
  Index value_dim = 1;
  bool parallel = false;  ///< several threads; all numbers of them are one kind

  friend bool operator==(const MemoryPlanKind&, const MemoryPlanKind&) = default;
};

/// The text of a kind, which tells kinds apart.
[[nodiscard]] inline std::string to_string(const MemoryPlanKind& kind) {
  return kind.element + "/runs:" + std::to_string(kind.run) + "/heads:" + std::to_string(kind.kv_heads) +
         "/dims:" + std::to_string(kind.key_dim) + "-" + std::to_string(kind.value_dim) +
         "/threads:" + (kind.parallel ? "2+" : "1");
}

/// A plan that was chosen for a kind of calls, or is still being measured.
struct MemoryPlanChoice {
  MemoryPlanKind kind;
  MemoryPlan plan;         ///< that calls of the kind use; until the measurement is done, the default
  bool is_decided = true;  ///< false while calls are still being timed
};

/// KIND=PLAN, as KVC_MEMORY_PLAN takes it.
[[nodiscard]] inline std::string to_string(const MemoryPlanChoice& choice) {
  return to_string(choice.kind) + "=" + to_string(choice.plan);
}

namespace detail {

/// What KVC_MEMORY_PLAN says.
struct MemoryPlanSettings {
  bool measures = true;
  MemoryPlan plan = {};  // where nothing is measured
  std::vector<std::pair<std::string, MemoryPlan>> by_kind = {};

  /// Throws std::invalid_argument naming the variable and its value.
  [[nodiscard]] static MemoryPlanSettings parse(std::string_view text) {
    MemoryPlanSettings settings;
    if (text.empty() || text == "measure") {
      return settings;
    }
    if (text == "off") {
      settings.measures = false;
      return settings;
    }
    if (const auto plan = parse_memory_plan(text)) {
      return {false, *plan, {}};
    }
    for (std::string_view left = text; !left.empty();) {
      const std::string_view entry = left.substr(0, left.find(','));
      left.remove_prefix(std::min(left.size(), entry.size() + 1));
      const std::size_t equals = entry.find('=');
      const auto plan = equals == std::string_view::npos ? std::nullopt : parse_memory_plan(entry.substr(equals + 1));
      require(plan.has_value(), "KVC_MEMORY_PLAN", std::string(entry),
              "measure, off, a plan LEVEL[:LINES[:HEADS]], or KIND=PLAN,...");
      settings.by_kind.emplace_back(std::string(entry.substr(0, equals)), *plan);
    }
    return settings;
  }
};

/// Finds the fastest of the plans from times of calls: in turn, in rounds, so that slow changes of the machine meet all
/// of them. A plan that is far behind the best is left out early. In the end the default stays unless another is
/// clearly better.
///
/// A plan is judged by the mean of the faster half of its times, but for the fastest of all: calls that were disturbed
/// do not count, nor does one that found its rows in a cache.
class MemoryPlanTrial {
 public:
  static constexpr int plans = int{std::size(memory_plans)};
  static constexpr int rounds = 12;
  static constexpr double clearly = 0.985;  // time of a plan that is chosen over that of the default, at most
  struct Limit {
    int rounds;
    double time;  // over that of the best: a plan above it is left out after so many rounds
  };
  static constexpr Limit limits[] = {{3, 1.3}, {6, 1.15}};

  /// Leaves a plan out from the beginning: it is the same as another for these calls.
  void leave_out(int plan) noexcept { is_out_[at(plan)] = true; }

  /// The plan whose turn it is.
  [[nodiscard]] int next() noexcept {
    do {
      turn_ = (turn_ + 1) % plans;
    } while (is_out_[at(turn_)]);
    return turn_;
  }

  /// A call with a plan took this time. Returns the plan that is chosen, once all have been timed.
  [[nodiscard]] std::optional<int> add(int plan, double time) noexcept {
    Times& of = times_[at(plan)];
    if (of.count < rounds) {  // calls that run at the same time can be too many
      double* const end = of.sorted.data() + of.count++;
      *end = time;
      std::rotate(std::upper_bound(of.sorted.data(), end, time), end, end + 1);
    }
    const int done = least_count();
    for (const auto& [count, most] : limits) {
      if (done == count) {
        leave_out_above(most * best());
      }
    }
    if (done < rounds) {
      return std::nullopt;
    }
    int chosen = 0;
    for (int i = 1; i < plans; ++i) {
      const double limit = chosen == 0 ? clearly * times_[0].typical() : times_[at(chosen)].typical();
      chosen = !is_out_[at(i)] && times_[at(i)].typical() <= limit ? i : chosen;
    }
    return chosen;
  }

 private:
  struct Times {
    std::array<double, rounds> sorted = {};  // the first `count`
    int count = 0;

    [[nodiscard]] double typical() const noexcept {
      const int first = count > 3 ? 1 : 0, last = std::max(count / 2, first + 1);
      return std::accumulate(sorted.begin() + first, sorted.begin() + last, 0.0) / (last - first);
    }
  };

  [[nodiscard]] static constexpr std::size_t at(int i) noexcept { return static_cast<std::size_t>(i); }
  /// Rounds that all plans have been through which are not left out. The default never is.
  [[nodiscard]] int least_count() const noexcept {
    int least = rounds;
    for (int i = 0; i < plans; ++i) {
      least = is_out_[at(i)] ? least : std::min(least, times_[at(i)].count);
    }
    return least;
  }
  [[nodiscard]] double best() const noexcept {
    double best = times_[0].typical();
    for (int i = 1; i < plans; ++i) {
      best = is_out_[at(i)] ? best : std::min(best, times_[at(i)].typical());
    }
    return best;
  }
  void leave_out_above(double most) noexcept {
    for (int i = 1; i < plans; ++i) {
      is_out_[at(i)] = is_out_[at(i)] || times_[at(i)].typical() > most;
    }
  }

  int turn_ = -1;
  std::array<Times, plans> times_ = {};
  std::array<bool, plans> is_out_ = {};
};

/// The choices of a process. All members may be called from several threads. A kind that is decided is looked up
/// without a lock.
class MemoryPlanChooser {
 public:
  /// Bytes that a call reads, at least, to be timed: a quarter of a millisecond.
  static constexpr Index least_bytes = Index{4} << 20;

  /// A plan for one call, and where its time is to go.
  struct Use {
    MemoryPlan plan = {};
    int entry = -1;  // -1: the call is not timed
    int index = 0;   // in memory_plans
    Index bytes = 0;
  };

  ///   kind   of the call
  ///   bytes  that it reads, once each; 0 if it must not be timed
  [[nodiscard]] Use use(const MemoryPlanKind& kind, Index bytes) {
    if (!settings_.measures) {
      return {settings_.plan};
    }
    int i = find(kind);
    if (i >= 0) {
      const int chosen = entries_[at(i)].chosen.load(std::memory_order_acquire);
      if (chosen >= 0) {
        return {entries_[at(i)].plan};
      }
    }
    const bool known = !settings_.by_kind.empty();
    if (bytes < least_bytes && (i >= 0 || !known)) {
      return {};
    }
    const std::lock_guard lock(mutex_);
    if (i = find(kind); i < 0) {
      i = insert(kind);
    }
    if (i < 0) {
      return {};
    }
    Entry& entry = entries_[at(i)];
    if (entry.chosen.load(std::memory_order_relaxed) >= 0) {
      return {entry.plan};
    }
    if (bytes < least_bytes) {
      return {};
    }
    const int index = entry.trial.next();
    return {memory_plans[at(index)], i, index, bytes};
  }

  /// The call of `use` took so long.
  void add(const Use& use, std::chrono::steady_clock::duration time) {
    if (use.entry < 0) {
      return;
    }
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_[at(use.entry)];
    if (entry.chosen.load(std::memory_order_relaxed) >= 0) {
      return;
    }
    const double seconds = std::chrono::duration<double>(time).count();
    if (const auto chosen = entry.trial.add(use.index, seconds / static_cast<double>(use.bytes))) {
      entry.plan = memory_plans[at(*chosen)];
      entry.chosen.store(*chosen, std::memory_order_release);
    }
  }

  [[nodiscard]] std::vector<MemoryPlanChoice> choices() const {
    std::vector<MemoryPlanChoice> choices;
    for (int i = 0; i < count_.load(std::memory_order_acquire); ++i) {
      const Entry& entry = entries_[at(i)];
      const bool decided = entry.chosen.load(std::memory_order_acquire) >= 0;
      choices.push_back({entry.kind, decided ? entry.plan : MemoryPlan{}, decided});
    }
    return choices;
  }

  /// That of the process.
  [[nodiscard]] static MemoryPlanChooser& instance() {
    static MemoryPlanChooser chooser(MemoryPlanSettings::parse(environment()));
    return chooser;
  }

  explicit MemoryPlanChooser(MemoryPlanSettings settings) : settings_(std::move(settings)) {}

 private:
  struct Entry {
    MemoryPlanKind kind;
    MemoryPlan plan = {};  // valid once chosen is not negative
    std::atomic<int> chosen = -1;
    MemoryPlanTrial trial;  // with the lock
  };

  [[nodiscard]] static constexpr std::size_t at(int i) noexcept { return static_cast<std::size_t>(i); }
  [[nodiscard]] static std::string_view environment() noexcept {
    const char* const text = std::getenv("KVC_MEMORY_PLAN");
    return text == nullptr ? std::string_view() : text;
  }

  [[nodiscard]] int find(const MemoryPlanKind& kind) const noexcept {
    for (int i = count_.load(std::memory_order_acquire); i-- > 0;) {
      if (entries_[at(i)].kind == kind) {
        return i;
      }
    }
    return -1;
  }
  /// A new entry; -1 if all are taken. With the lock.
  [[nodiscard]] int insert(const MemoryPlanKind& kind) {
    const int i = count_.load(std::memory_order_relaxed);
    if (i == int{most}) {
      return -1;
    }
    Entry& entry = entries_[at(i)];
    entry.kind = kind;
    for (int plan = 1; plan < MemoryPlanTrial::plans && kind.run < MemoryPlanKind::most_run; ++plan) {
      if (memory_plans[at(plan)].heads != MemoryPlan::Heads::by_layout) {
        entry.trial.leave_out(plan);  // heads go in turn where they are not contiguous; one by one is far behind there
      }
    }
    if (!settings_.by_kind.empty()) {
      const std::string text = to_string(kind);
      for (const auto& [name, plan] : settings_.by_kind) {
        if (name == text) {
          entry.plan = plan;
          entry.chosen.store(0, std::memory_order_relaxed);
        }
      }
    }
    count_.store(i + 1, std::memory_order_release);
    return i;
  }

  static constexpr int most = 256;  // kinds; those of a process are few
  MemoryPlanSettings settings_;
  mutable std::mutex mutex_;
  std::atomic<int> count_ = 0;
  std::array<Entry, most> entries_;
};

}  // namespace detail

/// The choices of this process so far, in the order in which their kinds were met. Thread-safe.
[[nodiscard]] inline std::vector<MemoryPlanChoice> memory_plan_choices() {
  return detail::MemoryPlanChooser::instance().choices();
}

}  // namespace v0
}  // namespace kvc
