// Reservation: room for an offered sequence of a plain cache, all of it or none.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/policy/retention.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/transfer/layers.hpp"
#include "kvc/transfer/offer.hpp"
#include "kvc/transfer/protocol.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// Whether an empty cache could hold `length` positions of one sequence.
template <class Cache>
[[nodiscard]] bool can_ever_hold(const Cache& cache, Pos length) {
  const auto& policy = cache.policy();
  if constexpr (BoundsSequences<typename Cache::PolicyType>) {
    if (length > policy.max_tokens()) {
      return false;
    }
  }
  return length <= policy.blocks() * policy.block_tokens();
}

/// An open sequence whose first `cached` positions are in place. All others are reserved and uncommitted.
template <class Cache>
struct Reservation {
  SeqId seq;
  typename Cache::Append step;
  Pos cached;
  std::vector<WantedRows> wanted;  // [groups]
  std::vector<Token> tokens;       // to publish when the sequence is committed
  std::uint64_t states = 0;        // which of the offered states are wanted: see WantedStatesRecord
};

/// The tokens of a sequence, as an OFFER names them.
struct Prompt {
  std::vector<Token> tokens;
  Salt salt;
};
/// Reads tokens and then the salt, whose sizes `read_offer` has checked; nothing if the salt is malformed.
[[nodiscard]] inline std::optional<Prompt> read_prompt(const Offered& offered, std::span<const std::byte> bytes) {
  Prompt prompt{std::vector<Token>(static_cast<std::size_t>(offered.tokens)), {}};
  const auto token_bytes = bytes.first(prompt.tokens.size() * sizeof(Token));
  if (!token_bytes.empty()) {
    std::memcpy(prompt.tokens.data(), token_bytes.data(), token_bytes.size());
  }
  const auto salt_bytes = bytes.subspan(token_bytes.size());
  std::optional<Salt> salt = Salt::from_bytes({reinterpret_cast<const char*>(salt_bytes.data()), salt_bytes.size()});
  if (!salt) {
    return std::nullopt;
  }
  prompt.salt = std::move(*salt);
  return prompt;
}
[[nodiscard]] inline Refusal malformed_salt() { return {Outcome::broken, "the salt of the offer is malformed"}; }
[[nodiscard]] inline Refusal no_room(Outcome outcome, const Offered& offered) {
  return {outcome, kvc::detail::concat({"for ", std::to_string(offered.length), " positions"})};
}

/// Reserves room for an offered sequence. A policy that admits requests (AdmitsRequests) must also have room for
/// `reserve_tokens` more, which are not reserved. `body` is the body of the OFFER, tokens and then the salt, whose
/// sizes `read_offer` has checked. Returns a refusal if the salt is malformed or there is no room; nothing has changed
/// then, and a policy that admits requests has evicted nothing. O(tokens).
template <class Cache>
[[nodiscard]] std::variant<Refusal, Reservation<Cache>> reserve(Cache& cache, const Offered& offered,
                                                                std::span<const std::byte> body, Pos reserve_tokens,
                                                                const Retention& retention) {
  const std::optional<Prompt> prompt = read_prompt(offered, body);
  if (!prompt) {
    return malformed_salt();
  }
  const std::vector<Token>& tokens = prompt->tokens;
  OpenOptions options;
  options.salt = prompt->salt;
  options.retention = retention;
  if constexpr (AdmitsRequests<typename Cache::PolicyType>) {
    // An attempt to reserve would evict before it fails. For unknown tokens only their number matters.
    const Pos more = std::min<Pos>(reserve_tokens, max_pos - offered.length);
    const Admission admission =
        tokens.empty() ? cache.admission({}, offered.length + more, options) : cache.admission(tokens, more, options);
    if (admission != Admission::now) {
      return no_room(admission == Admission::never ? Outcome::never_fits : Outcome::no_room, offered);
    }
  }
  const std::optional<Opened> opened = cache.try_open(tokens, options);
  if (!opened) {
    return no_room(Outcome::no_room, offered);
  }
  kvc::detail::ScopeGuard undo([&] { cache.close(opened->seq); });
  const auto rest = std::span(tokens).subspan(static_cast<std::size_t>(opened->cached));
  auto step = tokens.empty() ? cache.try_extend_without_tokens(opened->seq, offered.length)
                             : cache.try_extend(opened->seq, rest);
  if (!step) {
    return no_room(Outcome::no_room, offered);
  }
  undo.dismiss();
  return Reservation<Cache>{
      opened->seq, std::move(*step), opened->cached, {WantedRows::all(opened->cached, offered.length)}, {}, 0};
}

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
