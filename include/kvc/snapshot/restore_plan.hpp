// RestorePlan: how the sequences of a snapshot with layer groups are restored, and what they share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/policy/restore_options.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/snapshot/group_contents.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {
namespace detail {

/// How the sequences of a snapshot are restored.
class RestorePlan {
 public:
  /// `with_cached`: cached prefixes are restored, too.
  RestorePlan(const GroupContents& contents, bool with_cached) : c_(contents) {
    for (std::size_t s = 0; s < contents.histories.sequences.size(); ++s) {
      if (with_cached || !contents.is_cached(s)) {
        order_.push_back(s);
      }
    }
    std::ranges::stable_sort(order_, [&](std::size_t a, std::size_t b) { return length(a) > length(b); });
    std::vector<std::int32_t> owners(c_.blocks.size(), -1);
    std::vector<std::int32_t> state_owners(c_.stored_states, -1);
    like_.resize(contents.histories.sequences.size());
    known_.resize(like_.size());
    for (const std::size_t s : order_) {
      for (std::size_t g = 0; g < c_.groups.size(); ++g) {
        for (const std::int32_t block : c_.table(s, g)) {
          std::int32_t& owner = owners[static_cast<std::size_t>(block)];
          if (owner < 0) {
            owner = static_cast<std::int32_t>(s);
          } else if (static_cast<std::size_t>(owner) != s) {
            add_shared(s, g, static_cast<std::size_t>(owner), block);
          }
        }
      }
      for (const format::StateRecord& state : c_.states_of(s)) {
        std::int32_t& owner = state_owners[static_cast<std::size_t>(state.number)];
        if (owner < 0) {
          owner = static_cast<std::int32_t>(s);
        } else if (like_[s].owner < 0) {  // nothing but states is shared
          like_[s].owner = owner;
          like_[s].shared = state.length;
        }
      }
      limit_to_equal_tokens(s);
      limit_to_equal_blocks(s);
      tell_known_tokens(s);
    }
  }

  /// Restores all sequences in an owner: a cache, or a policy without rows. `opened(i, seq)` is called for
  /// each before its rows are reserved. False if there is no room; sequences stay open then.
  template <class Owner, class F>
  [[nodiscard]] bool try_restore(Owner& owner, F&& opened) const {
    std::vector<SeqId> handles(like_.size());
    for (const std::size_t s : order_) {
      OpenOptions options;
      options.salt = salt(s);
      const std::optional<Opened> open = owner.try_open(std::span<const Token>{}, options);
      if (!open) {
        return false;
      }
      handles[s] = open->seq;
      opened(s, open->seq);
      if (!has_rows(s)) {
        continue;
      }
      const std::vector<RestoredState> states = states_to_restore(s);
      RestoreOptions restored{.length = length(s), .missing = missing(s)};
      if (like_[s].owner >= 0) {
        restored.like = handles[static_cast<std::size_t>(like_[s].owner)];
        restored.shared = like_[s].shared;
        restored.shares_cross = like_[s].cross;
      }
      restored.states = states;
      restored.tokens = c_.histories.sequences[s].known_tokens;
      restored.defers_cross = true;  // its rows are not there yet
      auto step = owner.try_restore(open->seq, restored);
      if (!step) {
        return false;
      }
      if constexpr (Policy<Owner>) {
        owner.commit(open->seq);
      } else {
        owner.commit(std::move(*step));
      }
    }
    return true;
  }
  /// Sequences in the order in which they are restored.
  [[nodiscard]] std::span<const std::size_t> order() const noexcept { return order_; }

 private:
  struct Like {
    std::int32_t owner = -1;
    Pos shared = 0;
    bool cross = false;
    Pos same_tokens = max_pos;  // so many at most, as far as they are known
  };
  /// How far the tokens are known that the blocks of a sequence stand for, and which sequence knows them: itself, or
  /// one that shares these blocks.
  struct Known {
    std::int32_t sequence = -1;
    Pos length = 0;
  };

