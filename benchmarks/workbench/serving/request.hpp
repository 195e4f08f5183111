// A request: its arrival, prompt, length and number of answers, and the patience of its client.
//
// A prompt is described by segments and becomes tokens only when a scheduler considers it, so that a queue of a million
// requests does not hold a million prompts. Equal segments are equal tokens, so prompts can share prefixes.
#pragma once

#include <algorithm>
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
/// An arrival, or the patience of a client, at most: 73 years. Deadlines, their sum, fit Time, and so does max_clock.
inline constexpr Time max_arrival = Time{1} << 61;
/// Where a simulation gives up: 146 years.
inline constexpr Time max_clock = (Time{1} << 62) - 1;

/// `tokens` tokens that depend only on `content` and on their place in the segment.
struct Segment {
  std::uint64_t content = 0;
  Pos tokens = 0;
};

/// One request. `max_output_tokens` >= `output_tokens`, and the prompt has at least one token.
struct Request {
  Index id = 0;  ///< in the order of arrival, from 0
  Time arrival = 0;
  std::size_t traffic_class = 0;   ///< which of Source::classes() it belongs to
  std::vector<Segment> prompt;     ///< at least one token in all, unless `tokens` is the prompt
  std::vector<Token> tokens;       ///< the prompt itself, if it is known
  Pos output_tokens = 1;           ///< of each answer; 0: only the prompt is computed
  Pos max_output_tokens = 1;       ///< the client's limit, which some policies reserve: >= output_tokens
  int samples = 1;                 ///< answers to the one prompt, by fork
  std::optional<Time> patience{};  ///< the client leaves so long after the arrival; at most max_arrival
  Pos pinned_tokens = 0;           ///< first tokens of the prompt to pin once they are computed
  std::string tenant;              ///< prefixes are shared within a tenant

  [[nodiscard]] Pos prompt_tokens() const noexcept {
    Pos sum = static_cast<Pos>(tokens.size());
    for (const Segment& segment : prompt) {
      sum += segment.tokens;
    }
    return sum;
  }
  /// Slots that a sequence of this request takes when its answer has `output` tokens: the last token that is given out
  /// is not stored.
  [[nodiscard]] Index slots(Pos output) const noexcept { return Index{prompt_tokens()} + std::max(output, Pos{1}) - 1; }
};

/// Token `i` of a segment with this content: in [0, vocabulary).
[[nodiscard]] constexpr Token synthetic_token(std::uint64_t content, Index i, Token vocabulary) noexcept {
  const std::uint64_t bits = scramble(content + 0x9e3779b97f4a7c15ULL * (static_cast<std::uint64_t>(i) + 1));
  return static_cast<Token>((bits >> 32) * static_cast<std::uint64_t>(vocabulary) >> 32);
}

/// Content of the answer `sample` to a request: different from any prompt, and the same in every run.
[[nodiscard]] constexpr std::uint64_t answer_content(Index request, int sample) noexcept {
  return scramble(0xa5a5'0000'0000'0000ULL ^ (static_cast<std::uint64_t>(request) << 16) ^
                  static_cast<std::uint64_t>(sample));
}

/// The tokens of a prompt, with capacity for `more`.
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

/// Yields requests one after another, in the order of arrival.
class Source {
 public:
  virtual ~Source() = default;
  [[nodiscard]] virtual std::optional<Request> next() = 0;
  /// Names of the classes of traffic, at least one.
  [[nodiscard]] virtual const std::vector<std::string>& classes() const = 0;
  /// A remark for the results on how the requests were read; often empty. Known at the end.
  [[nodiscard]] virtual std::string note() const { return {}; }
};

}  // namespace serving
