// What passes between the scheduler and the two things it does not know: what a cache stores, and what time is.
//
//   concept ServingCache      a cache in the words of kvc::KvCache, which satisfies it. PolicyCache is one without
//                             bytes.
//   concept Executor          computes a step, or says how long it would take
//
//   expression                does
//   executor.now()            nanoseconds since the run began
//   executor.wait_until(t)    nothing is to be done before t: the time is t after it, or later
//   executor.run(cache, step) makes the rows of every Work's append, in all layers, and writes the next tokens to
//                             step.sampled; does not commit. Time passes.
#pragma once

#include <concepts>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "request.hpp"

namespace serving {

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

/// A stretch of positions of one sequence that is to be computed: a prompt or a chunk of it, or one token.
template <class Cache>
struct Work {
  Index request = 0;
  int sample = 0;  ///< which of the request's answers
  kvc::SeqId seq;
  typename Cache::Append append;
  std::span<const Token> tokens;  ///< of append.range()
  bool prefill = false;           ///< of a prompt, or computed again after a preemption
  Pos answered = 0;               ///< tokens of the answer that are known
  std::size_t wanted = 0;         ///< next tokens: 0 within a prompt; several where a prompt will be forked
  std::size_t first_wanted = 0;   ///< they go to step.sampled[first_wanted ...]
  std::size_t job = 0;            ///< for the scheduler
};

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

template <class E, class Cache>
concept Executor =
    ServingCache<Cache> && requires(E executor, const E& clock, Time t, Cache& cache, Step<Cache>& step) {
      { clock.now() } -> std::same_as<Time>;
      executor.wait_until(t);
      executor.run(cache, step);
    };

/// Slots of the pool.
template <kvc::Policy P>
[[nodiscard]] Index pool_tokens(const P& policy) {
  return policy.blocks() * policy.block_tokens();
}

/// Slots that are free, or would be if what is only cached were evicted. For Contiguous, in holes of whatever size.
/// O(1).
template <kvc::Policy P>
[[nodiscard]] Index available_tokens(const P& policy) {
  if constexpr (kvc::BlockTablePolicy<P>) {
    return policy.available() * policy.block_tokens();
  } else {
    return policy.available();
  }
}

/// Whether a new sequence of `tokens` may find room beside `spare` more slots. For a policy that needs room in one
/// piece this is necessary and not enough: only trying tells.
template <ServingCache C>
[[nodiscard]] bool may_have_room(const C& cache, std::span<const Token> tokens, Pos spare,
                                 const kvc::OpenOptions& options) {
  const auto& policy = cache.policy();
  if constexpr (kvc::AdmitsRequests<typename C::PolicyType>) {
    return policy.can_admit(tokens, spare, options);
  } else if constexpr (kvc::BlockTablePolicy<typename C::PolicyType>) {
    return kvc::ceil_div<Index>(static_cast<Index>(tokens.size()) + spare, policy.block_tokens()) <= policy.available();
  } else {
    return static_cast<Index>(tokens.size()) + spare <= policy.available();
  }
}

}  // namespace serving
