// OracleModel: a policy under test, with a toy pool of one integer per slot and a plain model of what each sequence must
// hold.
//
// The model knows nothing of blocks: it is a std::map from handles to std::vectors of values. A value stands for a row:
// it is a function of the salt and of all tokens up to its position, as a real row is, so that a wrong match shows.
// Positions whose tokens the policy is not told get a value of their own.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "any_policy.hpp"
#include "catch.hpp"

namespace kvc_test {

using kvc::Index;
using kvc::Pos;
using kvc::PosRange;
using kvc::SeqId;
using kvc::Token;
using Value = std::uint64_t;

/// The value of a position whose prefix had `before` and that holds `token`.
inline Value next_value(Value before, Token token) {
  Value v = (before ^ static_cast<std::uint32_t>(token)) * 0x9e3779b97f4a7c15U;
  return (v ^ v >> 31) * 0xbf58476d1ce4e5b9U;
}

class OracleModel {
 public:
  struct Sequence {
    std::string salt;
    std::vector<Value> rows;     // committed
    std::vector<Token> tokens;   // of the committed rows, while all of them are known
    std::vector<Value> pending;  // what the extension under way will hold
    std::vector<Token> pending_tokens;
    bool extending = false;
  };

  explicit OracleModel(std::unique_ptr<AnyPolicy> subject)
      : owner_(std::move(subject)),
        policy(*owner_),
        memory_(static_cast<std::size_t>(policy.blocks() * policy.block_tokens()), 0) {}

 private:
  std::unique_ptr<AnyPolicy> owner_;

 public:
  AnyPolicy& policy;
  std::map<int, std::pair<SeqId, Sequence>> open;  // by the order of opening

  static kvc::OpenOptions options(const std::string& salt) {
    kvc::OpenOptions options;
    if (!salt.empty()) {
      options.salt.add(kvc::SaltKind::tenant, salt);
      options.retention = {.priority = 80, .duration = 20};
    }
    return options;
  }

  std::optional<int> open_sequence(const std::vector<Token>& prompt, const std::string& salt) {
    const std::optional<kvc::Opened> opened = policy.try_open(prompt, options(salt));
    if (!opened) {
      return std::nullopt;
    }
    REQUIRE(opened->cached >= 0);
    REQUIRE(opened->cached <= std::max<Pos>(0, static_cast<Pos>(prompt.size()) - 1));
    Sequence s;
    s.salt = salt;
    append_values(s, {prompt.begin(), prompt.begin() + opened->cached}, s.rows);
    s.tokens.assign(prompt.begin(), prompt.begin() + opened->cached);
    open.emplace(next_, std::pair{opened->seq, s});
    check(next_);
    return next_++;
  }

  /// Reserves, and writes the rows; false if there is no room. Tokens are told or withheld.
  bool extend(int id, const std::vector<Token>& tokens, bool tell) {
    const SeqId seq = open.at(id).first;
    Sequence& s = open.at(id).second;
    const auto count = static_cast<Pos>(tokens.size());
    const auto extension =
        policy.try_extend(seq, count, tell ? std::span<const Token>(tokens) : std::span<const Token>{});
    if (!extension) {
      return false;
    }
    const auto length = static_cast<Pos>(s.rows.size());
    REQUIRE(extension->range == PosRange{length, length + count});
    carry_out(extension->copies);
    s.extending = true;
    s.pending.clear();
    s.pending_tokens.clear();
    if (tell && s.tokens.size() == s.rows.size()) {
      append_values(s, tokens, s.pending);
      s.pending_tokens = tokens;
    } else {
      for (Pos i = 0; i < count; ++i) {
        s.pending.push_back(++unique_);
      }
    }
    std::size_t next = 0;
    policy.for_each_run(seq, extension->range, [&](const kvc::SlotRun& run) {
      for (Pos i = 0; i < run.count; ++i) {
        memory_[slot(run.block, run.offset + i)] = s.pending[next++];
      }
    });
    REQUIRE(next == s.pending.size());
    return true;
  }

  void commit(int id) {
    const SeqId seq = open.at(id).first;
    Sequence& s = open.at(id).second;
    policy.commit(seq);
    const bool known = s.tokens.size() == s.rows.size() && s.pending_tokens.size() == s.pending.size();
    s.rows.insert(s.rows.end(), s.pending.begin(), s.pending.end());
    if (known) {
      s.tokens.insert(s.tokens.end(), s.pending_tokens.begin(), s.pending_tokens.end());
    }
    s.extending = false;
  }

