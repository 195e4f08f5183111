// PolicyModel: a plain model of what a policy must do, beside the policy itself.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/testing/contract.hpp"
#include "kvc/testing/policy_interface.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

/// The value of a position whose prefix has the value `before` and that holds `token`.
inline std::uint64_t next_value(std::uint64_t before, Token token) {
  const std::uint64_t v = (before ^ static_cast<std::uint32_t>(token)) * 0x9e3779b97f4a7c15U;
  return (v ^ v >> 31) * 0xbf58476d1ce4e5b9U;
}

/// The counts of Stats that describe the present, without the counters.
inline auto counts(const Stats& s) {
  return std::tuple(s.blocks_free, s.blocks_cached, s.blocks_referenced, s.largest_free_run, s.sequences,
                    s.tokens_stored, s.tokens_reserved);
}

/// Drives a policy, with a pool of one integer per slot in place of rows, and compares it with a model that knows
/// nothing of blocks: a std::map from handles to vectors of values. Every member throws ContractError when the two
/// differ.
///
/// A value stands for a row. It is a function of the salt and of all tokens up to its position, as a real row is, so a
/// wrong match shows; positions whose tokens the policy does not know get values of their own. Sequences have small
/// numbers here, in the order of opening.
class PolicyModel {
 public:
  using Value = std::uint64_t;
  /// The expected contents of a sequence.
  struct Sequence {
    std::string salt;
    std::vector<Value> rows;         // committed
    std::vector<Token> tokens;       // of the committed rows, while all of them are known
    std::vector<Value> uncommitted;  // rows of the uncommitted extension
    std::vector<Token> uncommitted_tokens;
    bool extending = false;
  };

  /// `policy` must outlive the model. `subject` is its name in errors.
  explicit PolicyModel(PolicyInterface& policy, std::string subject = "policy")
      : policy_(policy),
        subject_(std::move(subject)),
        memory_(static_cast<std::size_t>(policy.blocks() * policy.block_tokens()), 0) {}

  std::map<int, std::pair<SeqId, Sequence>> open;  ///< the open sequences by number

  /// The handle of a sequence, in the policy.
  [[nodiscard]] SeqId seq(int id) const { return open.at(id).first; }

  /// Throws ContractError with these parts unless `ok`.
  void law(bool ok, std::initializer_list<std::string_view> parts) const { expect(ok, subject_, parts); }

  /// The options that sequences with this salt are opened with; "" gives none.
  static OpenOptions options(const std::string& salt) {
    OpenOptions options;
    if (!salt.empty()) {
      options.salt.add(SaltKind::tenant, salt);
      options.retention = {.priority = 80, .duration = 20};
    }
    return options;
  }

  /// Opens a sequence, and returns its number; empty if there is no room.
  std::optional<int> open_sequence(const std::vector<Token>& prompt = {}, const std::string& salt = "") {
    const std::optional<Opened> opened = policy_.try_open(prompt, options(salt));
    if (!opened) {
      return std::nullopt;
    }
    law(opened->cached >= 0 && opened->cached <= std::max<Index>(0, std::ssize(prompt) - 1),
        {"try_open finds ", std::to_string(opened->cached), " of ", std::to_string(prompt.size()),
         " tokens in place: at least one must be left to compute"});
    Sequence s;
    s.salt = salt;
    append_values(s, {prompt.begin(), prompt.begin() + opened->cached}, s.rows);
    s.tokens.assign(prompt.begin(), prompt.begin() + opened->cached);
    open.emplace(next_, std::pair{opened->seq, s});
    check(next_);
    return next_++;
  }

