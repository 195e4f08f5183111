// PrefixSharedConfig: the configuration of PrefixShared.
#pragma once

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// PrefixShared::Config.
template <class Eviction>
struct PrefixSharedConfig {
  Index blocks = 0;  ///< blocks in the pool, less than 2^31
  /// Slots in a block: the grain of sharing. With several groups: of the one with the largest rows, at least. That
  /// group gets up to four times as many where no group shall leave more than 1/64 of a block unused, and a multiple
  /// where the state of a recurrent layer takes more than a block: see block_tokens(group).
  Pos block_tokens = 16;
  Index watermark = 0;  ///< blocks that `admission` keeps for the open sequences; less than `blocks`
  /// Most evictable blocks of one tenant; 0: no limit. Sequences without a tenant share one quota.
  Index tenant_quota = 0;
  typename Eviction::Config eviction{};  ///< parameters of the eviction policy
  /// With several groups: tokens that the index can remember; 0: those that the groups which keep everything can hold
  /// in the pool at once, and a quarter more (64 of its nodes at least); where no group keeps everything, eight times
  /// the slots of the pool. An index that is full evicts.
  Index index_tokens = 0;
  /// With several groups: most tokens that `admission` expects in one pass of a prefill; 0: the whole prompt. A group
  /// with a window holds its window and one pass.
  Pos pass_tokens = 0;
};

/// Throws std::invalid_argument, naming the member, if a value is not allowed.
template <class Eviction>
void require_valid(const PrefixSharedConfig<Eviction>& config) {
  require_between(config.blocks, Index{1}, Index{max_pos}, "config.blocks");
  require_between(config.block_tokens, Pos{1}, max_pos, "config.block_tokens");
  require_between(config.watermark, Index{0}, config.blocks - 1, "config.watermark");
  require_between(config.tenant_quota, Index{0}, Index{max_pos}, "config.tenant_quota");
  require(config.index_tokens >= 0, "config.index_tokens", config.index_tokens, "at least 0");
  require(config.pass_tokens >= 0, "config.pass_tokens", config.pass_tokens, "at least 0");
}

}  // namespace v0
}  // namespace kvc
