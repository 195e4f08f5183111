// Synthetic traffic: classes of requests, each with its arrivals, prompts and answers, from a seed.
#pragma once

#include <cstdint>
#include <optional>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "request.hpp"

namespace serving {

/// A length in tokens: uniform in [low, high], or one of a list.
struct Lengths {
  Pos low = 1;
  Pos high = 1;
  std::vector<Pos> one_of;

  [[nodiscard]] Pos draw(Random& random) const;
  [[nodiscard]] Pos most() const;
};

/// A class of requests; docs/serving.md describes its fields and their ranges.
struct TrafficClass {
  std::string name;
  // Arrivals: a Poisson process of `rate` requests per second, or `burst` requests at once every `every` seconds.
  double rate = 0;
  double every = 0;
  Index burst = 0;
  double from = 0;   ///< seconds; no arrival before
  double until = 0;  ///< seconds; no arrival after. 0: no end
  // Prompts: one of `prefix_variants` prefixes, then tokens of this request alone.
  std::string prefix_name;  ///< classes with the same name share their prefixes
  Pos prefix_tokens = 0;
  Index prefix_variants = 1;
  bool pinned = false;  ///< pin the prefix once it is computed
  Lengths prompt;       ///< after the prefix
  // Answers
  Lengths output;
  Pos max_output = 0;  ///< the limit of the clients; 0: the longest that `output` gives
  int samples = 1;
  // Clients
  double impatient = 0;     ///< share of the clients that leave
  double patience_low = 0;  ///< seconds after the arrival
  double patience_high = 0;
  Index tenants = 0;  ///< tenants share no prefixes; 0: all requests share
  // Sessions: each arrival begins one of several turns. The prompt of a turn is the whole session before it, answers
  // included, and `prompt` tokens more; it comes so long after the turn before it came.
  Lengths turns;          ///< of a session; 1: requests have nothing to do with each other
  double pause_low = 0;   ///< seconds
  double pause_high = 0;  ///< seconds
  Index most_tokens = 0;  ///< a session ends before its prompt and answer have more; 0: no limit
};

/// Requests of all classes in the order of arrival, the first `requests` of them. Equal arguments, equal requests.
/// `load` multiplies the rates. `next` throws std::runtime_error where there is no request at all, or one
/// arrives after max_arrival.
class TrafficSource final : public Source {
 public:
  TrafficSource(std::vector<TrafficClass> classes, Index requests, std::uint64_t seed, double load = 1);
  [[nodiscard]] std::optional<Request> next() override;
  [[nodiscard]] const std::vector<std::string>& classes() const override { return names_; }

 private:
  struct Stream {
    Random random;
    double arrival = 0;  // seconds, of the next request; negative: there is none
    Index of_burst = 0;  // requests of the current burst that have come
  };
  struct Turn {  // the next one of a session
    double arrival = 0;
    std::uint64_t session = 0;  // sessions that began before
    std::size_t traffic_class = 0;
    Pos left = 0;                              // turns of the session, with this one
    Request so_far{};                          // the turn before, with its answer as the last segment
    bool operator<(const Turn& other) const {  // the earliest is the top of a priority_queue
      return std::pair(arrival, session) > std::pair(other.arrival, other.session);
    }
  };
  void advance(std::size_t index);
  [[nodiscard]] Request first_of(std::size_t index);
  void plan_turn(Request request, double arrival, std::uint64_t session, Pos left);

  std::vector<TrafficClass> classes_;
  std::vector<std::string> names_;
  std::vector<Stream> streams_;
  std::priority_queue<Turn> turns_;
  std::uint64_t sessions_ = 0;
  Index requests_;
  std::uint64_t seed_;
  double load_;
  Index made_ = 0;
};

}  // namespace serving
