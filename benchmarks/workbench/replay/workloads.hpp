// Generated request streams, to test eviction on traffic that its design has not seen.
//
// A workload is drawn from a family by a seed: the seed decides the parameters of the family and all that happens. The
// same seed gives the same workload on every machine. Needs the standard library only, so that tests can include it.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <queue>
#include <string_view>
#include <utility>
#include <vector>

namespace replay {

/// The kinds of traffic.
enum class Family {
  chat,       ///< sessions of many users: turns, pauses, some end early
  agents,     ///< sessions that call tools at once, pause for their user now and then, and start sub-agents
  documents,  ///< questions on shared documents, whose popularity follows Zipf's law
  systems,    ///< short prompts behind a few long system prompts
  scans,      ///< sessions, and bursts of prompts that nobody asks again
  loops,      ///< one pass after another over the same documents, more than fit
  tenants,    ///< groups of users with a prompt of their own, who come and go
  days,       ///< sessions by day, batches of documents by night
  mix,        ///< several of the families above at once
  change,     ///< one family, then another, then the first again
  noise       ///< sessions that end by chance alone: there is nothing to learn
};
inline constexpr std::array all_families = {Family::chat,  Family::agents, Family::documents, Family::systems,
                                            Family::scans, Family::loops,  Family::tenants,   Family::days,
                                            Family::mix,   Family::change, Family::noise};
[[nodiscard]] constexpr std::string_view name(Family family) {
  constexpr std::array<std::string_view, all_families.size()> names = {
      "chat", "agents", "documents", "systems", "scans", "loops", "tenants", "days", "mix", "change", "noise"};
  return names[static_cast<std::size_t>(family)];
}

/// A request of a workload. Equal block numbers mean equal prefixes.
struct GeneratedRequest {
  double seconds = 0;  ///< since the first one
  std::vector<std::int32_t> blocks;
};

/// A generated stream of requests.
struct Workload {
  Family family = Family::chat;
  std::uint64_t seed = 0;
  std::vector<GeneratedRequest> requests;  ///< in the order of arrival
  std::int64_t blocks = 0;                 ///< of all prompts
  std::int32_t unique = 0;                 ///< different ones: 0 .. unique - 1
};

namespace detail {

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), and distributions that are the same on every machine.
class Draw {
 public:
  explicit Draw(std::uint64_t seed) : state_(seed) {}
  /// In [0, 1).
  double unit() {
    state_ += 0x9e3779b97f4a7c15U;
    std::uint64_t z = state_;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9U;
    z = (z ^ z >> 27) * 0x94d049bb133111ebU;
    return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53;
  }
  double between(double low, double high) { return low + (high - low) * unit(); }
  /// As likely in each octave of [low, high].
  double log_between(double low, double high) { return low * std::pow(high / low, unit()); }
  int whole(int low, int high) { return low + static_cast<int>(unit() * (high - low + 1)); }
  bool chance(double p) { return unit() < p; }
  double exponential(double mean) { return -mean * std::log1p(-unit()); }
  double log_normal(double median, double sigma) {
    const double radius = std::sqrt(-2 * std::log1p(-unit()));
    return median * std::exp(sigma * radius * std::cos(6.283185307179586 * unit()));
  }
  /// At least 1.
  int blocks(double mean) { return 1 + static_cast<int>(exponential(std::max(0.1, mean - 1)) + 0.5); }

 private:
  std::uint64_t state_;
};

/// Runs sources of requests in the order of their times.
class Generator {
 public:
  explicit Generator(std::uint64_t seed) : draw(seed) {}

  Draw draw;

  using Blocks = std::vector<std::int32_t>;
  [[nodiscard]] Blocks fresh(int count, Blocks after = {}) {
    for (int i = 0; i < count; ++i) {
      after.push_back(next_block_++);
    }
    return after;
  }
  void ask(double seconds, Blocks blocks) {
    asked_ += static_cast<std::int64_t>(blocks.size());
    requests_.push_back({seconds, std::move(blocks)});
  }
  [[nodiscard]] std::int64_t asked() const { return asked_; }

