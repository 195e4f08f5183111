// The interface between the scheduler and two things that it does not know: the contents of a cache, and time.
//
//   concept ServingCache      a cache with the interface of kvc::KvCache. PolicyCache is one without bytes.
//   concept Executor          computes a step, or the time that it would take
//
//   expression                effect
//   executor.now()            returns nanoseconds since the run began
//   executor.wait_until(t)    there is nothing to do before t: the time is t or later afterwards
//   executor.run(cache, step) writes the rows of every Work's append, in all layers, and the next tokens to
//                             step.sampled; does not commit. Time passes.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "group_room.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "request.hpp"

namespace serving {

/// A cache that a Scheduler can use: see the head of this file.
template <class C>
concept ServingCache = requires(C cache, const C& view, kvc::SeqId seq, std::span<const Token> tokens, Pos at,
                                const kvc::OpenOptions& options, typename C::Append append) {
  typename C::PolicyType;
  { cache.try_open(tokens, options) } -> std::same_as<std::optional<kvc::Opened>>;
  { cache.try_extend(seq, tokens) } -> std::same_as<std::optional<typename C::Append>>;
  { append.range() } -> std::same_as<kvc::PosRange>;  // and its destructor takes back what was not committed
  cache.commit(std::move(append));
  { cache.try_fork(seq, at) } -> std::same_as<std::optional<kvc::SeqId>>;
  cache.close(seq);
  { view.length(seq) } -> std::same_as<Pos>;
  { view.policy() } -> std::same_as<const typename C::PolicyType&>;
  { view.stats() } -> std::same_as<kvc::Stats>;
};

/// Consecutive positions of one sequence to compute: a prompt or a chunk of it, or one token.
template <class Cache>
struct Work {
  Index request = 0;
  int sample = 0;  ///< which of the request's answers
  kvc::SeqId seq;
  typename Cache::Append append;
  std::span<const Token> tokens;  ///< of append.range()
  bool prefill = false;           ///< of a prompt, or recomputed after a preemption
  Pos answered = 0;               ///< known tokens of the answer
  std::size_t wanted = 0;         ///< next tokens to sample: 0 within a prompt; several where it will be forked
  std::size_t first_wanted = 0;   ///< they go to step.sampled[first_wanted ...]
  std::size_t job = 0;            ///< for the scheduler
};

/// The work of one step, and the tokens that it samples.
template <class Cache>
struct Step {
  std::vector<Work<Cache>> work;
  std::vector<Token> sampled;
  Index prefill_tokens = 0;
  Index decode_tokens = 0;

  void clear() {
    work.clear();
    sampled.clear();
    prefill_tokens = 0;
    decode_tokens = 0;
  }
};

/// Computes steps and keeps the time: see the head of this file.
template <class E, class Cache>
concept Executor =
    ServingCache<Cache> && requires(E executor, const E& clock, Time t, Cache& cache, Step<Cache>& step) {
      { clock.now() } -> std::same_as<Time>;
      executor.wait_until(t);
      executor.run(cache, step);
    };

/// Slots of the pool: block_tokens() for each block. With layer groups a block of another group may have more of them,
/// and slots measure blocks.
template <kvc::Policy P>
[[nodiscard]] Index pool_tokens(const P& policy) {
  return policy.blocks() * policy.block_tokens();
}

/// Tokens that one sequence can have at most, as far as they can be counted alone: not where there are layer groups.
template <kvc::Policy P>
[[nodiscard]] Index longest_sequence(const P& policy) {
  if constexpr (kvc::BoundsSequences<P>) {
    return std::min<Index>(pool_tokens(policy), policy.max_tokens());
  } else {
    return has_groups(policy) ? Index{kvc::max_pos} : pool_tokens(policy);
  }
}

/// Whether an empty pool has room for a sequence of `tokens`, computed in passes of `pass` tokens; 0: in one.
template <kvc::Policy P>
[[nodiscard]] bool fits_alone(const P& policy, Index tokens, Pos pass) {
  if constexpr (PoolsGroups<P>) {
    if (has_groups(policy)) {
      return most_blocks(policy, tokens, pass) <= policy.blocks();
    }
  }
  return tokens <= longest_sequence(policy);
}

/// A policy with a mode in which a sequence takes all its slots when it is opened.
template <class P>
concept HasReserveMode = kvc::HasConfig<P> && requires(const typename P::Config& config) {
  { config.mode == P::Mode::reserve } -> std::convertible_to<bool>;
};

/// Whether a sequence takes all slots that its client allows when it is opened.
template <kvc::Policy P>
[[nodiscard]] bool reserves_maximum(const P& policy) {
  if constexpr (HasReserveMode<P>) {
    return policy.config().mode == P::Mode::reserve;
  } else {
    return false;
  }
}

/// Slots that are free or only cached. For Contiguous, in holes of any size.
/// O(1).
template <kvc::Policy P>
[[nodiscard]] Index available_tokens(const P& policy) {
  if constexpr (kvc::BlockTablePolicy<P>) {
    return policy.available() * policy.block_tokens();
  } else {
    return policy.available();
  }
}

/// Whether a new sequence of `tokens`, computed in passes of `pass` (0: in one), may find room beside `spare` more
/// slots. For a policy that needs contiguous room this is necessary but not sufficient: only trying tells.
template <ServingCache C>
[[nodiscard]] bool may_have_room(const C& cache, std::span<const Token> tokens, Pos spare, Pos pass,
                                 const kvc::OpenOptions& options) {
  const auto& policy = cache.policy();
  if constexpr (PoolsGroups<typename C::PolicyType>) {
    if (has_groups(policy)) {
      return groups_have_room(policy, tokens, spare, pass, options);
    }
  }
  if constexpr (kvc::AdmitsRequests<typename C::PolicyType>) {
    return policy.can_admit(tokens, spare, options);
  } else if constexpr (kvc::BlockTablePolicy<typename C::PolicyType>) {
    return kvc::ceil_div<Index>(static_cast<Index>(tokens.size()) + spare, policy.block_tokens()) <= policy.available();
  } else {
    return static_cast<Index>(tokens.size()) + spare <= policy.available();
  }
}

}  // namespace serving
