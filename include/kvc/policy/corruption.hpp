// Corruption: the friend through which tests break the bookkeeping of a policy.
#pragma once

namespace kvc {
inline namespace v0 {
namespace testing {

/// Breaks the bookkeeping of a policy P, so that a test sees that verify() finds it: see
/// testing/policy_conformance.hpp. Tests define it; a policy befriends it:
///
///     template <class>
///     friend struct testing::Corruption;
template <class P>
struct Corruption;

}  // namespace testing
}  // namespace v0
}  // namespace kvc
