#include "traffic.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace serving {
namespace {

std::uint64_t content_of(const std::string& name, std::uint64_t variant) {
  std::uint64_t content = 0x7072'6566'6978'0000ULL;
  for (const char c : name) {
    content = scramble(content ^ static_cast<unsigned char>(c));
  }
  return scramble(content + variant);
}
/// Of the tokens that a request alone has.
std::uint64_t own_content(std::uint64_t seed, Index id) {
  return scramble(seed ^ scramble(static_cast<std::uint64_t>(id) + 1));
}

}  // namespace

Pos Lengths::draw(Random& random) const {
  return one_of.empty() ? random.between(low, high) : one_of[random.between(std::size_t{0}, one_of.size() - 1)];
}
Pos Lengths::most() const { return one_of.empty() ? high : *std::ranges::max_element(one_of); }

TrafficSource::TrafficSource(std::vector<TrafficClass> classes, Index requests, std::uint64_t seed, double load)
    : classes_(std::move(classes)), requests_(requests), seed_(seed), load_(load) {
  for (std::size_t i = 0; i < classes_.size(); ++i) {
    names_.push_back(classes_[i].name);
    streams_.push_back({Random(scramble(seed + i)), classes_[i].from, 0});
    if (classes_[i].rate > 0) {
      advance(i);
    }
  }
}

void TrafficSource::advance(std::size_t index) {
  const TrafficClass& c = classes_[index];
  Stream& stream = streams_[index];
  if (c.rate > 0) {
    stream.arrival += stream.random.exponential(1 / (c.rate * load_));
  } else if (++stream.of_burst == c.burst) {
    stream.of_burst = 0;
    stream.arrival += c.every / load_;
  }
  if (c.until > 0 && stream.arrival > c.until) {
    stream.arrival = -1;
  }
}

/// The first request of a session of this class, or one that is no session, with the id that is next.
Request TrafficSource::first_of(std::size_t index) {
  const TrafficClass& c = classes_[index];
  Stream& stream = streams_[index];
  Request request;
  request.id = made_;
  request.traffic_class = index;
  if (c.prefix_tokens > 0) {
    const auto variant = stream.random.between<std::uint64_t>(0, static_cast<std::uint64_t>(c.prefix_variants) - 1);
    request.prompt.push_back({content_of(c.prefix_name, variant), c.prefix_tokens});
    request.pinned_tokens = c.pinned ? c.prefix_tokens : 0;
  }
  request.prompt.push_back({own_content(seed_, request.id), c.prompt.draw(stream.random)});
  request.output_tokens = c.output.draw(stream.random);
  request.max_output_tokens = c.max_output == 0 ? c.output.most() : c.max_output;
  request.samples = c.samples;
  if (c.impatient > 0 && stream.random.unit() < c.impatient) {
    const double patience = c.patience_low + (c.patience_high - c.patience_low) * stream.random.unit();
    request.patience = std::llround(patience * 1e9);
  }
  if (c.tenants > 0) {
    request.tenant = "tenant " + std::to_string(stream.random.between<Index>(1, c.tenants));
  }
  return request;
}

/// The turn after `request`, which came at `arrival` and was made.
void TrafficSource::plan_turn(Request request, double arrival, std::uint64_t session, Pos left) {
  const TrafficClass& c = classes_[request.traffic_class];
  const Index most = Index{request.prompt_tokens()} + request.output_tokens + c.prompt.most() +
                     std::max(c.max_output, c.output.most());
  if (left == 0 || (c.most_tokens > 0 && most > c.most_tokens)) {
    return;
  }
  Random& random = streams_[request.traffic_class].random;
  const double pause = c.pause_low + (c.pause_high - c.pause_low) * random.unit();
  request.prompt.push_back({answer_content(request.id, 0), request.output_tokens});
  turns_.push({arrival + pause, session, request.traffic_class, left, std::move(request)});
}

std::optional<Request> TrafficSource::next() {
  std::optional<std::size_t> index;
  for (std::size_t i = 0; i < streams_.size(); ++i) {
    if (streams_[i].arrival >= 0 && (!index || streams_[i].arrival < streams_[*index].arrival)) {
      index = i;
    }
  }
  if (!index && made_ == 0) {
    throw std::runtime_error("the traffic yields no request: no class has an arrival between its from_s and until_s");
  }
  if ((!index && turns_.empty()) || made_ == requests_) {
    return std::nullopt;
  }
  const bool continues = !turns_.empty() && (!index || turns_.top().arrival < streams_[*index].arrival);
  const std::size_t traffic_class = continues ? turns_.top().traffic_class : *index;
  const double arrival = continues ? turns_.top().arrival : streams_[*index].arrival;
  const TrafficClass& c = classes_[traffic_class];
  if (!(arrival * 1e9 <= static_cast<double>(max_arrival))) {
    throw std::runtime_error("request " + std::to_string(made_ + 1) + ", of the class \"" + c.name +
                             "\", arrives after " + std::to_string(arrival) + " s, at most " +
                             std::to_string(max_arrival / second) +
                             " s are allowed: a higher rate or load, or fewer requests");
  }
  Request request;
  std::uint64_t session = sessions_;
  Pos left = 0;
  if (continues) {
    request = turns_.top().so_far;
    session = turns_.top().session;
    left = turns_.top().left;
    turns_.pop();
    Random& random = streams_[traffic_class].random;
    request.id = made_;
    request.prompt.push_back({own_content(seed_, request.id), c.prompt.draw(random)});
    request.output_tokens = c.output.draw(random);
    request.max_output_tokens = c.max_output == 0 ? c.output.most() : c.max_output;
  } else {
    request = first_of(traffic_class);
    left = c.turns.most() > 1 ? c.turns.draw(streams_[traffic_class].random) : 1;
    ++sessions_;
  }
  request.arrival = std::llround(arrival * 1e9);
  ++made_;
  if (!continues) {
    advance(traffic_class);
  }
  if (left > 1) {
    plan_turn(request, arrival, session, left - 1);
  }
  return request;
}

}  // namespace serving
