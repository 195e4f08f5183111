#pragma once

#include "kvc/policy/author.hpp"

namespace kvc {

/// Takes blocks as they are needed. A fork copies all rows.
class MinimalPolicy : public BlockPolicyBase {
 public:
  static constexpr std::string_view name = "minimal";
  using BlockPolicyBase::BlockPolicyBase;

  std::optional<Opened> try_open(std::span<const Token> = {}, const OpenOptions& = {}) {
    return Opened{sequences_.insert(), 0};
  }

  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    BlockSequence& s = sequences_.at(seq);
    const PosRange range = s.lengths.checked_extension(seq, count, tokens.size());
    if (!pool_.try_grow(s.table, blocks_for(range.last))) {
      return std::nullopt;
    }
    s.lengths.reserve(range);
    return Extension{range};
  }

  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    sequences_.at(parent).lengths.check_fork(at);
    sequences_.reserve();  // first all that can fail
    copies_.resize(static_cast<std::size_t>(blocks_for(at)));
    BlockSequence child;
    if (!pool_.try_grow(child.table, blocks_for(at))) {
      return std::nullopt;
    }
    child.lengths.set(at);
    const SeqId seq = sequences_.insert();
    for_each_run(parent, {0, at}, [&, i = std::size_t{0}](const SlotRun& run) mutable {
      copies_[i] = {run.block, child.table[i], 0, 0, run.count};
      ++i;
    });
    sequences_.at(seq) = std::move(child);
    return Forked{seq, copies_};
  }

 private:
  std::vector<RowCopy> copies_;
};
static_assert(BlockTablePolicy<MinimalPolicy>);

}  // namespace kvc
