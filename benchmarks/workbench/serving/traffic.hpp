// Synthetic traffic: classes of requests, each with its arrivals, prompts and answers, from a seed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
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
  void advance(std::size_t index);

  std::vector<TrafficClass> classes_;
  std::vector<std::string> names_;
  std::vector<Stream> streams_;
  Index requests_;
  std::uint64_t seed_;
  double load_;
  Index made_ = 0;
};

}  // namespace serving
