// Synchronized<P>: a policy that several threads may use at once.
//
// One lock: operations that only look (match_length, admission, length, stats, ...) go on beside each other, those that
// change something wait for all others. A policy of its own, so it also serves a cache: threads may then open, extend,
// commit and close sequences of their own at once. Each sequence still belongs to one thread at a time.
//
// docs/prefix-sharing.md has what this costs, beside a plain mutex and beside shards with a lock each.
#pragma once

#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"

namespace kvc::inline v0 {

template <Policy P, class Mutex = std::shared_mutex>
class Synchronized {
 public:
  using Config = typename P::Config;
  static constexpr std::string_view name = P::name;

  explicit Synchronized(const Config& config) : policy_(config) {}

  /// f(policy) with all other threads kept out: for several operations that must follow one another, or that are not
  /// below. Returns what f returns; it must not keep references to the policy.
  template <class F>
  decltype(auto) exclusively(F&& f) {
    const std::unique_lock lock(mutex_);
    return std::forward<F>(f)(policy_);
  }
  /// f(const policy) beside others that only look.
  template <class F>
  decltype(auto) looking(F&& f) const {
    const Looking lock(mutex_);
    return std::forward<F>(f)(policy_);
  }

  [[nodiscard]] Index blocks() const noexcept { return policy_.blocks(); }
  [[nodiscard]] Pos block_tokens() const noexcept { return policy_.block_tokens(); }

  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& options = {}) {
    return exclusively([&](P& p) { return p.try_open(prompt, options); });
  }
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    return exclusively([&](P& p) { return p.try_extend(seq, count, tokens); });
  }
  void commit(SeqId seq) {
    exclusively([&](P& p) { p.commit(seq); });
  }
  void rollback(SeqId seq) noexcept {
    exclusively([&](P& p) { p.rollback(seq); });
  }
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    return exclusively([&](P& p) { return p.try_fork(parent, at); });
  }
  void truncate(SeqId seq, Pos length) {
    exclusively([&](P& p) { p.truncate(seq, length); });
  }
  void close(SeqId seq) {
    exclusively([&](P& p) { p.close(seq); });
  }

  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return looking([&](const P& p) { return p.contains(seq); });
  }
  [[nodiscard]] Pos length(SeqId seq) const {
    return looking([&](const P& p) { return p.length(seq); });
  }
  [[nodiscard]] Pos reserved(SeqId seq) const {
    return looking([&](const P& p) { return p.reserved(seq); });
  }
  /// f is called with the lock held: it must not call this policy.
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    looking([&](const P& p) { p.for_each_run(seq, range, f); });
  }
  /// A copy: a span would be out of date when the lock is let go.
  [[nodiscard]] std::vector<BlockId> block_table(SeqId seq) const
    requires BlockTablePolicy<P>
  {
    return looking([&](const P& p) {
      const std::span<const BlockId> table = p.block_table(seq);
      return std::vector<BlockId>(table.begin(), table.end());
    });
  }
  [[nodiscard]] Stats stats() const {
    return looking([](const P& p) { return p.stats(); });
  }
  void verify() const {
    looking([](const P& p) { p.verify(); });
  }

  [[nodiscard]] Pos match_length(std::span<const Token> prompt, const OpenOptions& options = {}) const
    requires requires(const P& p) { p.match_length(prompt, options); }
  {
    return looking([&](const P& p) { return p.match_length(prompt, options); });
  }
  [[nodiscard]] Admission admission(std::span<const Token> prompt, Pos reserve = 0, const OpenOptions& options = {}) const
    requires requires(const P& p) { p.admission(prompt, reserve, options); }
  {
    return looking([&](const P& p) { return p.admission(prompt, reserve, options); });
  }
  [[nodiscard]] bool can_admit(std::span<const Token> prompt, Pos reserve = 0, const OpenOptions& options = {}) const
    requires requires(const P& p) { p.admission(prompt, reserve, options); }
  {
    return admission(prompt, reserve, options) == Admission::now;
  }

 private:
  using Looking = std::conditional_t<requires(Mutex& m) { m.lock_shared(); }, std::shared_lock<Mutex>,
                                     std::unique_lock<Mutex>>;
  mutable Mutex mutex_;
  P policy_;
};

}  // namespace kvc::inline v0