  /// Reserves the positions and writes their rows; false if there is no room. Gives the policy the tokens, or only
  /// their number.
  bool extend(int id, const std::vector<Token>& tokens, bool with_tokens = true) {
    Sequence& s = open.at(id).second;
    const auto count = static_cast<Pos>(tokens.size());
    const auto extension =
        policy_.try_extend(seq(id), count, with_tokens ? std::span<const Token>(tokens) : std::span<const Token>{});
    if (!extension) {
      return false;
    }
    const auto length = static_cast<Pos>(s.rows.size());
    law(extension->range == PosRange{length, length + count},
        {"try_extend of ", std::to_string(count), " positions at length ", std::to_string(length), " reserves [",
         std::to_string(extension->range.first), ", ", std::to_string(extension->range.last), ")"});
    carry_out(extension->copies);
    s.extending = true;
    s.uncommitted.clear();
    s.uncommitted_tokens.clear();
    if (with_tokens && s.tokens.size() == s.rows.size()) {
      append_values(s, tokens, s.uncommitted);
      s.uncommitted_tokens = tokens;
    } else {
      for (Pos i = 0; i < count; ++i) {
        s.uncommitted.push_back(++unique_);
      }
    }
    for_each_slot(id, extension->range, [&](Pos position, std::size_t slot) {
      memory_[slot] = s.uncommitted[static_cast<std::size_t>(position - length)];
    });
    return true;
  }

  /// Commits the uncommitted extension.
  void commit(int id) {
    policy_.commit(seq(id));
    Sequence& s = open.at(id).second;
    const bool known = s.tokens.size() == s.rows.size() && s.uncommitted_tokens.size() == s.uncommitted.size();
    s.rows.insert(s.rows.end(), s.uncommitted.begin(), s.uncommitted.end());
    if (known) {
      s.tokens.insert(s.tokens.end(), s.uncommitted_tokens.begin(), s.uncommitted_tokens.end());
    }
    s.extending = false;
  }

  /// Takes the uncommitted extension back.
  void rollback(int id) {
    policy_.rollback(seq(id));
    open.at(id).second.extending = false;
  }

  /// Forks a sequence, and returns the number of the new one; empty if there is no room.
  std::optional<int> fork(int id, Pos at) {
    const std::optional<Forked> forked = policy_.try_fork(seq(id), at);
    if (!forked) {
      return std::nullopt;
    }
    carry_out(forked->copies);
    const Sequence& parent = open.at(id).second;
    Sequence child;
    child.salt = parent.salt;
    child.rows.assign(parent.rows.begin(), parent.rows.begin() + at);
    child.tokens.assign(parent.tokens.begin(),
                        parent.tokens.begin() + std::min<std::ptrdiff_t>(at, std::ssize(parent.tokens)));
    open.emplace(next_, std::pair{forked->seq, child});
    return next_++;
  }

  /// Truncates a sequence, and its values.
  void truncate(int id, Pos length) {
    policy_.truncate(seq(id), length);
    Sequence& s = open.at(id).second;
    s.rows.resize(static_cast<std::size_t>(length));
    s.tokens.resize(std::min(s.tokens.size(), s.rows.size()));
  }

  /// Closes a sequence, and forgets its values.
  void close(int id) {
    policy_.close(seq(id));
    open.erase(id);
  }

  /// Copies the rows that the policy asks for, as a cache does.
  void carry_out(std::span<const RowCopy> copies) {
    for (const RowCopy& copy : copies) {
      const std::size_t from = first_slot(copy.from, copy.from_slot, copy.count);
      const std::size_t to = first_slot(copy.to, copy.to_slot, copy.count);
      const auto count = static_cast<std::size_t>(copy.count);
      law(from + count <= to || to + count <= from, {"a copy overlaps itself"});
      std::copy_n(memory_.begin() + static_cast<std::ptrdiff_t>(from), count,
                  memory_.begin() + static_cast<std::ptrdiff_t>(to));
    }
  }

