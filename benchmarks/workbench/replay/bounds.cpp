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

Hits belady(const Accesses& accesses, Index capacity) {
  Hits hits;
  const auto none = static_cast<std::int32_t>(accesses.size());
  std::vector<bool> cached(static_cast<std::size_t>(accesses.unique), false);
  Index room = capacity;
  Index useless = 0;  // cached and never accessed again: any of them may be evicted
  // The next access of each cached block that has one. Entries of past accesses stay below all future ones and are
  // never reached: an eviction finds a useless block, or one with a future access.
  std::priority_queue<std::int32_t> next;
  for (std::size_t i = 0; i < accesses.size(); ++i) {
    const auto block = static_cast<std::size_t>(accesses.block[i]);
    if (cached[block]) {
      ++hits.blocks;
      hits.tokens += accesses.tokens[i];
    } else {
      if (room > 0) {
        --room;
      } else {
        ++hits.evictions;
        if (useless > 0) {
          --useless;
        } else {
          cached[static_cast<std::size_t>(accesses.block[static_cast<std::size_t>(next.top())])] = false;
          next.pop();
        }
      }
      cached[block] = true;
    }
    if (accesses.next[i] == none) {
      ++useless;
    } else {
      next.push(accesses.next[i]);
    }
  }
  return hits;
}

Hits belady_held(const Accesses& accesses, Index capacity) {
  Hits hits;
  const auto none = static_cast<std::int32_t>(accesses.size());
  // The next access to the same block, of those that prompts which are cut to the capacity have.
  std::vector<std::int32_t> next(accesses.size(), none);
  std::vector<std::int32_t> next_of_block(static_cast<std::size_t>(accesses.unique), none);
  const auto begin_of = [&](std::size_t prompt) { return prompt == 0 ? 0 : accesses.end[prompt - 1]; };
  const auto end_of = [&](std::size_t prompt) {
    return static_cast<std::int32_t>(std::min<Index>(accesses.end[prompt], begin_of(prompt) + capacity));
  };
  const auto block_of = [&](std::int32_t i) {
    return static_cast<std::size_t>(accesses.block[static_cast<std::size_t>(i)]);
  };
  for (std::size_t prompt = accesses.end.size(); prompt-- > 0;) {
    for (std::int32_t i = end_of(prompt); i-- > begin_of(prompt);) {
      next[static_cast<std::size_t>(i)] = std::exchange(next_of_block[block_of(i)], i);
    }
  }
  std::vector<bool> cached(static_cast<std::size_t>(accesses.unique), false);
  Index room = capacity;
  Index useless = 0;                        // cached, in no later prompt, and not held
  std::priority_queue<std::int32_t> later;  // as in belady, without the running prompt's
  for (std::size_t prompt = 0; prompt < accesses.end.size(); ++prompt) {
    for (std::int32_t i = begin_of(prompt); i < end_of(prompt); ++i) {
      if (cached[block_of(i)]) {
        ++hits.blocks;
        hits.tokens += accesses.tokens[static_cast<std::size_t>(i)];
        continue;
      }
      if (room > 0) {
        --room;
      } else {
        ++hits.evictions;
        if (useless > 0) {
          --useless;
        } else {
          cached[block_of(later.top())] = false;
          later.pop();
        }
      }
      cached[block_of(i)] = true;
    }
    for (std::int32_t i = begin_of(prompt); i < end_of(prompt); ++i) {
      if (next[static_cast<std::size_t>(i)] == none) {
        ++useless;
      } else {
        later.push(next[static_cast<std::size_t>(i)]);
      }
    }
  }
  return hits;
}

}  // namespace replay
