// The suite of the policy contract rejects policies that break it: each of these is the minimal policy with one fault.
#include <string>

#include "catch.hpp"
#include "conformance/broken_law.hpp"
#include "conformance/corruption.hpp"
#include "conformance/minimal_policy.hpp"
#include "kvc/testing/policy_conformance.hpp"

namespace {
using namespace kvc;

/// The law that a policy breaks, as the suite says it; empty if it keeps the contract.
template <class P>
std::string broken_law() {
  return kvc_test::broken_law([] { testing::policy_conformance<P>({.blocks = 24, .block_tokens = 4}); });
}

struct Right : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
};

struct VerifiesNothing : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  void verify() const {}
};

struct VerifiesTablesOnly : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  void verify() const {
    sequences_.for_each([&](const BlockSequence& s) {
      if (static_cast<Index>(s.table.size()) != blocks_for(s.lengths.reserved)) {
        throw_error(InvariantError("a table is too short"));
      }
    });
  }
};

/// Drops the second position from what attention reads.
struct HasGaps : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    for (Pos p = range.first; p < range.last; ++p) {
      if (p != 1) {
        MinimalPolicy::for_each_run(seq, {p, p + 1}, f);
      }
    }
    MinimalPolicy::for_each_run(seq, {range.last, range.last}, f);
    sequences_.at(seq).lengths.check_range(range);
  }
};

struct RunsBackwards : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    std::vector<SlotRun> runs;
    MinimalPolicy::for_each_run(seq, range, [&](const SlotRun& run) { runs.insert(runs.begin(), run); });
    for (const SlotRun& run : runs) {
      f(run);
    }
  }
};

/// Every block is the same one.
struct Overlaps : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    MinimalPolicy::for_each_run(seq, range, [&](SlotRun run) {
      run.block = BlockId{0};
      f(run);
    });
  }
};

struct LeavesThePool : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    MinimalPolicy::for_each_run(seq, range, [&](SlotRun run) {
      run.block = static_cast<BlockId>(to_index(run.block) + blocks());
      f(run);
    });
  }
};

/// Takes what is left before it finds that it is too little.
struct FailsHalfway : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    std::optional<Extension> extension = MinimalPolicy::try_extend(seq, count, tokens);
    if (!extension) {
      while (pool_.available() > 0) {
        (void)pool_.allocate();
      }
    }
    return extension;
  }
};

struct NeverHasRoom : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    (void)sequences_.at(seq).lengths.checked_extension(seq, count, tokens.size());
    return std::nullopt;
  }
};

struct CommitLoses : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  void commit(SeqId seq) {
    MinimalPolicy::commit(seq);
    truncate(seq, std::max(0, length(seq) - 1));
  }
};

struct CountsTooEarly : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  [[nodiscard]] Pos length(SeqId seq) const { return reserved(seq); }
};

struct RollbackKeeps : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  void rollback(SeqId seq) noexcept {
    if (BlockSequence* const s = sequences_.find(seq)) {
      s->lengths.commit();
    }
  }
};

struct RollbackLeaks : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  void rollback(SeqId seq) noexcept {
    if (BlockSequence* const s = sequences_.find(seq)) {
      s->lengths.rollback();
    }
  }
  void verify() const {}
};

struct ForkForgetsToCopy : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    std::optional<Forked> forked = MinimalPolicy::try_fork(parent, at);
    if (forked) {
      forked->copies = {};
    }
    return forked;
  }
};

struct ForkWantsACommit : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    sequences_.at(parent).lengths.check_committed(parent);
    return MinimalPolicy::try_fork(parent, at);
  }
};

struct TruncateKeeps : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  void truncate(SeqId seq, Pos length) { sequences_.at(seq).lengths.check_truncate(seq, length); }
};

struct TruncateTakesAnything : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  void truncate(SeqId seq, Pos length) { MinimalPolicy::truncate(seq, std::clamp(length, Pos{0}, this->length(seq))); }
};

