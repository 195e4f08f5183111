// RegionSizes: how many slots the sequences of a policy of regions need in each layer group.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/region_list.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// How regions are allocated: members of Contiguous::Config, valid.
struct RegionOptions {
  bool reserves = true;  ///< all of a sequence's slots at open; otherwise those that are needed
  RegionList::Fit fit = RegionList::Fit::first;
  Index sequences = 1;
  Pos max_tokens = 1;
  Pos pass_tokens = 1;
  Index pool_tokens = 0;  ///< 0: sequences * capacity in each group
  Pos growth_tokens = 1;
  Index states = 1;  ///< lengths of which a sequence has recurrent states at most
};

/// Of one group each. References the rules and options that it is made of. O(1) throughout.
class RegionSizes {
 public:
  RegionSizes(const GroupRules& rules, const RegionOptions& options) : rules_(rules), options_(options) {}

  /// Slots for kept positions of a sequence of at most `most` tokens.
  [[nodiscard]] Pos kept(std::size_t g, Pos most) const noexcept {
    return std::min(rules_.groups[g].retained.kept, most);
  }
  /// The most slots, with those, that such a sequence needs if no extension has more than pass_tokens.
  [[nodiscard]] Pos capacity(std::size_t g, Pos most) const noexcept {
    const GroupRule& rule = rules_.groups[g];
    if (rule.cross_rows > 0) {
      return rule.cross_rows;
    }
    const auto or_none = [](Pos limit) { return limit > 0 ? limit : max_pos; };
    const Pos seen = std::min(or_none(rule.retained.window), or_none(rule.retained.chunk));  // one of them is the row's
    const Index rows = Index{rule.retained.kept} + seen - 1 + rules_.rewind + options_.pass_tokens;
    return static_cast<Pos>(std::min<Index>(most, rows));
  }
  /// Slots of the group's pool. With pool_tokens in proportion to what a sequence of max_tokens needs, and enough for
  /// one. May exceed max_pos.
  [[nodiscard]] Index pool(std::size_t g) const noexcept {
    const Index most = capacity(g, options_.max_tokens);
    if (options_.pool_tokens == 0) {
      return options_.sequences * most;
    }
    const Index one = rules_.groups[g].cross_rows > 0 ? most : std::min(most, options_.pool_tokens);
    return std::max(ceil_div(options_.pool_tokens * most, Index{options_.max_tokens}), one);
  }

 private:
  const GroupRules& rules_;
  const RegionOptions& options_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
