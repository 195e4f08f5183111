// TierLink: one tier as Tiers sees it: its store, what is under way there, and what it lacks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/tier/any_store.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/tiers_config.hpp"
#include "kvc/tier/write_queue.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// An operation that a store has begun, and for whom.
struct Begun {
  StoreOperation operation = StoreOperation::lookup;
  Ticket ticket = 0;
  std::uint64_t load = 0;    ///< of lookups and reads: the number of the load
  std::size_t item = 0;      ///< of reads: the number of the unit in its load; of writes: of the staged block
  BlockId block = no_block;  ///< of writes from the pool: the tier block
  double bytes = 0;          ///< of reads and writes
  double began = 0;          ///< seconds
  double bytes_before = 0;   ///< of reads: bytes that were to be read when it began, its own included
};

struct TierLink {
  TierLink(AnyStore s, Index blocks, WriteRule write, bool pipelined)
      : store(std::move(s)), queue(blocks, pipelined), rule(write) {}

  AnyStore store;
  WriteQueue queue;
  WriteRule rule;
  TierStats stats;
  std::vector<Begun> begun;
  double bytes_reading = 0;
  double mean_value = 0;  ///< of the last blocks that left the pool, where the rule is selective

  /// Makes room for one operation more, so that `remember` cannot fail.
  void reserve() {
    if (begun.size() == begun.capacity()) {
      begun.reserve(2 * begun.size() + 8);
    }
  }
  void remember(const Begun& operation) noexcept { begun.push_back(operation); }
  /// The operation of a ticket, which is forgotten; empty if it is not known.
  [[nodiscard]] std::optional<Begun> recall(Ticket ticket) noexcept {
    const auto found = std::ranges::find(begun, ticket, &Begun::ticket);
    if (found == begun.end()) {
      return std::nullopt;
    }
    const Begun operation = *found;
    *found = begun.back();
    begun.pop_back();
    return operation;
  }
  [[nodiscard]] std::size_t under_way(StoreOperation operation) const noexcept {
    return static_cast<std::size_t>(std::ranges::count(begun, operation, &Begun::operation));
  }
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
