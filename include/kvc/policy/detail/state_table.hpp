// StateTable: the recurrent states that one sequence has. WantedStates: those that an extension is to write.
// KeptStates: those that a sequence keeps.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/restore_options.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// A state that an extension is to write.
struct WantedState {
  Pos length = 0;          ///< tokens that it stands for
  bool is_kept = false;    ///< a later prompt is to find it
  bool is_shared = false;  ///< of a restored sequence: RestoredState::is_shared
};

/// Which of some ascending lengths a sequence keeps states of whose next query begins behind `settled` tokens or more:
/// the greatest that is at most `settled`, those above it, and, for later prompts, the greatest multiple of `grain`
/// that is at most `settled` (0: none).
class KeptStates {
 public:
  /// length_of(i) for i < count. O(count).
  template <class F>
  KeptStates(std::size_t count, Pos settled, Pos grain, F&& length_of) noexcept : last_whole_(count) {
    for (; settled_ < count && length_of(settled_) <= settled; ++settled_) {
      last_whole_ = grain > 0 && length_of(settled_) % grain == 0 ? settled_ : last_whole_;
    }
  }
  /// Whether it keeps number i.
  [[nodiscard]] bool operator()(std::size_t i) const noexcept { return i + 1 >= settled_ || i == last_whole_; }
  /// How many lengths are at most `settled`.
  [[nodiscard]] std::size_t settled() const noexcept { return settled_; }

 private:
  std::size_t settled_ = 0;
  std::size_t last_whole_;
};

class WantedStates {
 public:
  /// The states that an extension is to write: those that are asked for, those of `more` that lie in it, which are kept
  /// for later prompts, too, and that of its end. Valid until the next call. Throws std::invalid_argument unless
  /// `asked` ascends within the range, and is empty where there are no recurrent layers or no tokens.
  [[nodiscard]] std::span<const WantedState> list(bool has_states, PosRange range, std::span<const Pos> asked,
                                                  std::span<const Pos> more) {
    require(asked.empty() || has_states, "states_at.size()", asked.size(), "0: there are no recurrent layers");
    list_.clear();
    if (!has_states || range.empty()) {
      require(asked.empty(), "states_at.size()", asked.size(), "0: the extension has no tokens");
      return {};
    }
    for (Pos before = range.first; const Pos length : asked) {
      require(before < length && length <= range.last, "states_at", length,
              "ascending, above the present length and at most that of the extension");
      before = length;
      list_.push_back({length, true});
    }
    for (const Pos length : more) {
      if (range.first < length && length <= range.last) {
        list_.push_back({length, true});
      }
    }
    list_.push_back({range.last, false});
    std::ranges::stable_sort(list_, {}, &WantedState::length);
    const auto is_same = [](const WantedState& a, const WantedState& b) { return a.length == b.length; };
    list_.erase(std::unique(list_.begin(), list_.end(), is_same), list_.end());  // the first of equal ones stays
    return list_;
  }
  /// Of the states that there are of a restored sequence those that it keeps: see KeptStates. At most the last `most`.
  /// Later prompts are to find them. Valid until the next call.
  [[nodiscard]] std::span<const WantedState> restored(std::span<const RestoredState> states, Pos settled, Pos grain,
                                                      Index most = max_pos) {
    list_.clear();
    const KeptStates keeps(states.size(), settled, grain, [&](std::size_t i) { return states[i].length; });
    for (std::size_t i = 0; i < states.size(); ++i) {
      if (keeps(i)) {
        list_.push_back({states[i].length, true, states[i].is_shared});
      }
    }
    const auto count = static_cast<std::size_t>(std::min(most, std::ssize(list_)));
    return std::span<const WantedState>(list_).last(count);
  }

 private:
  std::vector<WantedState> list_;
};

/// For some lengths of a sequence, ascending, the blocks that hold the states of all layers after so many tokens. What
/// is written once is never changed, so sequences share it. It references nothing: GroupTables does.
class StateTable {
 public:
  StateTable() = default;
  /// `blocks`: those of one length.
  explicit StateTable(Index blocks) : blocks_of_one_(static_cast<std::size_t>(blocks)) {}

