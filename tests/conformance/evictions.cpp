// Every eviction policy keeps the contract, and the suite rejects wrong ones.
#include <algorithm>
#include <string>
#include <vector>

#include "catch.hpp"
#include "conformance/broken_law.hpp"
#include "kvc/policy/eviction/cost_aware.hpp"
#include "kvc/policy/eviction/fifo.hpp"
#include "kvc/policy/eviction/lfu.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/eviction/priority.hpp"
#include "kvc/policy/eviction/reuse_hazard.hpp"
#include "kvc/policy/eviction/s3_fifo.hpp"
#include "kvc/policy/eviction/tiny_lfu.hpp"
#include "kvc/testing/eviction_conformance.hpp"
#include "policies.hpp"

namespace {
using namespace kvc;

/// The minimal model: a stack of evictable blocks.
class MinimalEviction : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "minimal";
  explicit MinimalEviction(Index blocks, const Config& = {}) { evictable_.reserve(static_cast<std::size_t>(blocks)); }

  void on_evictable(const SequenceContext&, BlockId block, std::uint64_t) noexcept { evictable_.push_back(block); }
  void on_acquired(BlockId block) noexcept { std::erase(evictable_, block); }
  [[nodiscard]] BlockId victim(std::uint64_t) const noexcept { return evictable_.back(); }
  [[nodiscard]] Index size() const noexcept { return std::ssize(evictable_); }

 protected:
  std::vector<BlockId> evictable_;
};
static_assert(EvictionPolicy<MinimalEviction>);

struct ForgetsAcquired : MinimalEviction {
  using MinimalEviction::MinimalEviction;
  void on_acquired(BlockId) noexcept {}
};
/// Names a block that a sequence references.
struct NamesReferenced : MinimalEviction {
  using MinimalEviction::MinimalEviction;
  void on_acquired(BlockId block) noexcept {
    MinimalEviction::on_acquired(block);
    last_ = block;
  }
  [[nodiscard]] BlockId victim(std::uint64_t now) const noexcept {
    return last_ != no_block ? last_ : MinimalEviction::victim(now);
  }
  BlockId last_ = no_block;
};
struct NamesNothing : MinimalEviction {
  using MinimalEviction::MinimalEviction;
  [[nodiscard]] BlockId victim(std::uint64_t) const noexcept { return no_block; }
};
struct CountsCached : MinimalEviction {
  using MinimalEviction::MinimalEviction;
  void on_cached(auto&, const StoredBlock&, std::uint64_t) noexcept { ++cached_; }
  void on_uncached(BlockId) noexcept { --cached_; }
  [[nodiscard]] Index size() const noexcept { return cached_; }
  Index cached_ = 0;
};
struct ChangesItsMind : MinimalEviction {
  using MinimalEviction::MinimalEviction;
  [[nodiscard]] BlockId victim(std::uint64_t) noexcept { return evictable_[turn_++ % evictable_.size()]; }
  std::size_t turn_ = 0;
};

/// The law that an eviction policy breaks, as the suite says it; empty if it keeps the contract.
template <class E>
std::string broken_eviction_law() {
  return kvc_test::broken_law([] { testing::eviction_conformance<E>(); });
}
}  // namespace

TEMPLATE_TEST_CASE("An eviction policy keeps the contract", "[eviction][conformance]", CostAware, Fifo, Lfu, Lru,
                   Priority, ReuseHazard, S3Fifo, TinyLfu, kvc_test::Mru, MinimalEviction) {
  testing::eviction_conformance<TestType>();
}

TEST_CASE("The suite rejects an eviction policy that breaks the contract", "[eviction][conformance]") {
  using kvc_test::contains;
  CHECK_THAT(broken_eviction_law<ForgetsAcquired>(), contains("blocks are evictable"));
  CHECK_THAT(broken_eviction_law<NamesReferenced>(),
             contains("which is referenced") || contains("which is not cached"));
  CHECK_THAT(broken_eviction_law<NamesNothing>(), contains("which is no block"));
  CHECK_THAT(broken_eviction_law<CountsCached>(), contains("size() is 1, and 0 blocks are evictable"));
  CHECK_THAT(broken_eviction_law<ChangesItsMind>(), contains("changes its mind"));
}
