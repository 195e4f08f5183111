// The policies that every general test runs over: a type per configuration, with the same three questions to each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace kvc_test {

/// All prefixes collide: what is right with this hash is right with any.
struct ConstantHash {
  std::uint64_t operator()(std::uint64_t, std::span<const kvc::Token>) const noexcept { return 42; }
};

/// The same in every run, so that a failure can be repeated.
struct SeededHash : kvc::ChainHash {
  SeededHash() : ChainHash(1) {}
};

/// Evicts the block that was released last: the least suitable one, and often one with descendants.
class Mru : public kvc::EvictionDefaults {
 public:
  static constexpr std::string_view name = "mru";
  explicit Mru(kvc::Index blocks, const Config& = {}) { stack_.reserve(static_cast<std::size_t>(blocks)); }
  void on_evictable(const SequenceContext&, kvc::BlockId block, std::uint64_t) noexcept { stack_.push_back(block); }
  void on_acquired(kvc::BlockId block) noexcept { stack_.erase(std::find(stack_.begin(), stack_.end(), block)); }
  [[nodiscard]] kvc::BlockId victim(std::uint64_t) const noexcept { return stack_.back(); }
  [[nodiscard]] kvc::Index size() const noexcept { return std::ssize(stack_); }

 private:
  std::vector<kvc::BlockId> stack_;
};

template <kvc::Contiguous::Mode mode, kvc::Contiguous::Fit fit>
struct ContiguousCase {
  using Policy = kvc::Contiguous;
  static constexpr bool shares = false;
  /// About `tokens` slots for at most `sequences` sequences of at most `max_tokens`.
  static Policy::Config config(kvc::Pos tokens, kvc::Index sequences, kvc::Pos max_tokens) {
    return {.sequences = sequences,
            .max_tokens = max_tokens,
            .pool_tokens = tokens,
            .mode = mode,
            .fit = fit,
            .growth_tokens = 4};
  }
};
using Reserve = ContiguousCase<kvc::Contiguous::Mode::reserve, kvc::Contiguous::Fit::first>;
using GrowFirst = ContiguousCase<kvc::Contiguous::Mode::grow, kvc::Contiguous::Fit::first>;
using GrowBest = ContiguousCase<kvc::Contiguous::Mode::grow, kvc::Contiguous::Fit::best>;

template <class P, kvc::Pos tokens_per_block>
struct BlockCase {
  using Policy = P;
  static constexpr bool shares = !std::same_as<P, kvc::Paged>;
  static typename Policy::Config config(kvc::Pos tokens, kvc::Index, kvc::Pos) {
    return {.blocks = kvc::ceil_div<kvc::Index>(tokens, tokens_per_block), .block_tokens = tokens_per_block};
  }
};
using Paged1 = BlockCase<kvc::Paged, 1>;
using Paged4 = BlockCase<kvc::Paged, 4>;
using Paged7 = BlockCase<kvc::Paged, 7>;
using Prefix1 = BlockCase<kvc::PrefixShared<kvc::Lru, SeededHash>, 1>;
using Prefix4 = BlockCase<kvc::PrefixShared<kvc::Lru, SeededHash>, 4>;
using Prefix7 = BlockCase<kvc::PrefixShared<kvc::Lru, SeededHash>, 7>;
using PrefixMru = BlockCase<kvc::PrefixShared<Mru, SeededHash>, 4>;
using Colliding4 = BlockCase<kvc::PrefixShared<kvc::Lru, ConstantHash>, 4>;

}  // namespace kvc_test

#define KVC_ALL_POLICIES                                                                                            \
  kvc_test::Reserve, kvc_test::GrowFirst, kvc_test::GrowBest, kvc_test::Paged1, kvc_test::Paged4, kvc_test::Paged7, \
      kvc_test::Prefix1, kvc_test::Prefix4, kvc_test::Prefix7, kvc_test::PrefixMru, kvc_test::Colliding4
