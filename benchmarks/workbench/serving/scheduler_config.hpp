// Parameters of a scheduler.
#pragma once

#include <limits>
#include <stdexcept>

#include "kvc/core/error.hpp"
#include "request.hpp"

namespace serving {

/// The order of work within a step.
enum class Order {
  decode_first,  ///< every step decodes all that run, and prefills with what is left of its budget
  prefill_first  ///< a step prefills if it can, and decodes otherwise
};

/// The part of a prompt that must have room for its sequence to be admitted.
enum class Admit { whole_prompt, first_chunk };

/// The sequence that is preempted for one that has no room to continue.
enum class Victim {
  youngest,  ///< possibly the one that needs room
  oldest     ///< of the others: to show the livelock
};

/// Parameters of a Scheduler; `validated` lists their ranges.
struct SchedulerConfig {
  Index max_sequences = 256;  ///< running at once
  Pos step_tokens = 8192;     ///< budget of a step; a longer whole prompt has a prefill of its own
  Pos chunk_tokens = 0;       ///< of one prompt in one step at most; 0: prompts are computed whole
  Pos watermark_tokens = 0;   ///< slots that admission leaves to running sequences
  Order order = Order::decode_first;
  Admit admit = Admit::whole_prompt;
  Victim victim = Victim::youngest;
  /// Asynchronous scheduling: the current step may still read the blocks of a sequence that is preempted while the next
  /// step is composed, so they are freed only after it.
  bool deferred_free = false;
  /// Whether blocks that will be freed are counted as room, instead of preempting further sequences.
  bool counts_deferred = true;
  Token vocabulary = std::numeric_limits<Token>::max();  ///< prompts are synthesised from [0, vocabulary)
};

/// Throws std::invalid_argument.
inline const SchedulerConfig& validated(const SchedulerConfig& config) {
  kvc::require_between(config.max_sequences, Index{1}, Index{1} << 20, "max_sequences");
  kvc::require_between(config.step_tokens, Pos{1}, kvc::max_pos, "step_tokens");
  kvc::require_between(config.chunk_tokens, Pos{0}, kvc::max_pos, "chunk_tokens");
  kvc::require_between(config.watermark_tokens, Pos{0}, kvc::max_pos / 2, "watermark_tokens");
  kvc::require_between(config.vocabulary, Token{1}, std::numeric_limits<Token>::max(), "vocabulary");
  return config;
}

/// Sequences were preempted again and again without one new token.
class Livelock : public std::runtime_error {
 public:
  explicit Livelock(Index preemptions)
      : std::runtime_error("livelock: " + std::to_string(preemptions) + " preemptions, and not one token in between"),
        preemptions_(preemptions) {}
  [[nodiscard]] Index preemptions() const noexcept { return preemptions_; }

 private:
  Index preemptions_;
};

}  // namespace serving
