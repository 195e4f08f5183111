// RestoreOptions: how a sequence that was computed elsewhere, or earlier, comes back into a policy.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// The states of recurrent layers after so many tokens of a sequence that is restored.
struct RestoredState {
  Pos length = 0;          ///< tokens that they stand for
  bool is_shared = false;  ///< RestoreOptions::like has the same ones after as many tokens, and may share them
};

/// The rows and states that RestoresSequences reserves. Rows that a group would have dropped take no room, and neither
/// do states that the sequence would have released.
struct RestoreOptions {
  Pos length = 0;  ///< positions of the sequence
  /// [groups] positions whose rows nobody has, none of which a row behind the sequence sees. Empty: all positions that
  /// a group does not retain.
  std::span<const PosRange> missing{};
  /// An open sequence that has the same tokens at the first `shared` positions, and the same rows. Blocks of these are
  /// shared where the policy shares blocks.
  std::optional<SeqId> like{};
  Pos shared = 0;
  bool shares_cross = false;  ///< and rows of the same other input
  bool defers_cross = false;  ///< prompts find rows of another input after publish_tokens, and not after the commit
  /// Of a model with recurrent layers: the states that there are, by ascending length, the last one of `length`. None
  /// of an empty sequence.
  std::span<const RestoredState> states{};
  Pos tokens = 0;  ///< so many publish_tokens will name: memory for them is taken now, so that it needs none then
};

namespace detail {

/// The positions of a group that a restored sequence will not have.
[[nodiscard]] inline PosRange missing_of(const GroupRules& rules, std::size_t group, const RestoreOptions& options) {
  if (!options.missing.empty()) {
    return options.missing[group];
  }
  const Retained& retained = rules.groups[group].retained;
  const Pos from = retained.first_seen(std::max(options.length - rules.rewind, 0));
  return from > retained.kept ? PosRange{retained.kept, from} : PosRange{0, 0};
}

/// Throws std::invalid_argument, naming the member, unless a sequence can be restored so.
inline void require_valid(const RestoreOptions& options, const GroupRules& rules) {
  require(options.length >= 0, "options.length", options.length, "at least 0");
  require(options.missing.empty() || options.missing.size() == rules.groups.size(), "options.missing.size()",
          options.missing.size(), "0 or the number of groups");
  for (std::size_t g = 0; g < options.missing.size(); ++g) {
    const PosRange missing = options.missing[g];
    const Retained& retained = rules.groups[g].retained;
    require(missing.empty() || (retained.kept <= missing.first && missing.last <= retained.first_seen(options.length) &&
                                rules.groups[g].cross_rows == 0),
            concat({"options.missing[", std::to_string(g), "]"}), missing,
            "positions that no row behind the sequence sees");
  }
  require_between(options.shared, Pos{0}, options.length, "options.shared");
  require_between(options.tokens, Pos{0}, options.length, "options.tokens");
  const bool has_states = !rules.states.empty() && options.length > 0;
  require(options.states.empty() || has_states, "options.states.size()", options.states.size(),
          "0: there are no recurrent layers, or no tokens");
  Pos before = 0;
  for (const RestoredState& state : options.states) {
    require(before < state.length, "options.states", state.length, "ascending lengths above 0");
    before = state.length;
  }
  require(before == (has_states ? options.length : 0), "options.states", before,
          "such that the last one has the length of the sequence");
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
