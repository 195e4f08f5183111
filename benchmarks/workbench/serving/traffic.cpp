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
  if (!index || made_ == requests_) {
    return std::nullopt;
  }
  const TrafficClass& c = classes_[*index];
  Stream& stream = streams_[*index];
  if (!(stream.arrival * 1e9 <= static_cast<double>(max_arrival))) {
    throw std::runtime_error("request " + std::to_string(made_ + 1) + ", of the class \"" + c.name +
                             "\", arrives after " + std::to_string(stream.arrival) + " s, at most " +
                             std::to_string(max_arrival / second) +
                             " s are allowed: a higher rate or load, or fewer requests");
  }
  Request request;
  request.id = made_++;
  request.arrival = std::llround(stream.arrival * 1e9);
  request.traffic_class = *index;
  if (c.prefix_tokens > 0) {
    const auto variant = stream.random.between<std::uint64_t>(0, static_cast<std::uint64_t>(c.prefix_variants) - 1);
    request.prompt.push_back({content_of(c.prefix_name, variant), c.prefix_tokens});
    request.pinned_tokens = c.pinned ? c.prefix_tokens : 0;
  }
  request.prompt.push_back(
      {scramble(seed_ ^ scramble(static_cast<std::uint64_t>(request.id) + 1)), c.prompt.draw(stream.random)});
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
  advance(*index);
  return request;
}

}  // namespace serving
