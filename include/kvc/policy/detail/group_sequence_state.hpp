// GroupSequenceState: what a sequence, or a pin, of a prefix cache with several layer groups keeps beside its tables.
#pragma once

#include <cstdint>
#include <utility>

#include "kvc/core/types.hpp"
#include "kvc/policy/detail/buffer.hpp"
#include "kvc/policy/detail/tenant_quota.hpp"
#include "kvc/policy/retention.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// `Parent` is a node of the index or a root.
template <class Parent, class SequenceContext>
struct GroupSequenceState {
  static constexpr Pos nowhere = max_pos;

  Parent root = Parent::root(0);
  Parent last = Parent::root(0);  // node that the tokens lead to; the sequence counts as ending there
  Buffer<Token> tokens;           // known ones behind that node
  Pos unknown_from = nowhere;     // first position whose token is not known
  Pos found = 0;                  // tokens that were in place when it was opened
  Pos prompt_end = 0;
  int tenant = TenantQuota::none;
  bool is_pin = false;
  bool expects = false;       // rows that come from elsewhere
  bool defers_cross = false;  // RestoreOptions::defers_cross
  Retention retention{};
  struct End {
    BlockId block;
    std::int32_t group;
    std::uint64_t prefix;  // hash of the prefix that it had
    Pos until;             // length with which it is of no use any more; max_pos: it is always of use
  };
  Buffer<End> ends;          // dropped blocks where a prompt ends, or where this sequence could end
  Pos forgets_at = max_pos;  // the least `until` of these
  Pos branch = 0;            // here its prompt went on as another one had, but there were no recurrent states
  [[no_unique_address]] SequenceContext context{};

  /// Forgets everything, but not its memory.
  void reset() noexcept {
    GroupSequenceState fresh;
    std::swap(fresh.tokens, tokens);
    fresh.tokens.clear();
    std::swap(fresh.ends, ends);
    fresh.ends.clear();
    *this = std::move(fresh);
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
