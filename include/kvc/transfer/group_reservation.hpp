// Room for an offered sequence of a cache with layer groups: of each group what it will hold, all of it or none.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/stored_runs.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/policy/restore_options.hpp"
#include "kvc/policy/retention.hpp"
#include "kvc/snapshot/recurrent_layers.hpp"
#include "kvc/transfer/group_offer.hpp"
#include "kvc/transfer/layers.hpp"
#include "kvc/transfer/offer.hpp"
#include "kvc/transfer/protocol.hpp"
#include "kvc/transfer/reservation.hpp"
#include "kvc/transfer/stored_layers.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// Whether an empty cache could hold a sequence of `length` positions, and whether its tokens are no more than the
/// pool: where all groups drop rows, the pool does not bound the length.
template <class Cache>
[[nodiscard]] bool can_ever_hold_groups(const Cache& cache, Pos length, Pos tokens) {
  using Policy = typename Cache::PolicyType;
  const auto& policy = cache.policy();
  if constexpr (BoundsSequences<Policy>) {
    if (length > policy.max_tokens()) {
      return false;
    }
  }
  const GroupRules& rules = policy.group_rules();
  Index blocks = 0;       // of all groups, at least
  Index most_tokens = 0;  // of any group, in the whole pool
  for (std::size_t g = 0; g < rules.groups.size(); ++g) {
    const GroupRule& rule = rules.groups[g];
    const Pos size = policy.block_tokens(static_cast<Index>(g));
    const Pos end = rule.cross_rows > 0 ? rule.cross_rows : length;
    const Pos kept = rule.retained.everything() ? 0 : std::min(rule.retained.kept, end);
    const Pos seen = std::max(rule.retained.first_seen(end), kept);
    const Index slots = policy.blocks() * size;
    most_tokens = std::max(most_tokens, slots);
    if constexpr (Policy::shares_blocks) {
      const Pos kept_blocks = ceil_div(kept, size);
      blocks += Index{kept_blocks} + std::max(ceil_div(end, size) - std::max(seen / size, kept_blocks), 0);
    } else if (Index{kept} + (end - seen) > slots) {
      return false;
    }
  }
  if constexpr (Policy::shares_blocks && HoldsStates<Policy>) {
    for (std::size_t k = 0; k < rules.states.size(); ++k) {
      blocks += policy.state_sizes(static_cast<Index>(k)).blocks;
    }
  }
  return blocks <= policy.blocks() &&
         tokens <= std::max(most_tokens, cache.pool_bytes() / static_cast<Index>(sizeof(Token)));
}

/// `length`, or the least one with which a sequence holds as many rows, about: that of a model whose groups all drop
/// rows. The sum of what each group sees, and of its blocks.
template <HoldsGroups P>
[[nodiscard]] Pos length_to_admit(const P& policy, Pos length) {
  const GroupRules& rules = policy.group_rules();
  Index most = 0;
  for (std::size_t g = 0; g < rules.groups.size(); ++g) {
    const Retained& retained = rules.groups[g].retained;
    if (retained.everything() && rules.groups[g].cross_rows == 0) {
      return length;
    }
    most += Index{retained.kept} + 2 * Index{std::max(retained.window, retained.chunk)} + rules.rewind +
            4 * Index{policy.block_tokens(static_cast<Index>(g))};
  }
  return static_cast<Pos>(std::min(Index{length}, most));
}

/// Whether the policy admits the sequence and `more` tokens behind it. It takes no more than a sequence that is decoded
/// at its end, and no more than one whose prompt is computed, less what of it is found.
template <class Cache>
[[nodiscard]] Admission admission_of_groups(const Cache& cache, const Offered& offered, std::span<const Token> tokens,
                                            Pos reserve_tokens, const OpenOptions& options) {
  const Pos more = std::min<Pos>(reserve_tokens, max_pos - offered.length);
  const Admission decoded =
      cache.admission({}, detail::length_to_admit(cache.policy(), offered.length + more), options);
  return decoded == Admission::now || tokens.empty() ? decoded
                                                     : std::max(decoded, cache.admission(tokens, more, options));
}

/// Which rows of a group are to be received: those of the blocks of a sequence that are none of `found`, which is
/// sorted.
template <HoldsGroups P>
[[nodiscard]] WantedRows wanted_rows(const P& policy, SeqId seq, Index group, Pos end, std::span<const BlockId> found) {
  WantedRows wanted{0, 0, end, end};
  Pos next = 0;  // behind the last run
  kvc::detail::for_each_stored_run(policy, seq, group, {0, end}, [&](const SlotRun& run) {
    if (std::ranges::binary_search(found, run.block)) {
      return;
    }
    if (wanted.then == end) {
      wanted.then = run.first;
    } else if (run.first != next) {
      KVC_ASSERT(wanted.first == wanted.last);  // kept rows and those that are seen: no other gap
      wanted.first = wanted.then;
      wanted.last = next;
      wanted.then = run.first;
    }
    next = run.first + run.count;
  });
  if (next < end && wanted.then < end) {  // kept rows only
    wanted = {wanted.then, next, end, end};
  }
  if (wanted.first == wanted.last) {
    wanted.first = wanted.last = wanted.then;
  }
  return wanted;
}

