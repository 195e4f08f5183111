// OracleModel: kvc::testing::PolicyModel over a policy with all that the policies of kvc can do.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "any_policy.hpp"
#include "catch.hpp"
#include "kvc/testing/policy_model.hpp"

namespace kvc_test {

using kvc::Index;
using kvc::Pos;
using kvc::PosRange;
using kvc::SeqId;
using kvc::Token;
using Value = std::uint64_t;
using kvc::testing::counts;
using kvc::testing::next_value;

class OracleModel : public kvc::testing::PolicyModel {
 public:
  explicit OracleModel(std::unique_ptr<AnyPolicy> subject)
      : PolicyModel(*subject), policy(*subject), owner_(std::move(subject)) {}

  AnyPolicy& policy;

 private:
  std::unique_ptr<AnyPolicy> owner_;
};

}  // namespace kvc_test
