#include "policies.hpp"

#include "conformance/policy_conformance.hpp"

TEMPLATE_TEST_CASE("A policy keeps the contract", "[policy][conformance]", KVC_ALL_POLICIES) {
  kvc_test::conformance<TestType>();
}
