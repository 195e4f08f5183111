// Every policy keeps the contract.
#include "policies.hpp"

#include <shared_mutex>

#include "catch.hpp"
#include "conformance/corruption.hpp"
#include "conformance/minimal_policy.hpp"
#include "kvc/policy/synchronized.hpp"
#include "kvc/testing/policy_conformance.hpp"

TEMPLATE_TEST_CASE("A policy keeps the contract", "[policy][conformance]", KVC_ALL_POLICIES) {
  kvc::testing::policy_conformance<typename TestType::Policy>(TestType::config(96, 4, 24));
}

TEMPLATE_TEST_CASE("A policy behind a lock keeps the contract", "[policy][conformance]", kvc_test::GrowFirst,
                   kvc_test::Paged4, kvc_test::Prefix4) {
  using Locked = kvc::Synchronized<typename TestType::Policy, std::shared_mutex>;
  kvc::testing::policy_conformance<Locked>(TestType::config(96, 4, 24));
}

TEST_CASE("The minimal policy keeps the contract", "[policy][conformance]") {
  kvc::testing::policy_conformance<kvc::MinimalPolicy>({.blocks = 24, .block_tokens = 4});
  kvc::testing::policy_conformance<kvc::MinimalPolicy>({.blocks = 96, .block_tokens = 1});
}
