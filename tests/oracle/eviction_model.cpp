// The same random operations under every eviction policy: whatever it evicts, no sequence loses a row.
#include "kvc/policy/eviction/cost_aware.hpp"
#include "kvc/policy/eviction/fifo.hpp"
#include "kvc/policy/eviction/lfu.hpp"
#include "kvc/policy/eviction/priority.hpp"
#include "kvc/policy/eviction/reuse_hazard.hpp"
#include "kvc/policy/eviction/s3_fifo.hpp"
#include "kvc/policy/eviction/tiny_lfu.hpp"
#include "policies.hpp"
#include "random_operations.hpp"

using namespace kvc_test;

namespace {
template <class E, kvc::Pos tokens_per_block, kvc::Index tenant_quota = 0>
struct EvictionCase : BlockCase<kvc::PrefixShared<E, SeededHash>, tokens_per_block> {
  using Base = BlockCase<kvc::PrefixShared<E, SeededHash>, tokens_per_block>;
  static auto config(kvc::Pos tokens, kvc::Index sequences, kvc::Pos max_tokens) {
    auto config = Base::config(tokens, sequences, max_tokens);
    config.tenant_quota = tenant_quota;
    return config;
  }
};
}  // namespace

TEMPLATE_TEST_CASE("Under any eviction policy a cache does what the model does", "[policy][model][eviction]",
                   (EvictionCase<kvc::ReuseHazard, 1>), (EvictionCase<kvc::ReuseHazard, 4>),
                   (EvictionCase<kvc::ReuseHazard, 2, 5>), (EvictionCase<kvc::Lru, 4>), (EvictionCase<kvc::Fifo, 4>),
                   (EvictionCase<kvc::Lfu, 4>), (EvictionCase<kvc::S3Fifo, 4>), (EvictionCase<kvc::TinyLfu, 4>),
                   (EvictionCase<kvc::CostAware, 4>), (EvictionCase<kvc::Priority, 4>)) {
  const std::uint64_t seed = GENERATE(std::uint64_t{1}, kvc_test::any_seed);
  const std::uint64_t used = seed_or(seed);
  INFO("KVC_TEST_SEED=" << used);
  Random random(used);
  OracleModel model(make_policy<TestType>(128, 12, 60));
  run(random, model, operations_or(50'000));
}

TEMPLATE_TEST_CASE("In the steady state a prefix cache allocates nothing", "[policy][eviction]", kvc::ReuseHazard,
                   kvc::Lru, kvc::Fifo, kvc::Lfu, kvc::S3Fifo, kvc::TinyLfu, kvc::CostAware, kvc::Priority) {
  kvc::PrefixShared<TestType, SeededHash> policy({.blocks = 64, .block_tokens = 4, .tenant_quota = 40});
  Random random(1);
  std::vector<Token> prompt(40);
  bool failed = false;
  for (int request = 0; request < 2000; ++request) {
    for (Token& token : prompt) {
      token = random.one_in(10) ? random.between<Token>(0, 3) : 0;
    }
    const FailAllocation armed(request < 200 ? 1'000'000 : 0);  // the first ones make tables grow to their size
    const kvc::Opened opened = *policy.try_open(prompt);
    const kvc::SeqId fork = policy.try_fork(opened.seq, policy.length(opened.seq))->seq;
    policy.close(fork);
    const auto rest = std::span<const Token>(prompt).subspan(static_cast<std::size_t>(opened.cached));
    (void)policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest);
    policy.commit(opened.seq);
    policy.close(opened.seq);
    failed = failed || armed.failed();
  }
  REQUIRE_FALSE(failed);
  REQUIRE(policy.stats().evictions > 1000);
  policy.verify();
}