  [[nodiscard]] std::span<const Pos> lengths() const noexcept { return lengths_; }
  /// Of all lengths, one after the other.
  [[nodiscard]] std::span<const BlockId> blocks() const noexcept { return blocks_; }
  /// Of one length; empty if it has no state.
  [[nodiscard]] std::span<const BlockId> blocks(Pos length) const noexcept {
    const auto found = std::ranges::lower_bound(lengths_, length);
    return found == lengths_.end() || *found != length ? std::span<const BlockId>()
                                                       : of(static_cast<std::size_t>(found - lengths_.begin()));
  }
  /// Whether a sequence can be cut to this length, or go on from it. Nothing is needed to begin.
  [[nodiscard]] bool can_end_at(Pos length) const noexcept {
    return length == 0 || blocks_of_one_ == 0 || std::ranges::binary_search(lengths_, length);
  }
  /// Throws std::invalid_argument, which names the lengths that are possible, unless can_end_at(length).
  void require_end_at(Pos length, std::string_view argument) const {
    if (can_end_at(length)) [[likely]] {
      return;
    }
    std::string there = "0";
    for (const Pos have : lengths_) {
      there += ", " + std::to_string(have);
    }
    throw_invalid(argument, length, concat({"one of ", there, ": of no other length are there recurrent states"}));
  }
  /// How many lengths are at most `length`.
  [[nodiscard]] std::size_t count_to(Pos length) const noexcept {
    return static_cast<std::size_t>(std::ranges::upper_bound(lengths_, length) - lengths_.begin());
  }
  [[nodiscard]] std::span<const BlockId> of(std::size_t i) const noexcept {
    return std::span(blocks_).subspan(i * blocks_of_one_, blocks_of_one_);
  }
  [[nodiscard]] std::span<BlockId> of(std::size_t i) noexcept {
    return std::span(blocks_).subspan(i * blocks_of_one_, blocks_of_one_);
  }
  [[nodiscard]] bool is_kept(std::size_t i) const noexcept { return kept_[i] != 0; }

  void clear() noexcept {
    lengths_.clear();
    blocks_.clear();
    kept_.clear();
  }
  /// Makes room for `count` lengths more; throws std::bad_alloc.
  void reserve(std::size_t count) {
    const std::size_t size = lengths_.size() + count;
    if (size > lengths_.capacity()) {
      const std::size_t room = std::max(size, 2 * lengths_.capacity());
      blocks_.reserve(room * blocks_of_one_);
      kept_.reserve(room);
      lengths_.reserve(room);  // the last one: its capacity says what all have
    }
  }
  /// Adds the greatest length, with the blocks that next() gives. Requires room.
  template <class F>
  void push(const WantedState& state, F&& next) noexcept {
    lengths_.push_back(state.length);
    kept_.push_back(state.is_kept ? 1 : 0);
    for (std::size_t i = 0; i < blocks_of_one_; ++i) {
      blocks_.push_back(next());
    }
  }
  /// Takes out all lengths above this one: f(blocks of a length), the greatest first.
  template <class F>
  void cut(Pos length, F&& f) noexcept {
    while (!lengths_.empty() && lengths_.back() > length) {
      f(of(lengths_.size() - 1));
      pop();
    }
  }
  /// Which lengths `drop` leaves.
  [[nodiscard]] KeptStates kept(Pos settled, Pos grain) const noexcept {
    return {lengths_.size(), settled, grain, [this](std::size_t i) { return lengths_[i]; }};
  }
  /// Whether there is a state of this length, and `drop` leaves it.
  [[nodiscard]] bool keeps(Pos length, Pos settled, Pos grain) const noexcept {
    const std::size_t count = count_to(length);
    return count > 0 && lengths_[count - 1] == length && kept(settled, grain)(count - 1);
  }
  /// Takes out what no query behind `settled` tokens begins from: f(blocks of a length) for all lengths but those of
  /// KeptStates. O(lengths).
  template <class F>
  void drop(Pos settled, Pos grain, F&& f) noexcept {
    const KeptStates keeps = kept(settled, grain);
    if (keeps.settled() <= 1) {
      return;
    }
    std::size_t to = 0;
    for (std::size_t i = 0; i < lengths_.size(); ++i) {
      if (!keeps(i)) {
        f(of(i));
        continue;
      }
      lengths_[to] = lengths_[i];
      kept_[to] = kept_[i];
      std::copy_n(blocks_.begin() + static_cast<std::ptrdiff_t>(i * blocks_of_one_), blocks_of_one_,
                  blocks_.begin() + static_cast<std::ptrdiff_t>(to * blocks_of_one_));
      ++to;
    }
    lengths_.resize(to);
    kept_.resize(to);
    blocks_.resize(to * blocks_of_one_);
  }

 private:
  void pop() noexcept {
    lengths_.pop_back();
    kept_.pop_back();
    blocks_.resize(blocks_.size() - blocks_of_one_);
  }

  std::size_t blocks_of_one_ = 0;
  std::vector<Pos> lengths_;
  std::vector<char> kept_;       // [lengths]
  std::vector<BlockId> blocks_;  // [lengths, blocks of one]
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