  [[nodiscard]] Pos length(std::size_t s) const noexcept { return c_.histories.sequences[s].length; }
  [[nodiscard]] const Salt& salt(std::size_t s) const {
    return c_.histories.salts[static_cast<std::size_t>(c_.histories.salt_of(c_.histories.sequences[s].last))];
  }
  [[nodiscard]] std::span<const PosRange> missing(std::size_t s) const noexcept {
    return std::span(c_.missing).subspan(s * c_.groups.size(), c_.groups.size());
  }
  [[nodiscard]] bool has_rows(std::size_t s) const noexcept {
    for (std::size_t g = 0; g < c_.groups.size(); ++g) {
      if (!c_.table(s, g).empty()) {
        return true;
      }
    }
    return length(s) > 0;
  }
  void add_shared(std::size_t s, std::size_t g, std::size_t owner, std::int32_t block) {
    Like& like = like_[s];
    const bool is_cross = c_.groups[g].cross_rows > 0;
    const Pos end = is_cross ? 0 : std::min(c_.range(block, s, g).last, c_.range(block, owner, g).last);
    if (like.owner < 0 || end > like.shared) {
      like.cross = like.cross && like.owner == static_cast<std::int32_t>(owner);
      like.owner = static_cast<std::int32_t>(owner);
      like.shared = std::max(like.shared, end);
    }
    like.cross = like.cross || (is_cross && like.owner == static_cast<std::int32_t>(owner));
  }
  /// Rows are shared only behind equal tokens, as far as these are known, and for equal salts: anybody can write a file
  /// that says otherwise.
  void limit_to_equal_tokens(std::size_t s) {
    Like& like = like_[s];
    known_[s] = {static_cast<std::int32_t>(s), c_.histories.sequences[s].known_tokens};
    if (like.owner < 0) {
      return;
    }
    if (salt(s).bytes() != salt(static_cast<std::size_t>(like.owner)).bytes()) {
      like = {};
      return;
    }
    Known known;  // of the owner's blocks, the most: all that know them agree
    for_each_owner(s, max_pos, [&](std::size_t owner, Pos shared) {
      if (const Pos length = std::min(known_[owner].length, shared); length > known.length) {
        known = {known_[owner].sequence, length};
      }
    });
    if (known.sequence < 0) {
      return;
    }
    const std::vector<Token> mine = c_.histories.tokens_of(s);
    std::vector<Token> theirs = c_.histories.tokens_of(static_cast<std::size_t>(known.sequence));
    theirs.resize(static_cast<std::size_t>(known.length));
    const auto common = static_cast<std::size_t>(std::ranges::mismatch(mine, theirs).in1 - mine.begin());
    if (common < std::min(mine.size(), theirs.size())) {
      like.same_tokens = static_cast<Pos>(common);
      like.shared = std::min(like.shared, like.same_tokens);
    }
  }
  /// Passes the tokens that a sequence knows of its shared blocks on to these blocks.
  void tell_known_tokens(std::size_t s) {
    for_each_owner(s, like_[s].shared, [&](std::size_t owner, Pos shared) {
      if (const Pos length = std::min(known_[s].length, shared); length > known_[owner].length) {
        known_[owner] = {static_cast<std::int32_t>(s), length};
      }
    });
  }
  /// f(owner, positions) for the sequence whose blocks a sequence shares, and for those whose blocks that one shares,
  /// and so on, as far as the first `shared` positions go.
  template <class F>
  void for_each_owner(std::size_t s, Pos shared, F&& f) const {
    for (std::int32_t owner = like_[s].owner; owner >= 0 && shared > 0;) {
      const auto at = static_cast<std::size_t>(owner);
      f(at, shared);
      shared = std::min(shared, like_[at].shared);
      owner = like_[at].owner;
    }
  }
  /// States are shared if the file says so, and behind equal tokens.
  [[nodiscard]] std::vector<RestoredState> states_to_restore(std::size_t s) const {
    std::vector<RestoredState> states;
    const Like& like = like_[s];
    for (const format::StateRecord& state : c_.states_of(s)) {
      bool is_shared = false;
      if (like.owner >= 0 && state.length <= like.same_tokens) {
        const auto theirs = c_.states_of(static_cast<std::size_t>(like.owner));  // ascending, each length once
        const auto same = std::ranges::lower_bound(theirs, state.length, {}, &format::StateRecord::length);
        is_shared = same != theirs.end() && same->number == state.number;
      }
      states.push_back({state.length, is_shared});
    }
    return states;
  }

  /// Rows of the same tokens that were computed twice may differ in their bits: they stay apart.
  void limit_to_equal_blocks(std::size_t s) {
    Like& like = like_[s];
    for (std::size_t g = 0; g < c_.groups.size() && like.owner >= 0; ++g) {
      if (c_.groups[g].cross_rows > 0) {
        continue;
      }
      const auto other = static_cast<std::size_t>(like.owner);
      std::span<const std::int32_t> theirs = c_.table(other, g);
      for (const std::int32_t block : c_.table(s, g)) {
        const PosRange range = c_.range(block, s, g);
        while (!theirs.empty() && c_.range(theirs[0], other, g).last <= range.first) {
          theirs = theirs.subspan(1);
        }
        if (!theirs.empty() && theirs[0] != block && c_.range(theirs[0], other, g).first < range.last) {
          like.shared = std::min(like.shared, std::max(range.first, c_.range(theirs[0], other, g).first));
          break;
        }
      }
    }
  }

  const GroupContents& c_;
  std::vector<std::size_t> order_;
  std::vector<Like> like_;    // [sequences]
  std::vector<Known> known_;  // [sequences]
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
