// Load: a prefix on its way from slower tiers to the pool.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/policy/prefix_pin.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {}  // namespace detail

/// A sequence on a prefix that is still on its way: see Tiers::open_early.
struct EarlySequence {
  SeqId seq{};
  Pos pending = 0;            ///< its length: positions of the prefix
  std::uint64_t load = 0;     ///< number of the load
  std::uint64_t attempt = 0;  ///< of the load
};

namespace detail {

/// The items of a load are the tier blocks of its prompt: what each node of the index would have in each column. Item
/// i * columns + s is that of node i. A unit is an item's share of a step: some layers of the model. Unit
/// step * items + item; with one step a unit is an item.
struct Load {
  enum class State : std::uint8_t {
    absent,    ///< to be read
    reading,   ///< a read is under way
    in_place,  ///< or nothing of it is to be read
  };
  struct Item {
    RecordInfo info{};       ///< its tokens are those of the prompt
    BlockId to = no_block;   ///< the block of the pool to read to; of states, the first one
    Pos row = 0;             ///< of the first token, in that block
    bool is_needed = false;  ///< it is read, or copied
  };
  struct Unit {
    State state = State::absent;
    std::uint8_t tier = 0;  ///< that it is, or was, read from
  };
  static constexpr std::uint8_t from_pool = 0xff;  ///< in place of a tier: it was copied

  std::uint64_t number = 0;
  std::vector<Token> prompt;
  Salt salt;
  std::size_t columns = 1;
  std::size_t steps = 1;
  std::vector<Item> items;            ///< [nodes of the prompt, columns]
  std::vector<Unit> units;            ///< [steps, items]
  std::vector<BlockKey> keys;         ///< of the items from `first * columns` on
  std::vector<std::uint8_t> found;    ///< [tiers, keys] the answers
  std::vector<BlockId> states;        ///< blocks of the states behind the last node, kind after kind
  std::vector<std::size_t> state_at;  ///< [columns + 1] where those of a column begin in `states`
  std::size_t first = 0;              ///< node from which on the tiers were asked
  std::size_t cached = 0;             ///< nodes that the pool had when they were
  std::size_t arrived = 0;            ///< nodes at the beginning that are matchable
  std::size_t end = 0;                ///< and that will be, at most
  std::size_t next = 0;               ///< the next unit to read
  std::size_t lookups = 0;            ///< under way
  std::size_t reads = 0;
  std::size_t wanted = 0;  ///< nodes that the load began with
  int attempts = 0;        ///< at a prefix of several groups
  bool planned = false;
  bool lacks = false;  ///< a unit that a whole arrival needs cannot be had
  std::optional<PinId> pin;
  bool is_early = false;  ///< a sequence was opened on it

  [[nodiscard]] std::span<std::uint8_t> answers(std::size_t tier) noexcept {
    return std::span(found).subspan(tier * keys.size(), keys.size());
  }
  [[nodiscard]] std::size_t nodes() const noexcept { return items.size() / columns; }
  /// Whether a tier was asked for an item and has it.
  [[nodiscard]] bool has(std::size_t tier, std::size_t item) const noexcept {
    return item >= first * columns && found[tier * keys.size() + item - first * columns] != 0;
  }
  void forget(std::size_t tier, std::size_t item) noexcept { answers(tier)[item - first * columns] = 0; }
  /// The fastest tier that has an item.
  [[nodiscard]] std::optional<std::size_t> source(std::size_t item) const noexcept {
    const std::size_t tiers = keys.empty() ? 0 : found.size() / keys.size();
    for (std::size_t t = 0; t < tiers; ++t) {
      if (has(t, item)) {
        return t;
      }
    }
    return std::nullopt;
  }
  /// The tiers that have an item, one bit for each.
  [[nodiscard]] std::uint8_t holders(std::size_t item) const noexcept {
    std::uint8_t tiers = 0;
    for (std::size_t t = 0; !keys.empty() && t < found.size() / keys.size(); ++t) {
      tiers = static_cast<std::uint8_t>(tiers | (has(t, item) ? 1 : 0) << t);
    }
    return tiers;
  }
  [[nodiscard]] Unit& unit(std::size_t step, std::size_t item) noexcept { return units[step * items.size() + item]; }
  /// Whether all of an item that is needed is in place, or its share of one step.
  [[nodiscard]] bool in_place(std::size_t item) const noexcept {
    for (std::size_t step = 0; step < steps; ++step) {
      if (!in_place(step, item)) {
        return false;
      }
    }
    return true;
  }
  [[nodiscard]] bool in_place(std::size_t step, std::size_t item) const noexcept {
    return units[step * items.size() + item].state == State::in_place;
  }
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