  /// In the order of arrival, blocks numbered in that order.
  [[nodiscard]] Workload finish(Family family, std::uint64_t seed, std::int64_t at_most_blocks) {
    std::stable_sort(requests_.begin(), requests_.end(),
                     [](const auto& a, const auto& b) { return a.seconds < b.seconds; });
    Workload workload{family, seed, {}, 0, 0};
    std::vector<std::int32_t> number(static_cast<std::size_t>(next_block_), -1);
    for (GeneratedRequest& request : requests_) {
      if (workload.blocks >= at_most_blocks) {
        break;
      }
      for (std::int32_t& block : request.blocks) {
        std::int32_t& known = number[static_cast<std::size_t>(block)];
        known = known < 0 ? workload.unique++ : known;
        block = known;
      }
      workload.blocks += static_cast<std::int64_t>(request.blocks.size());
      workload.requests.push_back(std::move(request));
    }
    return workload;
  }

 private:
  std::int32_t next_block_ = 0;
  std::int64_t asked_ = 0;
  std::vector<GeneratedRequest> requests_;
};

/// How one class of users talks.
struct Manner {
  double share = 1;       ///< of all users
  double continues = .7;  ///< chance of another turn
  double hardens = 0;     ///< how much that chance grows from turn to turn
  double first = 8, added = 4;
  double pause = 60, spread = 1;  ///< seconds between turns: median, and sigma of the logarithm
  bool tail = false;              ///< the last block is replaced in the next turn
};

/// One session from `start`, behind `system`. Contexts stay below `longest` blocks.
inline void converse(Generator& g, const Manner& m, double start, double end, Generator::Blocks context, int longest) {
  context = g.fresh(g.draw.blocks(m.first), std::move(context));
  double continues = m.continues;
  for (double now = start; now < end && static_cast<int>(context.size()) < longest;) {
    g.ask(now, m.tail ? g.fresh(1, context) : context);
    if (!g.draw.chance(continues)) {
      return;
    }
    continues += (0.97 - continues) * m.hardens;
    now += g.draw.log_normal(m.pause, m.spread);
    context = g.fresh(g.draw.blocks(m.added), std::move(context));
  }
}

/// An agent's session, which calls tools, waits for its user, and starts sub-agents.
inline void work(Generator& g, double start, double end, const Generator::Blocks& system, int depth, double steps,
                 double added, double sub_agents, double user_pause) {
  Generator::Blocks context = g.fresh(g.draw.blocks(10), system);
  const double last = 1 + g.draw.exponential(steps);
  double now = start;
  for (double step = 0; step < last && now < end && context.size() < 400; ++step) {
    g.ask(now, context);
    if (depth == 0 && g.draw.chance(sub_agents)) {
      work(g, now + 1, end, system, 1, steps / 4, added, 0, user_pause);
      now += g.draw.log_normal(40, 0.7);
    }
    now += g.draw.chance(0.12) ? g.draw.log_normal(user_pause, 1.2) : g.draw.log_normal(6, 0.8);
    context = g.fresh(g.draw.blocks(added), std::move(context));
  }
}

[[nodiscard]] inline Manner any_manner(Draw& draw) {
  return {.share = draw.between(0.2, 1),
          .continues = draw.between(0.2, 0.95),
          .hardens = draw.chance(0.5) ? draw.between(0, 0.4) : 0,
          .first = draw.log_between(2, 40),
          .added = draw.log_between(1.5, 12),
          .pause = draw.log_between(20, 600),
          .spread = draw.between(0.4, 1.6),
          .tail = draw.chance(0.5)};
}

/// Users of several manners arrive at random, `rate` of them per second, which may depend on the time.
template <class Rate, class System>
void users(Generator& g, const std::vector<Manner>& manners, double start, double end, double highest_rate, Rate rate,
           System system) {
  double all = 0;
  for (const Manner& m : manners) {
    all += m.share;
  }
  for (double now = start + g.draw.exponential(1 / highest_rate); now < end;
       now += g.draw.exponential(1 / highest_rate)) {
    if (!g.draw.chance(rate(now) / highest_rate)) {
      continue;
    }
    double pick = g.draw.between(0, all);
    std::size_t k = 0;
    while (k + 1 < manners.size() && pick >= manners[k].share) {
      pick -= manners[k++].share;
    }
    converse(g, manners[k], now, end, system(), 250);
  }
}

/// Draws a number in [0, count), number k as often as (k + 1)^-skew.
class Zipf {
 public:
  Zipf(std::size_t count, double skew) : sum_(count) {
    double sum = 0;
    for (std::size_t k = 0; k < count; ++k) {
      sum_[k] = sum += std::pow(static_cast<double>(k + 1), -skew);
    }
  }
  [[nodiscard]] std::size_t operator()(Draw& draw) const {
    const double at = draw.between(0, sum_.back());
    return static_cast<std::size_t>(std::upper_bound(sum_.begin(), sum_.end() - 1, at) - sum_.begin());
  }

