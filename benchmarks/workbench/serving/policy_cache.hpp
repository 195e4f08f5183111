// PolicyCache: a cache without keys and values.
#pragma once

#include <utility>

#include "kvc/cache.hpp"
#include "kvc/element/none.hpp"
#include "step.hpp"

namespace serving {

/// A cache whose rows have no bytes, or some of no meaning, so that only its policy works. It also says how many rows a
/// policy had copied, for a cost model to charge.
template <kvc::Policy P, class T = kvc::None>
class PolicyCache : public kvc::KvCache<T, P> {
 public:
  explicit PolicyCache(const typename P::Config& config)
      : PolicyCache(config, kvc::Shape{.layers = 1, .kv_heads = 1, .key_dim = 1}) {}
  /// For a model whose layers differ. Rows weigh as many units as they have elements.
  PolicyCache(const typename P::Config& config, const kvc::LayerGroups& layers) : kvc::KvCache<T, P>(layers, config) {}

  /// Rows that were copied since the last call. O(1).
  [[nodiscard]] Index take_copied_tokens() noexcept {
    const Index all = this->policy().copied_tokens();
    return all - std::exchange(taken_, all);
  }

 private:
  Index taken_ = 0;
};

}  // namespace serving
