// Parts that the conformance suites of kvc share. They need no test framework: a suite is a function that returns when
// all laws hold, and throws ContractError for the first that does not.
//
//   testing/policy_conformance.hpp     Policy          testing/space_conformance.hpp      Space
//   testing/eviction_conformance.hpp   EvictionPolicy  testing/executor_conformance.hpp   Executor
//   testing/layout_conformance.hpp     Layout          testing/kv_view_conformance.hpp    KvView
//   testing/element_conformance.hpp    ElementType     testing/block_store_conformance.hpp  BlockStore
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

#include "kvc/core/error.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

/// A law of a contract that a type breaks: what() names the type, the law and the values that show it.
class ContractError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// Throws ContractError "kvc: SUBJECT breaks its contract: PARTS..." unless `ok`.
inline void expect(bool ok, std::string_view subject, std::initializer_list<std::string_view> parts) {
  if (!ok) {
    throw_error(
        ContractError(kvc::detail::concat({"kvc: ", subject, " breaks its contract: ", kvc::detail::concat(parts)})));
  }
}

}  // namespace testing
}  // namespace v0
}  // namespace kvc
