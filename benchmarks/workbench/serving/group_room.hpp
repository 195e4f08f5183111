// Room in a pool of layer groups, whose unit is a block: how many a sequence takes depends on what its groups keep.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "kvc/core/group_rule.hpp"
#include "kvc/policy/capabilities.hpp"
#include "request.hpp"

namespace serving {

/// A policy whose layer groups take their blocks from one pool.
template <class P>
concept PoolsGroups = kvc::GroupTablePolicy<P> && static_cast<bool>(P::shares_blocks);

/// Whether a policy holds several layer groups, or one that drops rows.
template <kvc::Policy P>
[[nodiscard]] bool has_groups(const P& policy) {
  if constexpr (PoolsGroups<P>) {
    return !policy.group_rules().is_plain();
  } else {
    return false;
  }
}

/// Blocks of the states of all recurrent layers after one length. O(kinds of states).
template <PoolsGroups P>
[[nodiscard]] Index state_blocks(const P& policy) {
  Index blocks = 0;
  if constexpr (kvc::HoldsStates<P>) {
    for (std::size_t k = 0; k < policy.group_rules().states.size(); ++k) {
      blocks += policy.state_sizes(static_cast<Index>(k)).blocks;
    }
  }
  return blocks;
}

/// Blocks that a sequence of `length` tokens holds at most while it is extended to this length in passes of `pass`
/// tokens; 0: in one. A group that keeps everything holds all rows; one that drops rows what it keeps, one pass, and
/// blocks that are partly in use; of recurrent layers the states that a pass begins from and those that it writes: at
/// its end, and where prefixes are found also at three other lengths. The bound by which PrefixShared admits.
/// O(groups).
template <PoolsGroups P>
[[nodiscard]] Index most_blocks(const P& policy, Index length, Index pass) {
  pass = pass == 0 ? length : std::min(pass, length);
  Index blocks = state_blocks(policy) * ((kvc::AdmitsRequests<P> ? 5 : 2) + policy.group_rules().rewind);
  for (Index g = 0; g < policy.groups(); ++g) {
    const kvc::Retained& retained = policy.group_rules().groups[static_cast<std::size_t>(g)].retained;
    const Index tokens = policy.block_tokens(g);
    const Index all = kvc::ceil_div(length, tokens);
    if (retained.everything()) {
      blocks += all;
      continue;
    }
    Index rows = retained.window > 0 ? retained.window : kvc::max_pos;
    rows = retained.chunk > 0 ? std::min<Index>(rows, retained.chunk) : rows;
    blocks += std::min(all, kvc::ceil_div<Index>(retained.kept, tokens) +
                                kvc::ceil_div(rows + policy.group_rules().rewind + pass, tokens) + 2);
  }
  return blocks;
}

/// Blocks that a sequence holds. O(groups).
template <PoolsGroups P>
[[nodiscard]] Index held_blocks(const P& policy, kvc::SeqId seq) {
  Index blocks = 0;
  for (Index g = 0; g < policy.groups(); ++g) {
    const kvc::GroupBlocks parts = policy.group_blocks(seq, g);
    blocks += std::ssize(parts.kept) + std::ssize(parts.rest);
  }
  if constexpr (kvc::HoldsStates<P>) {
    blocks += std::ssize(policy.state_lengths(seq)) * state_blocks(policy);
  }
  return blocks;
}

/// Slots of the pool, block_tokens() for each block, that a sequence will still take until it has `length` tokens: at
/// most, in passes of `pass`.
template <PoolsGroups P>
[[nodiscard]] Index slots_to_come(const P& policy, kvc::SeqId seq, Pos length, Pos pass) {
  const Pos rest = length - policy.reserved(seq);
  if (rest <= 1) {
    // Of a decode: one in each group, of which windows free as many; and states, of which the commit frees as many.
    return rest * (policy.groups() + state_blocks(policy) * policy.block_tokens());
  }
  const Index most = most_blocks(policy, length, pass == 0 ? rest : std::min(pass, rest));
  return std::max<Index>(most - held_blocks(policy, seq), 0) * policy.block_tokens();
}

/// Whether a prompt finds room beside `spare` more slots, when it is computed in passes of `pass` tokens; 0: in one.
template <PoolsGroups P>
[[nodiscard]] bool groups_have_room(const P& policy, std::span<const Token> prompt, Pos spare, Pos pass,
                                    const kvc::OpenOptions& options) {
  const auto size = static_cast<Pos>(prompt.size());
  const Index spare_blocks = kvc::ceil_div(spare, policy.block_tokens());
  const Index most = most_blocks(policy, size, pass);
  if constexpr (kvc::AdmitsRequests<P>) {
    if (spare == 0) {
      return policy.can_admit(prompt, 0, options);
    }
    // `admission` reserves tokens: as many as take the spare blocks, and those of the pass, in a group that keeps them.
    Pos block_tokens = 0;
    for (Index g = 0; g < policy.groups(); ++g) {
      if (policy.group_rules().groups[static_cast<std::size_t>(g)].retained.everything()) {
        block_tokens = std::max(block_tokens, policy.block_tokens(g));
      }
    }
    if (block_tokens > 0) {
      const Index reserve = (spare_blocks + most - most_blocks(policy, size, 1)) * block_tokens;
      return policy.can_admit(prompt, static_cast<Pos>(std::min<Index>(reserve, kvc::max_pos - size)), options);
    }
    return policy.can_admit(prompt, 0, options) && most + spare_blocks <= policy.available();
  } else {
    return most + spare_blocks <= policy.available();
  }
}

}  // namespace serving