struct CloseLeaks : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  void close(SeqId seq) {
    (void)sequences_.at(seq);
    sequences_.erase(seq);
  }
};

struct KnowsEverybody : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  [[nodiscard]] bool contains(SeqId) const noexcept { return true; }
};

struct LeavesNothingToCompute : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& options = {}) {
    std::optional<Opened> opened = MinimalPolicy::try_open(prompt, options);
    opened->cached = static_cast<Pos>(prompt.size());
    return opened;
  }
};

struct MiscountsSequences : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  [[nodiscard]] Stats stats() const {
    Stats stats = MinimalPolicy::stats();
    stats.sequences = 0;
    return stats;
  }
};

struct LosesBlocksInStats : MinimalPolicy {
  using MinimalPolicy::MinimalPolicy;
  [[nodiscard]] Stats stats() const {
    Stats stats = MinimalPolicy::stats();
    --stats.blocks_free;
    return stats;
  }
};
}  // namespace

using kvc_test::contains;

TEST_CASE("The suite accepts the policy that the wrong ones are made of", "[policy][conformance]") {
  REQUIRE(broken_law<Right>().empty());
}

TEST_CASE("The suite rejects a policy that breaks the contract, and names the law", "[policy][conformance]") {
  CHECK_THAT(broken_law<VerifiesNothing>(), contains("verify() does not throw InvariantError"));
  CHECK_THAT(broken_law<VerifiesTablesOnly>(), contains("verify() does not throw InvariantError"));
  CHECK_THAT(broken_law<HasGaps>(), contains("without a gap"));
  CHECK_THAT(broken_law<RunsBackwards>(), contains("runs are in order"));
  CHECK_THAT(broken_law<Overlaps>(), contains("has lost the row") || contains("share slot"));
  CHECK_THAT(broken_law<LeavesThePool>(), contains("is not of the pool"));
  CHECK_THAT(broken_law<FailsHalfway>(), contains("finds no room changes the counts"));
  CHECK_THAT(broken_law<NeverHasRoom>(), contains("in a pool that is nearly empty"));
  CHECK_THAT(broken_law<CommitLoses>(), contains("has length 8 and must have 9"));
  CHECK_THAT(broken_law<CountsTooEarly>(), contains("counts before it is committed"));
  CHECK_THAT(broken_law<RollbackKeeps>(), contains("rollback does not restore"));
  CHECK_THAT(broken_law<RollbackLeaks>(), contains("rollback does not restore"));
  CHECK_THAT(broken_law<ForkForgetsToCopy>(), contains("has lost the row"));
  CHECK_THAT(broken_law<ForkWantsACommit>(), contains("refuses what the contract allows"));
  CHECK_THAT(broken_law<TruncateKeeps>(), contains("and must have 19"));
  CHECK_THAT(broken_law<TruncateTakesAnything>(), contains("does not throw std::invalid_argument"));
  CHECK_THAT(broken_law<CloseLeaks>(), contains("contradicts itself"));
  CHECK_THAT(broken_law<KnowsEverybody>(), contains("contains(seq) of a closed sequence"));
  CHECK_THAT(broken_law<LeavesNothingToCompute>(), contains("at least one must be left to compute"));
  CHECK_THAT(broken_law<MiscountsSequences>(), contains("stats counts 0 sequences"));
  CHECK_THAT(broken_law<LosesBlocksInStats>(), contains("do not add up"));
}

TEST_CASE("A policy for which nobody says how its bookkeeping breaks is rejected", "[policy][conformance]") {
  struct Forgets : Paged {
    using Paged::Paged;
  };
  REQUIRE_THAT(
      [] {
        try {
          testing::policy_conformance<Forgets>({.blocks = 24, .block_tokens = 4});
        } catch (const testing::ContractError& error) {
          return std::string(error.what());
        }
        return std::string();
      }(),
      contains("define kvc::testing::Corruption"));
}
