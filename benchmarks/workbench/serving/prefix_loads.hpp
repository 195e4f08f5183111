// PrefixLoads: what a scheduler asks of slower tiers. It knows neither stores nor a cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kvc/policy/open_options.hpp"
#include "tier_spec.hpp"

namespace serving {

/// Brings the beginnings of waiting prompts from slower tiers to the pool. Nothing waits.
class PrefixLoads {
 public:
  virtual ~PrefixLoads() = default;

  /// A prompt that waits, and what slower tiers are asked for.
  struct Begun {
    std::uint64_t load = 0;  ///< for `pending`; 0: nothing comes
    Pos found = 0;           ///< first tokens that are in the pool, or are to come
  };
  /// Begins to bring what slower tiers have of a prompt, as far as their rule wants it. `others`: positions of other
  /// prompts that are still to compute, before this one or after it: the server is busy so long, and all of them wait
  /// for what is computed of this prompt.
  virtual Begun begin(std::span<const Token> prompt, const kvc::OpenOptions& options,
                      std::span<const kvc::PosRange> others) = 0;
  /// Whether a load may still bring something.
  [[nodiscard]] virtual bool pending(std::uint64_t load) const = 0;
  /// Nobody waits for a load any more.
  virtual void cancel(std::uint64_t load) = 0;
  /// These positions of a prompt took so long, as a part of their step.
  virtual void computed(kvc::PosRange range, Time took) = 0;
  /// Takes what has arrived, and begins what is to be written.
  virtual void poll() = 0;
  /// Whether a load takes room of the pool.
  [[nodiscard]] virtual bool loading() const = 0;
  /// When `poll` has something to take next: a moment, or empty if nothing is under way.
  [[nodiscard]] virtual std::optional<Time> next() const = 0;

  [[nodiscard]] virtual std::size_t tiers() const = 0;
  [[nodiscard]] virtual TierSample sample(std::size_t tier) const = 0;
};

}  // namespace serving
