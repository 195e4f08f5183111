// A request, in the language in which all traffic is described: when it comes, what its prompt consists of, how long
// its answer will be, how many answers it wants, and whether its client loses patience.
//
// A prompt is described by segments and becomes tokens only when a scheduler looks at it, so that a queue of a million
// requests holds no million prompts. Equal segments are equal tokens: that is how prefixes are shared.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvc/core/types.hpp"
#include "random.hpp"

namespace serving {

using kvc::Index;
using kvc::Pos;
using kvc::Token;

/// Nanoseconds since the run began, or a duration.
using Time = std::int64_t;
inline constexpr Time microsecond = 1'000;
inline constexpr Time millisecond = 1'000'000;
inline constexpr Time second = 1'000'000'000;

/// `tokens` tokens that depend on `content` and on their place in the segment, and on nothing else.
struct Segment {
  std::uint64_t content = 0;
  Pos tokens = 0;
};

struct Request {
  Index id = 0;  ///< in the order of arrival, from 0
  Time arrival = 0;
  std::size_t traffic_class = 0;  ///< which of Source::classes() it belongs to
  std::vector<Segment> prompt;    ///< at least one token in all, unless `tokens` says what the prompt is
  std::vector<Token> tokens;      ///< the prompt itself, where it is known
  Pos output_tokens = 1;          ///< of each answer; at least 1, as a prefill always gives one
  Pos max_output_tokens = 1;  ///< what the client allows, and what is reserved for where that is done: >= output_tokens
  int samples = 1;            ///< answers to the one prompt, by fork
  std::optional<Time> patience{};  ///< the client goes away so long after the arrival, wherever the request then is
  Pos pinned_tokens = 0;           ///< so many first tokens of the prompt are pinned once they are computed
  std::string tenant;              ///< prefixes are shared within a tenant

  [[nodiscard]] Pos prompt_tokens() const noexcept {
    Pos sum = static_cast<Pos>(tokens.size());
    for (const Segment& segment : prompt) {
      sum += segment.tokens;
    }
    return sum;
  }
};

/// Token `i` of what `content` stands for: in [0, vocabulary).
[[nodiscard]] constexpr Token synthetic_token(std::uint64_t content, Index i, Token vocabulary) noexcept {
  const std::uint64_t bits = scramble(content + 0x9e3779b97f4a7c15ULL * (static_cast<std::uint64_t>(i) + 1));
  return static_cast<Token>((bits >> 32) * static_cast<std::uint64_t>(vocabulary) >> 32);
}

/// The tokens of a prompt, with room for `more`.
[[nodiscard]] inline std::vector<Token> prompt_of(const Request& request, Token vocabulary, Pos more = 0) {
  std::vector<Token> tokens = request.tokens;
  tokens.reserve(static_cast<std::size_t>(request.prompt_tokens()) + static_cast<std::size_t>(more));
  for (const Segment& segment : request.prompt) {
    for (Pos i = 0; i < segment.tokens; ++i) {
      tokens.push_back(synthetic_token(segment.content, i, vocabulary));
    }
  }
  return tokens;
}

/// Where requests come from, one after another in the order of their arrival.
class Source {
 public:
  virtual ~Source() = default;
  [[nodiscard]] virtual std::optional<Request> next() = 0;
  /// Names of the classes of traffic, at least one.
  [[nodiscard]] virtual const std::vector<std::string>& classes() const = 0;
};

}  // namespace serving
