#include "bounds.hpp"

#include <algorithm>
#include <limits>
#include <queue>
#include <unordered_map>
#include <utility>

#include "kvc/core/error.hpp"

namespace replay {

Accesses accesses_of(const kvc_bench::Trace& trace) {
  const Index count = trace.blocks();
  kvc::require(count < std::numeric_limits<std::int32_t>::max(), "the number of blocks of the trace", count,
               "less than 2^31 - 1");
  Accesses accesses;
  const auto size = static_cast<std::size_t>(count);
  accesses.block.reserve(size);
  accesses.tokens.reserve(size);
  std::unordered_map<std::int32_t, std::int32_t> numbers;
  for (const kvc_bench::Request& request : trace.requests) {
    Pos before = 0;
    for (std::size_t i = 0; i < request.blocks.size(); ++i) {
      const auto [number, is_new] = numbers.try_emplace(request.blocks[i], static_cast<std::int32_t>(numbers.size()));
      accesses.block.push_back(number->second);
      const Pos tokens = request.tokens_in_first(i + 1, trace.block_tokens);
      accesses.tokens.push_back(tokens - before);
      before = tokens;
    }
    accesses.end.push_back(static_cast<std::int32_t>(accesses.block.size()));
  }
  accesses.unique = static_cast<Index>(numbers.size());

  const auto none = static_cast<std::int32_t>(size);
  std::vector<std::int32_t> next_of_block(numbers.size(), none);
  accesses.next.resize(size);
  for (std::size_t i = size; i-- > 0;) {
    std::int32_t& next = next_of_block[static_cast<std::size_t>(accesses.block[i])];
    accesses.next[i] = next;
    next = static_cast<std::int32_t>(i);
  }
  return accesses;
}

Hits unbounded(const Accesses& accesses) {
  Hits hits;
  std::vector<bool> seen(static_cast<std::size_t>(accesses.unique), false);
  for (std::size_t i = 0; i < accesses.size(); ++i) {
    const auto block = static_cast<std::size_t>(accesses.block[i]);
    if (seen[block]) {
      ++hits.blocks;
      hits.tokens += accesses.tokens[i];
    }
    seen[block] = true;
  }
  return hits;
}

Hits fifo(const Accesses& accesses, Index capacity) {
  Hits hits;
  std::vector<bool> cached(static_cast<std::size_t>(accesses.unique), false);
  std::queue<std::size_t> arrivals;
  for (std::size_t i = 0; i < accesses.size(); ++i) {
    const auto block = static_cast<std::size_t>(accesses.block[i]);
    if (cached[block]) {
      ++hits.blocks;
      hits.tokens += accesses.tokens[i];
      continue;
    }
    if (static_cast<Index>(arrivals.size()) == capacity) {
      cached[arrivals.front()] = false;
      arrivals.pop();
      ++hits.evictions;
    }
    cached[block] = true;
    arrivals.push(block);
  }
  return hits;
}

namespace {
/// A cache that evicts the block whose next access is the furthest away.
class FurthestNext {
 public:
  FurthestNext(const Accesses& accesses, Index capacity)
      : accesses_(accesses), cached_(static_cast<std::size_t>(accesses.unique), false), room_(capacity) {}

  /// Access i: a hit, or the block is cached, and another one evicted where there is no room.
  void access(std::size_t i) {
    const auto block = static_cast<std::size_t>(accesses_.block[i]);
    if (cached_[block]) {
      ++hits_.blocks;
      hits_.tokens += accesses_.tokens[i];
      return;
    }
    if (room_ > 0) {
      --room_;
    } else {
      evict();
    }
    cached_[block] = true;
  }
  /// The block of an access may be evicted from now on; its next access is `next`, or none if that is size().
  void release(std::int32_t next) {
    if (static_cast<std::size_t>(next) == accesses_.size()) {
      ++useless_;
    } else {
      next_.push(next);
    }
  }
  [[nodiscard]] const Hits& hits() const noexcept { return hits_; }

 private:
  void evict() {
    ++hits_.evictions;
    if (useless_ > 0) {
      --useless_;
      return;
    }
    cached_[static_cast<std::size_t>(accesses_.block[static_cast<std::size_t>(next_.top())])] = false;
    next_.pop();
  }

  const Accesses& accesses_;
  std::vector<bool> cached_;
  Index room_;
  Index useless_ = 0;  // cached and never accessed again: any of them may be evicted
  // The next access of each cached block that has one. Entries of past accesses stay below all future ones and are
  // never reached: an eviction finds a useless block, or one with a future access.
  std::priority_queue<std::int32_t> next_;
  Hits hits_;
};
}  // namespace

Hits belady(const Accesses& accesses, Index capacity) {
  FurthestNext cache(accesses, capacity);
  for (std::size_t i = 0; i < accesses.size(); ++i) {
    cache.access(i);
    cache.release(accesses.next[i]);
  }
  return cache.hits();
}

Hits belady_held(const Accesses& accesses, Index capacity) {
  // The next access to the same block, of those that prompts which are cut to the capacity have.
  const auto none = static_cast<std::int32_t>(accesses.size());
  std::vector<std::int32_t> next(accesses.size(), none);
  std::vector<std::int32_t> next_of_block(static_cast<std::size_t>(accesses.unique), none);
  const auto begin_of = [&](std::size_t prompt) {
    return prompt == 0 ? std::size_t{0} : static_cast<std::size_t>(accesses.end[prompt - 1]);
  };
  const auto end_of = [&](std::size_t prompt) {
    return std::min(static_cast<std::size_t>(accesses.end[prompt]),
                    begin_of(prompt) + static_cast<std::size_t>(capacity));
  };
  for (std::size_t prompt = accesses.end.size(); prompt-- > 0;) {
    for (std::size_t i = end_of(prompt); i-- > begin_of(prompt);) {
      std::int32_t& later = next_of_block[static_cast<std::size_t>(accesses.block[i])];
      next[i] = std::exchange(later, static_cast<std::int32_t>(i));
    }
  }
  FurthestNext cache(accesses, capacity);
  for (std::size_t prompt = 0; prompt < accesses.end.size(); ++prompt) {
    for (std::size_t i = begin_of(prompt); i < end_of(prompt); ++i) {
      cache.access(i);
    }
    for (std::size_t i = begin_of(prompt); i < end_of(prompt); ++i) {  // it held them until now
      cache.release(next[i]);
    }
  }
  return cache.hits();
}

}  // namespace replay