/// Which of the offered states are to be received: those that a sequence keeps and does not share with `found`, if
/// there is one. See WantedStatesRecord.
template <HoldsGroups P>
[[nodiscard]] std::uint64_t wanted_states(const P& policy, SeqId seq, std::span<const Pos> offered,
                                          const std::optional<Opened>& found) {
  std::uint64_t wanted = 0;
  for (const Pos length : snapshot::detail::state_lengths(policy, seq)) {
    const bool is_shared =
        found && found->cached == length &&
        snapshot::detail::state_block(policy, seq, length) == snapshot::detail::state_block(policy, found->seq, length);
    const auto i = static_cast<unsigned>(std::ranges::lower_bound(offered, length) - offered.begin());
    wanted |= is_shared ? 0 : std::uint64_t{1} << i;
  }
  return wanted;
}

/// Reserves room for an offered sequence of a cache with layer groups, as `reserve` does for a plain one. Its blocks
/// are those that a sequence of this length holds. Of its tokens those that are found in place take no room, and are
/// not requested, where they fill blocks of this cache. The caller publishes the tokens after the commit.
template <class Cache>
[[nodiscard]] std::variant<Refusal, Reservation<Cache>> reserve_groups(Cache& cache, const StoredLayers& layers,
                                                                       Offered& offered,
                                                                       std::span<const std::byte> body,
                                                                       Pos reserve_tokens, const Retention& retention) {
  using Policy = typename Cache::PolicyType;
  if (std::optional<Refusal> refusal = read_groups(body, layers, offered)) {
    return std::move(*refusal);
  }
  std::optional<Prompt> prompt = read_prompt(offered, body.subspan(offered.groups_bytes));
  if (!prompt) {
    return malformed_salt();
  }
  OpenOptions options;
  options.salt = prompt->salt;
  options.retention = retention;
  if constexpr (AdmitsRequests<Policy>) {
    const Admission admission = detail::admission_of_groups(cache, offered, prompt->tokens, reserve_tokens, options);
    if (admission != Admission::now) {
      return no_room(admission == Admission::never ? Outcome::never_fits : Outcome::no_room, offered);
    }
  }
  // A sequence of its own references the rows found for the prompt until the new one shares them.
  std::optional<Opened> found;
  const auto release_found = [&] {
    if (found) {
      cache.close(std::exchange(found, std::nullopt)->seq);
    }
  };
  kvc::detail::ScopeGuard release([&] { release_found(); });
  if constexpr (MatchesPrefixes<Policy>) {
    if (!prompt->tokens.empty()) {
      found = cache.try_open(prompt->tokens, options);
    }
  }
  const std::optional<Opened> opened = cache.try_open(std::span<const Token>{}, options);
  if (!opened) {
    return no_room(Outcome::no_room, offered);
  }
  kvc::detail::ScopeGuard undo([&] { cache.close(opened->seq); });
  const auto groups = static_cast<std::size_t>(cache.policy().groups());
  std::vector<bool> has_cross;
  for (std::size_t g = 0; g < groups; ++g) {
    has_cross.push_back(cache.policy().positions(opened->seq, static_cast<Index>(g)) > 0);
  }
  const auto try_restore = [&] {
    std::vector<PosRange> missing;
    for (std::size_t g = 0; g < groups; ++g) {
      PosRange gone = offered.groups[g].gone;
      if (found && layers.groups()[g].cross_rows == 0) {
        // The rows behind the kept ones are one range: it begins where blocks are shared, if any are.
        const Pos size = cache.policy().block_tokens(static_cast<Index>(g));
        const PosRange not_found =
            detail::not_retained(cache.policy(), found->seq, static_cast<Index>(g), found->cached);
        if (!not_found.empty() && Index{not_found.last} + size <= found->cached) {
          gone = {gone.empty() ? not_found.first : gone.first, std::max(gone.last, not_found.last)};
        }
      }
      missing.push_back(gone);
    }
    std::vector<RestoredState> states;
    for (const Pos length : offered.states) {
      states.push_back({length, found && found->cached == length});
    }
    RestoreOptions restored{.length = offered.length, .missing = missing};
    if (found) {
      restored.like = found->seq;
      restored.shared = found->cached;
    }
    restored.states = states;
    restored.tokens = static_cast<Pos>(prompt->tokens.size());
    return cache.try_restore(opened->seq, restored);
  };
  auto step = try_restore();
  if (!step && found) {  // what is found, and cannot be shared, may be what there is no room for
    release_found();
    step = try_restore();
  }
  if (!step) {
    return no_room(Outcome::no_room, offered);
  }
  std::vector<WantedRows> wanted;
  for (std::size_t g = 0; g < groups; ++g) {
    const auto group = static_cast<Index>(g);
    const Pos end = layers.end(group, offered.length);
    std::vector<BlockId> blocks;
    if (found && layers.groups()[g].cross_rows == 0) {
      kvc::detail::for_each_stored_run(cache.policy(), found->seq, group, {0, found->cached},
                                       [&](const SlotRun& run) { blocks.push_back(run.block); });
      std::ranges::sort(blocks);
    }
    wanted.push_back(has_cross[g] ? WantedRows::all(end, end)  // the salt names the other input
                                  : detail::wanted_rows(cache.policy(), opened->seq, group, end, blocks));
  }
  const std::uint64_t states = detail::wanted_states(cache.policy(), opened->seq, offered.states, found);
  const Pos cached = found ? found->cached : 0;
  undo.dismiss();
  return Reservation<Cache>{opened->seq,       std::move(*step),          cached,
                            std::move(wanted), std::move(prompt->tokens), states};
}

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
