// OpenOptions: everything a caller can say about a sequence when it is opened.
#pragma once

#include "kvc/core/types.hpp"
#include "kvc/policy/retention.hpp"
#include "kvc/policy/salt.hpp"

namespace kvc {
inline namespace v0 {

/// Options of `open`. A policy ignores the options that it has no use for, so that one scheduler serves all policies.
///
///   salt          policies that match prefixes share blocks only between sequences of equal salts
///   max_tokens    Contiguous: the most tokens of this sequence, all of them taken at once in reserve mode; 0: the
///                 maximum of the policy
///   retention     PrefixShared<Priority>: the eviction priority of the blocks of this sequence
struct OpenOptions {
  Salt salt{};
  Pos max_tokens = 0;
  Retention retention{};
};

}  // namespace v0
}  // namespace kvc
