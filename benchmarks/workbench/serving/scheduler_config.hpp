// How a scheduler decides.
#pragma once

#include <limits>
#include <stdexcept>

#include "kvc/core/error.hpp"
#include "request.hpp"

namespace serving {

enum class Order {
  decode_first,  ///< every step decodes all that run, and prefills with what is left of its budget
  prefill_first  ///< a step prefills where anything can be, and decodes where nothing can
};

/// What must have room for a sequence to be taken on.
enum class Admit { whole_prompt, first_chunk };

/// Who is preempted for a sequence that has no room to go on.
enum class Victim {
  youngest,  ///< which may be the needy one itself
  oldest     ///< of the others: to show what comes of it
};

struct SchedulerConfig {
  Index max_sequences = 256;  ///< that run at once
  Pos step_tokens = 8192;     ///< budget of a step; a whole prompt that is longer has a prefill to itself
  Pos chunk_tokens = 0;       ///< of one prompt in one step at most; 0: prompts are computed whole
  Pos watermark_tokens = 0;   ///< slots that admission leaves to those that run
  Order order = Order::decode_first;
  Admit admit = Admit::whole_prompt;
  Victim victim = Victim::youngest;
  /// With asynchronous scheduling, the step under way may still read the blocks of a sequence that is preempted while
  /// the next one is composed: they come back only after it.
  bool deferred_free = false;
  /// Whether blocks that will come back are counted on, or more and more sequences preempted for the want of them.
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

/// Sequences were preempted over and over, and not one token came of it.
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
