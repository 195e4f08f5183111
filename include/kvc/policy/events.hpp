// Events: how a prefix cache reports its index, so that a router can keep a copy of it.
//
// A listener is a type parameter of PrefixShared; with NoEvents, the default, nothing is computed or stored for it.
// Events are numbered from 0 without gaps: a receiver notices that it missed one, and starts again from
// PrefixShared::for_each_cached. A block id names the cached block from its BlockStored to its BlockRemoved; a parent
// is stored before its children, and removed after them; in a group that drops rows, in any order.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// A block became matchable. Spans are valid during the call only.
struct BlockStored {
  std::uint64_t number = 0;
  BlockId block = no_block;
  BlockId parent = no_block;      ///< the block before it in its prefix; no_block: it is the first
  std::string_view salt;          ///< Salt::bytes() of its prefix
  std::span<const Token> tokens;  ///< its own
  /// Layer group whose rows it holds. With several groups, a block may hold the tokens of several nodes of the index:
  /// each of them is reported, with the same block, and `parent` is the block of the node before it in this group, or
  /// no_block if that has none: a group with a window has blocks in the middle of a prefix.
  std::int32_t group = 0;
  /// With several groups: the node of the index that has the block, of which a NodeAdded told; else no_node.
  std::int32_t node = no_node;
  static constexpr std::int32_t no_node = -1;
};
/// With several groups: the index has a node for these tokens now, with or without blocks. A number names a node until
/// another node is added with it; a node is added after its parent. Spans are valid during the call only.
struct NodeAdded {
  std::int32_t node = BlockStored::no_node;
  std::int32_t parent = BlockStored::no_node;  ///< the node before it in its prefix; no_node: it is the first
  std::string_view salt;                       ///< Salt::bytes() of its prefix
  std::span<const Token> tokens;               ///< its own
};
/// A block is not matchable any more.
struct BlockRemoved {
  std::uint64_t number = 0;
  BlockId block = no_block;
  std::int32_t group = 0;  ///< layer group whose rows it had
};
/// No block is matchable any more. Takes the place of a BlockRemoved for each.
struct AllBlocksCleared {
  std::uint64_t number = 0;
};

/// The contract of a listener: callable, without exceptions, with each kind of event. It is called in the middle of an
/// operation and must not call the cache.
template <class L>
concept EventListener =
    std::default_initializable<L> &&
    requires(L listener, const BlockStored& stored, const BlockRemoved& removed, const AllBlocksCleared& cleared) {
      { L::listens } -> std::convertible_to<bool>;
      { listener(stored) } noexcept;
      { listener(removed) } noexcept;
      { listener(cleared) } noexcept;
    };

/// A listener that wants to hear of nodes, too: listener.on_node(NodeAdded), without exceptions. They have no numbers
/// among the events.
template <class L>
concept NodeListener = EventListener<L> && requires(L listener, const NodeAdded& node) {
  { listener.on_node(node) } noexcept;
};

/// A listener that hears nothing, at no cost: the default.
struct NoEvents {
  static constexpr bool listens = false;
  /// Ignores the event.
  void operator()(const auto&) noexcept {}
};
static_assert(EventListener<NoEvents>);

/// A listener that calls a function.
class EventCallback {
 public:
  using Event = std::variant<BlockStored, BlockRemoved, AllBlocksCleared>;
  static constexpr bool listens = true;

  /// It must not throw (std::terminate) and must not call the cache.
  void call(std::function<void(const Event&)> function) { function_ = std::move(function); }
  /// The same for the nodes of an index of several layer groups.
  void call_for_nodes(std::function<void(const NodeAdded&)> function) { on_node_ = std::move(function); }

  /// Calls the function, if there is one.
  void operator()(const auto& event) noexcept {
    if (function_) {
      function_(Event(event));
    }
  }
  /// Calls the function for nodes, if there is one.
  void on_node(const NodeAdded& node) noexcept {
    if (on_node_) {
      on_node_(node);
    }
  }

 private:
  std::function<void(const Event&)> function_;
  std::function<void(const NodeAdded&)> on_node_;
};
static_assert(NodeListener<EventCallback>);

/// A listener that keeps the last events until they are polled. If it is full, the oldest event is overwritten: a gap
/// in the numbers shows it.
class EventRing {
 public:
  /// An event that owns its salt and tokens.
  struct Record {
    enum class Kind : std::uint8_t { stored, removed, cleared };
    Kind kind = Kind::cleared;
    std::uint64_t number = 0;
    BlockId block = no_block;
    BlockId parent = no_block;
    std::string salt;
    std::vector<Token> tokens;
    std::int32_t group = 0;
  };
  static constexpr bool listens = true;
  static constexpr std::size_t default_capacity = 4096;

  /// Keeps the last `default_capacity` events. Throws std::bad_alloc.
  EventRing() : ring_(default_capacity) {}

  /// Keeps `events` events from now on; waiting ones are lost. A commit stores one event for each block that it fills.
  /// Throws std::invalid_argument if there are none.
  void resize(std::size_t events) {
    require(events > 0, "events", events, "at least 1");
    ring_.assign(events, Record{});
    lost_ += size();
    begin_ = end_ = 0;
  }

  /// The oldest event that waits.
  [[nodiscard]] std::optional<Record> poll() {
    if (begin_ == end_) {
      return std::nullopt;
    }
    std::optional<Record> oldest(ring_[static_cast<std::size_t>(begin_ % ring_.size())]);  // may fail: then it waits on
    ++begin_;
    return oldest;
  }
  /// Events that wait. O(1).
  [[nodiscard]] std::size_t size() const noexcept { return static_cast<std::size_t>(end_ - begin_); }
  /// Events that were overwritten before they were polled.
  [[nodiscard]] std::uint64_t lost() const noexcept { return lost_; }

  /// Keeps the event, with a copy of its salt and tokens. O(tokens).
  void operator()(const BlockStored& event) noexcept {
    Record& record = next(Record::Kind::stored, event.number, event.block);
    record.parent = event.parent;
    record.group = event.group;
    // A record's memory is reused. If a larger record cannot be allocated, the event is lost, and the gap shows it.
#if KVC_HAS_EXCEPTIONS
    try {
#endif
      record.salt.assign(event.salt);
      record.tokens.assign(event.tokens.begin(), event.tokens.end());
#if KVC_HAS_EXCEPTIONS
    } catch (...) {
      --end_;
      ++lost_;
    }
#endif
  }
  /// Keeps the event. O(1).
  void operator()(const BlockRemoved& event) noexcept {
    next(Record::Kind::removed, event.number, event.block).group = event.group;
  }
  /// Keeps the event. O(1).
  void operator()(const AllBlocksCleared& event) noexcept { next(Record::Kind::cleared, event.number, no_block); }

 private:
  Record& next(Record::Kind kind, std::uint64_t number, BlockId block) noexcept {
    if (size() == ring_.size()) {
      ++begin_;
      ++lost_;
    }
    Record& record = ring_[static_cast<std::size_t>(end_++ % ring_.size())];
    record.kind = kind;
    record.number = number;
    record.block = block;
    record.parent = no_block;
    record.group = 0;
    record.salt.clear();
    record.tokens.clear();
    return record;
  }

  std::vector<Record> ring_;
  std::uint64_t begin_ = 0;
  std::uint64_t end_ = 0;
  std::uint64_t lost_ = 0;
};
static_assert(EventListener<EventRing>);

}  // namespace v0
}  // namespace kvc