  void rollback(int id) {
    policy.rollback(open.at(id).first);
    open.at(id).second.extending = false;
  }

  std::optional<int> fork(int id, Pos at) {
    const auto& [seq, parent] = open.at(id);
    const std::optional<kvc::Forked> forked = policy.try_fork(seq, at);
    if (!forked) {
      return std::nullopt;
    }
    carry_out(forked->copies);
    Sequence child;
    child.salt = parent.salt;
    child.rows.assign(parent.rows.begin(), parent.rows.begin() + at);
    child.tokens.assign(parent.tokens.begin(),
                        parent.tokens.begin() + std::min<std::ptrdiff_t>(at, std::ssize(parent.tokens)));
    open.emplace(next_, std::pair{forked->seq, child});
    return next_++;
  }

  void truncate(int id, Pos length) {
    const SeqId seq = open.at(id).first;
    Sequence& s = open.at(id).second;
    policy.truncate(seq, length);
    s.rows.resize(static_cast<std::size_t>(length));
    s.tokens.resize(std::min(s.tokens.size(), s.rows.size()));
  }

  void close(int id) {
    policy.close(open.at(id).first);
    open.erase(id);
  }

  /// Copies the rows that the policy asks for, as a cache does.
  void carry_out(std::span<const kvc::RowCopy> copies) {
    for (const kvc::RowCopy& copy : copies) {
      for (Pos i = 0; i < copy.count; ++i) {
        memory_[slot(copy.to, copy.to_slot + i)] = memory_[slot(copy.from, copy.from_slot + i)];
      }
    }
  }

  /// What the policy hands out for a sequence is what the model says.
  void check(int id) const {
    const SeqId seq = open.at(id).first;
    const Sequence& s = open.at(id).second;
    const auto length = static_cast<Pos>(s.rows.size());
    const Pos reserved = length + (s.extending ? static_cast<Pos>(s.pending.size()) : 0);
    REQUIRE(policy.contains(seq));
    REQUIRE(policy.length(seq) == length);
    REQUIRE(policy.reserved(seq) == reserved);
    Pos next = 0;
    bool same = true;
    policy.for_each_run(seq, {0, reserved}, [&](const kvc::SlotRun& run) {
      same = same && run.first == next && run.count > 0 && run.offset >= 0 &&
             run.offset + run.count <= policy.block_tokens();
      for (Pos i = 0; i < run.count && same; ++i, ++next) {
        const Value expected =
            next < length ? s.rows[static_cast<std::size_t>(next)] : s.pending[static_cast<std::size_t>(next - length)];
        same = memory_[slot(run.block, run.offset + i)] == expected;
      }
    });
    INFO("sequence " << id << ", position " << next);
    REQUIRE(same);
    REQUIRE(next == reserved);
  }

  void check_all() const {
    for (const auto& [id, unused] : open) {
      check(id);
    }
    policy.verify();
    const kvc::Stats stats = policy.stats();
    REQUIRE(stats.blocks_free + stats.blocks_cached + stats.blocks_referenced == stats.blocks_total);
    REQUIRE(stats.sequences == static_cast<Index>(open.size()));
    REQUIRE(stats.largest_free_run <= stats.blocks_free + stats.blocks_cached);
    REQUIRE(stats.tokens_stored <= stats.tokens_reserved);
  }

 private:
  [[nodiscard]] std::size_t slot(kvc::BlockId block, Pos offset) const {
    return static_cast<std::size_t>(kvc::to_index(block) * policy.block_tokens() + offset);
  }

  void append_values(const Sequence& s, const std::vector<Token>& tokens, std::vector<Value>& to) const {
    Value v = s.rows.empty() ? std::hash<std::string>{}(s.salt) : s.rows.back();
    for (const Token token : tokens) {
      v = next_value(v, token);
      to.push_back(v);
    }
  }

  std::vector<Value> memory_;
  Value unique_ = 0;
  int next_ = 0;
};

/// The counts of now, without the counters.
inline auto counts(const kvc::Stats& s) {
  return std::tuple(s.blocks_free, s.blocks_cached, s.blocks_referenced, s.largest_free_run, s.sequences,
                    s.tokens_stored, s.tokens_reserved);
}

}  // namespace kvc_test
