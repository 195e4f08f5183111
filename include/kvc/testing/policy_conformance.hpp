// The contract of Policy as a suite: testing::policy_conformance<MyPolicy>(config).
#pragma once

#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/testing/contract.hpp"
#include "kvc/testing/policy_interface.hpp"
#include "kvc/testing/policy_laws.hpp"
#include "kvc/testing/policy_model.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

namespace detail {

template <class P>
inline constexpr bool has_corruption = requires(P& policy, SeqId seq, int way) {
  { Corruption<P>::ways } -> std::convertible_to<int>;
  Corruption<P>::apply(policy, seq, way);
};

/// verify() must find what Corruption<P> breaks.
template <Policy P>
void verify_law(const typename P::Config& config, std::string_view subject) {
  using Bare = BarePolicy<P>;
  expect(has_corruption<Bare>, subject,
         {"nothing shows that verify() finds broken bookkeeping: define kvc::testing::Corruption for the policy"});
  if constexpr (has_corruption<Bare>) {
    expect(Corruption<Bare>::ways >= 1, subject, {"Corruption has no ways of breaking the bookkeeping"});
    for (int way = 0; way < Corruption<Bare>::ways; ++way) {
      PolicyAdapter<P> policy(config);
      PolicyModel model(policy, std::string(subject));
      const int id = model.open_sequence().value();
      expect(model.extend(id, tokens_from(0, 9)), subject, {"9 tokens find no room"});
      model.commit(id);
      expect(model.extend(id, tokens_from(9, 5)), subject, {"5 more tokens find no room"});
      model.check_all();
      kvc::with_lock(policy.policy(), [&](Bare& bare) { Corruption<Bare>::apply(bare, model.seq(id), way); });
      expect(throws<InvariantError>([&] { policy.verify(); }), subject,
             {"verify() does not throw InvariantError for broken bookkeeping (way ", std::to_string(way),
              " of Corruption)"});
    }
  }
}

}  // namespace detail

/// Checks a policy against the contract of policy/concept.hpp. `config` must give a pool of at least 96 slots, and room
/// for 4 sequences of up to 24 tokens. Takes milliseconds. Throws ContractError for the first law that the policy
/// breaks.
///
/// That verify() finds broken bookkeeping can be checked only for bookkeeping that is broken. The author of the policy
/// says how, in a test; the policy befriends `template <class> struct kvc::testing::Corruption` (BlockPolicyBase does):
///
///     template <> struct kvc::testing::Corruption<MyPolicy> {
///       static constexpr int ways = 1;                              // at least one
///       static void apply(MyPolicy& policy, SeqId seq, int way);    // breaks what verify() promises to find
///     };
///
/// `seq` is an open sequence with 9 committed and 5 uncommitted positions. The policy is not used after verify().
template <Policy P>
void policy_conformance(const typename P::Config& config) {
  const std::string subject = kvc::detail::concat({"policy ", P::name});
  for (const auto law : detail::PolicyLaws::all()) {
    PolicyAdapter<P> policy(config);
    detail::PolicyLaws laws(policy, subject);
#if KVC_HAS_EXCEPTIONS
    try {
      (laws.*law)();
    } catch (const std::invalid_argument& error) {
      throw_error(ContractError(subject + " refuses what the contract allows: " + error.what()));
    } catch (const InvariantError& error) {
      throw_error(ContractError(subject + " contradicts itself: " + error.what()));
    }
#else
    (laws.*law)();
#endif
  }
  detail::verify_law<P>(config, subject);
}

}  // namespace testing
}  // namespace v0
}  // namespace kvc