 private:
  std::vector<double> sum_;
};

/// Requests of a family between two times; about `blocks` blocks of prompts at most.
inline void generate(Generator& g, Family family, double start, double end, std::int64_t blocks) {
  Draw& draw = g.draw;
  const double span = end - start;
  const std::int64_t limit = g.asked() + blocks;
  const auto several_manners = [&](int least, int most) {
    std::vector<Manner> manners;
    for (int i = draw.whole(least, most); i > 0; --i) {
      manners.push_back(any_manner(draw));
    }
    return manners;
  };
  // Blocks that a session asks for in all, roughly: what the rate of arrivals follows from.
  const auto blocks_of = [](const std::vector<Manner>& manners) {
    double all = 0, share = 0;
    for (const Manner& m : manners) {
      const double turns = std::min(12.0, 1 / (1 - m.continues));
      all += m.share * turns * (m.first + m.added * turns / 2);
      share += m.share;
    }
    return all / share;
  };
  const auto constant = [](double) { return 1e300; };
  const auto none = [] { return Generator::Blocks{}; };
  const auto wanted = static_cast<double>(blocks);

  switch (family) {
    case Family::chat: {
      const auto manners = several_manners(1, 3);
      const Generator::Blocks system = g.fresh(draw.whole(0, 6));
      users(g, manners, start, end, wanted / blocks_of(manners) / span, constant, [&] { return system; });
      break;
    }
    case Family::noise: {
      Manner m = any_manner(draw);
      m.hardens = 0;
      m.tail = false;
      users(g, {m}, start, end, wanted / blocks_of({m}) / span, constant, none);
      break;
    }
    case Family::agents: {
      const double steps = draw.log_between(5, 40), added = draw.log_between(1.5, 6);
      const double sub_agents = draw.chance(0.6) ? draw.between(0.02, 0.2) : 0;
      const double user_pause = draw.log_between(60, 900);
      const Generator::Blocks system = g.fresh(draw.whole(2, 20));
      const double cost = steps * (static_cast<double>(system.size()) + 10 + steps * added);
      const double gap = span * cost / wanted;
      for (double now = start + draw.exponential(gap); now < end; now += draw.exponential(gap)) {
        work(g, now, end, system, 0, steps, added, sub_agents, user_pause);
      }
      break;
    }
    case Family::documents: {
      const Zipf popularity(static_cast<std::size_t>(draw.log_between(50, 2000)), draw.between(0.4, 1.3));
      const double length = draw.log_between(4, 60), question = draw.log_between(1, 4);
      const Generator::Blocks system = g.fresh(draw.whole(0, 8));
      std::vector<Generator::Blocks> documents(2000);
      const double gap = span * (static_cast<double>(system.size()) + length + question) / wanted;
      const double drift = draw.chance(0.5) ? draw.log_between(span / 20, span) : 1e300;  // another document is popular
      double next_drift = start + drift;
      std::size_t shift = 0;
      for (double now = start + draw.exponential(gap); now < end && g.asked() < limit; now += draw.exponential(gap)) {
        for (; now > next_drift; next_drift += drift) {
          shift += 7;
        }
        Generator::Blocks& document = documents[(popularity(draw) + shift) % documents.size()];
        if (document.empty()) {
          document = g.fresh(draw.blocks(length), system);
        }
        g.ask(now, g.fresh(draw.blocks(question), document));
      }
      break;
    }
    case Family::systems: {
      std::vector<Generator::Blocks> systems(static_cast<std::size_t>(draw.whole(2, 60)));
      for (Generator::Blocks& system : systems) {
        system = g.fresh(draw.blocks(25));
      }
      const Zipf popularity(systems.size(), draw.between(0, 1.2));
      const double length = draw.log_between(1, 20);
      const double gap = span * (25 + length) / wanted;
      for (double now = start + draw.exponential(gap); now < end; now += draw.exponential(gap)) {
        g.ask(now, g.fresh(draw.blocks(length), systems[popularity(draw)]));
      }
      break;
    }
    case Family::scans: {
      const auto manners = several_manners(1, 2);
      const double share = draw.between(0.2, 0.7);  // of the blocks that are scanned
      users(g, manners, start, end, (1 - share) * wanted / blocks_of(manners) / span, constant, none);
      const double length = draw.log_between(5, 80);
      const double every = draw.log_between(span / 60, span / 5);
      const int burst = static_cast<int>(share * wanted * every / span / length) + 1;
      for (double now = start + draw.exponential(every); now < end; now += every * draw.between(0.5, 1.5)) {
        double at = now;
        for (int i = 0; i < burst; ++i, at += draw.exponential(every / 10 / burst)) {
          g.ask(at, g.fresh(draw.blocks(length)));
        }
      }
      break;
    }
    case Family::loops: {
      std::vector<Generator::Blocks> documents(static_cast<std::size_t>(draw.whole(40, 400)));
      for (Generator::Blocks& document : documents) {
        document = g.fresh(draw.blocks(draw.log_between(5, 40)));
      }
      const double share = draw.between(0.5, 1);
      const double gap = span * 15 / (share * wanted);
      std::size_t i = 0;
      for (double now = start; now < end && g.asked() < limit; now += gap) {
        g.ask(now, g.fresh(1, documents[i++ % documents.size()]));
      }
      const auto manners = several_manners(1, 1);
      users(g, manners, start, end, (1.05 - share) * wanted / blocks_of(manners) / span, constant, none);
      break;
    }
    case Family::tenants: {
      const int tenants = draw.whole(3, 20);
      for (int i = 0; i < tenants; ++i) {
        const double from = start + draw.between(0, 0.8) * span;
        const double to = std::min(end, from + draw.between(0.1, 0.6) * span);
        const Generator::Blocks system = g.fresh(draw.whole(1, 30));
        const auto manners = several_manners(1, 2);
        users(g, manners, from, to,
              wanted / tenants / (blocks_of(manners) + 3.0 * static_cast<double>(system.size())) / (to - from),
              constant, [&] { return system; });
      }
      break;
    }
    case Family::days: {
      const double day = span / draw.between(2, 6);
      const auto manners = several_manners(1, 3);
      const double night = draw.between(0, 0.4);
      const double rate = wanted * (1 - night) / blocks_of(manners) / span;
      const auto by_day = [&](double now) { return rate * (1 + std::sin(6.283185307179586 * (now - start) / day)); };
      users(g, manners, start, end, 2 * rate, by_day, none);
      const double length = draw.log_between(5, 60);
      const double gap = span * length / (night * wanted + 1);
      for (double now = start + draw.exponential(gap / 2); now < end; now += draw.exponential(gap / 2)) {
        if (draw.chance(0.5 - 0.5 * std::sin(6.283185307179586 * (now - start) / day))) {
          g.ask(now, g.fresh(draw.blocks(length)));
        }
      }
      break;
    }
    case Family::mix: {
      const int parts = draw.whole(2, 4);
      for (int i = 0; i < parts; ++i) {
        generate(g, all_families[static_cast<std::size_t>(draw.whole(0, 6))], start, end, blocks / parts);
      }
      break;
    }
    case Family::change: {
      const auto any = [&] { return all_families[static_cast<std::size_t>(draw.whole(0, 7))]; };
      const Family first = any();
      const Family second = any();
      generate(g, first, start, start + 0.4 * span, blocks * 2 / 5);
      generate(g, second, start + 0.4 * span, start + 0.7 * span, blocks * 3 / 10);
      generate(g, first, start + 0.7 * span, end, blocks * 3 / 10);
      break;
    }
  }
}

}  // namespace detail

/// A workload of about `blocks` blocks of prompts. Deterministic. O(blocks log blocks).
[[nodiscard]] inline Workload make_workload(Family family, std::uint64_t seed, std::int64_t blocks = 100'000) {
  detail::Generator g(seed * 16 + static_cast<std::uint64_t>(family));
  const double span = g.draw.log_between(1800, 4 * 3600);
  detail::generate(g, family, 0, span, blocks * 3 / 2);
  return g.finish(family, seed, blocks);
}

/// The workloads of a test: the families in turn, with the seeds from `seed` on.
[[nodiscard]] inline std::vector<std::pair<Family, std::uint64_t>> workloads(std::size_t count, std::uint64_t seed) {
  std::vector<std::pair<Family, std::uint64_t>> all;
  for (std::size_t i = 0; i < count; ++i) {
    all.emplace_back(all_families[i % all_families.size()], seed + i / all_families.size());
  }
  return all;
}

}  // namespace replay