  /// The policy gives for a sequence what the model says.
  void check(int id) const {
    const Sequence& s = open.at(id).second;
    const auto length = static_cast<Pos>(s.rows.size());
    const Pos reserved = length + (s.extending ? static_cast<Pos>(s.uncommitted.size()) : 0);
    const std::string name = "sequence " + std::to_string(id);
    law(policy_.contains(seq(id)), {name, " is open, and the policy does not contain it"});
    law(policy_.length(seq(id)) == length,
        {name, " has length ", std::to_string(policy_.length(seq(id))), " and must have ", std::to_string(length)});
    law(policy_.reserved(seq(id)) == reserved,
        {name, " has reserved length ", std::to_string(policy_.reserved(seq(id))), " and must have ",
         std::to_string(reserved)});
    for_each_slot(id, {0, reserved}, [&](Pos position, std::size_t slot) {
      const Value expected = position < length ? s.rows[static_cast<std::size_t>(position)]
                                               : s.uncommitted[static_cast<std::size_t>(position - length)];
      law(memory_[slot] == expected, {name, " has lost the row of position ", std::to_string(position)});
    });
  }

  /// So for every sequence, and the counts of the policy agree with each other.
  void check_all() const {
    for (const auto& [id, unused] : open) {
      check(id);
    }
    policy_.verify();
    const Stats stats = policy_.stats();
    law(stats.blocks_free + stats.blocks_cached + stats.blocks_referenced == stats.blocks_total,
        {"stats: free, cached and referenced blocks do not add up to the total"});
    law(stats.sequences == static_cast<Index>(open.size()),
        {"stats counts ", std::to_string(stats.sequences), " sequences, and ", std::to_string(open.size()),
         " are open"});
    law(stats.largest_free_run <= stats.blocks_free + stats.blocks_cached,
        {"stats: one sequence could have more blocks than are free or cached"});
    law(stats.tokens_stored <= stats.tokens_reserved, {"stats: more tokens are stored than reserved"});
  }

  /// f(position, slot of the pool) for the positions of a range. Checks that the runs cover it in order, without a gap.
  template <class F>
  void for_each_slot(int id, PosRange range, F&& f) const {
    Pos next = range.first;
    policy_.for_each_run(seq(id), range, [&](const SlotRun& run) {
      law(run.first == next && run.count > 0,
          {"for_each_run gives a run of ", std::to_string(run.count), " positions from ", std::to_string(run.first),
           ", where position ", std::to_string(next), " must follow: runs are in order, without a gap"});
      law(run.count <= range.last - next, {"for_each_run goes beyond the range"});
      const std::size_t slot = first_slot(run.block, run.offset, run.count);
      for (Pos i = 0; i < run.count; ++i) {
        f(next++, slot + static_cast<std::size_t>(i));
      }
    });
    law(next == range.last, {"for_each_run ends at position ", std::to_string(next), " of a range that ends at ",
                             std::to_string(range.last), ": runs are in order, without a gap"});
  }

 private:
  /// The slot of the pool; these `count` slots must lie in the block.
  [[nodiscard]] std::size_t first_slot(BlockId block, Pos offset, Pos count) const {
    law(0 <= to_index(block) && to_index(block) < policy_.blocks(),
        {"block ", std::to_string(to_index(block)), " is not of the pool"});
    law(0 <= offset && 0 <= count && count <= policy_.block_tokens() - offset,
        {"slots ", std::to_string(offset), " and on, ", std::to_string(count), " of them, are not within a block"});
    return static_cast<std::size_t>(to_index(block) * policy_.block_tokens() + offset);
  }

  void append_values(const Sequence& s, const std::vector<Token>& tokens, std::vector<Value>& to) const {
    Value v = s.rows.empty() ? std::hash<std::string>{}(s.salt) : s.rows.back();
    for (const Token token : tokens) {
      v = next_value(v, token);
      to.push_back(v);
    }
  }

  PolicyInterface& policy_;
  std::string subject_;
  std::vector<Value> memory_;
  Value unique_ = 0;
  int next_ = 0;
};

}  // namespace testing
}  // namespace v0
}  // namespace kvc
