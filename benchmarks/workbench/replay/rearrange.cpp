#include "rearrange.hpp"

#include <algorithm>
#include <random>
#include <unordered_map>
#include <utility>
#include <vector>

namespace replay {

using kvc_bench::Request;
using kvc_bench::Trace;

void keep_part(Trace& trace, std::size_t number, std::size_t of) {
  const std::size_t size = trace.requests.size();
  const auto begin = trace.requests.begin();
  const auto at = [&](std::size_t part) { return begin + static_cast<std::ptrdiff_t>(size * part / of); };
  trace.requests = std::vector<Request>(std::make_move_iterator(at(number - 1)), std::make_move_iterator(at(number)));
}

void shuffle(Trace& trace, std::uint64_t seed) {
  std::unordered_map<std::int32_t, std::size_t> session_of;
  std::vector<std::int64_t> starts;
  std::vector<std::size_t> sessions;
  for (const Request& request : trace.requests) {
    const std::int32_t root = request.blocks.empty() ? -1 : request.blocks[request.blocks.size() > 1 ? 1 : 0];
    const auto [known, is_new] = session_of.emplace(root, starts.size());
    if (is_new) {
      starts.push_back(request.arrival);
    }
    sessions.push_back(known->second);
  }
  std::vector<std::int64_t> moved = starts;
  std::mt19937_64 random(seed);
  for (std::size_t i = moved.size(); i > 1; --i) {  // std::shuffle is not the same everywhere
    std::swap(moved[i - 1], moved[random() % i]);
  }
  for (std::size_t i = 0; i < trace.requests.size(); ++i) {
    trace.requests[i].arrival += moved[sessions[i]] - starts[sessions[i]];
  }
  std::ranges::stable_sort(trace.requests, {}, &Request::arrival);
}

}  // namespace replay
