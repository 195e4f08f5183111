// Synchronized<P>: a policy that several threads may use at once.
//
// One lock around the whole policy. Shards with a lock each would not help: requests that share a prefix belong into
// one shard, and with one system prompt for all that is all of them, in a fraction of the pool. docs/prefix-sharing.md
// has measurements.
#pragma once

#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/core/group_rule.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/forwarded.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/policy/restore_options.hpp"
#include "kvc/policy/shared_adaptive_mutex.hpp"

namespace kvc {
inline namespace v0 {

/// A Policy around a Policy, with all its abilities (see capabilities.hpp), so a cache of it works too: threads may
/// open, extend, commit and close sequences of their own at once. Each sequence belongs to one thread at a time.
///
/// `Mutex` is any Lockable; with a SharedLockable, such as the default, const operations run beside each other.
///
/// The lists of copies in results are valid until the calling thread's next `try_extend` or `try_fork`, whatever other
/// threads do. Runs are handed out after the lock is released: they stay valid, since the sequence belongs to the
/// caller.
template <Policy P, class Mutex = SharedAdaptiveMutex>
class Synchronized : public detail::Forwarded<Synchronized<P, Mutex>, P> {
 public:
  using PolicyType = P;
  using Config = typename P::Config;
  static constexpr std::string_view name = P::name;

  /// Throws what the constructor of the policy throws.
  explicit Synchronized(const Config& config) : policy_(config) {}
  /// For several layer groups. Throws what the constructor of the policy throws.
  Synchronized(const Config& config, const GroupRules& rules)
    requires HoldsGroups<P>
      : policy_(config, rules) {}

  /// f(policy) with all other threads kept out: for several operations that belong together. Returns what f returns,
  /// which must not refer to the policy.
  template <class F>
  decltype(auto) with_lock(F&& f) {
    const std::unique_lock lock(mutex_);
    return std::forward<F>(f)(policy_);
  }
  /// f(const policy) with all writers kept out. Returns what f returns, which must not refer to the policy.
  template <class F>
  decltype(auto) with_shared_lock(F&& f) const {
    const SharedLock lock(mutex_);
    return std::forward<F>(f)(policy_);
  }

  /// As of the policy; never changes, so without the lock.
  [[nodiscard]] Index blocks() const noexcept { return policy_.blocks(); }
  /// As of the policy; never changes, so without the lock.
  [[nodiscard]] Pos block_tokens() const noexcept { return policy_.block_tokens(); }

  /// As of the policy, with all other threads kept out.
  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& options = {}) {
    return with_lock([&](P& p) { return p.try_open(prompt, options); });
  }
  /// As of the policy, with all other threads kept out. The list of copies belongs to the calling thread.
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    return extend_with(seq, [&](P& p) { return p.try_extend(seq, count, tokens); });
  }
  /// The same, with recurrent states after `states_at` tokens.
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens,
                                      std::span<const Pos> states_at)
    requires HoldsStates<P>
  {
    return extend_with(seq, [&](P& p) { return p.try_extend(seq, count, tokens, states_at); });
  }
  /// As of the policy, with all other threads kept out.
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options)
    requires RestoresSequences<P>
  {
    return with_lock([&](P& p) { return p.try_restore(seq, options); });
  }
  /// As of the policy, with all other threads kept out.
  void commit(SeqId seq) {
    with_lock([&](P& p) { p.commit(seq); });
  }
  /// As of the policy, with all other threads kept out.
  void rollback(SeqId seq) noexcept {
    with_lock([&](P& p) { p.rollback(seq); });
  }
  /// As of the policy, with all other threads kept out.
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    return with_lock([&](P& p) {
      std::optional<Forked> forked = p.try_fork(parent, at);
      if (forked && !forked->copies.empty()) {
        detail::ScopeGuard undo([&] { p.close(forked->seq); });
        forked->copies = own_copies(forked->copies);
        undo.dismiss();
      }
      return forked;
    });
  }
  /// As of the policy, with all other threads kept out.
  void truncate(SeqId seq, Pos length) {
    with_lock([&](P& p) { p.truncate(seq, length); });
  }
  /// As of the policy, with all other threads kept out.
  void close(SeqId seq) {
    with_lock([&](P& p) { p.close(seq); });
  }

  /// As of the policy, with writers kept out.
  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return with_shared_lock([&](const P& p) { return p.contains(seq); });
  }
  /// As of the policy, with writers kept out.
  [[nodiscard]] Pos length(SeqId seq) const {
    return with_shared_lock([&](const P& p) { return p.length(seq); });
  }
  /// As of the policy, with writers kept out.
  [[nodiscard]] Pos reserved(SeqId seq) const {
    return with_shared_lock([&](const P& p) { return p.reserved(seq); });
  }
  /// f is called without the lock, so that its work does not keep other threads waiting.
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    std::vector<SlotRun> runs;
    with_shared_lock([&](const P& p) { p.for_each_run(seq, range, [&](const SlotRun& run) { runs.push_back(run); }); });
    for (const SlotRun& run : runs) {
      f(run);
    }
  }
  /// As of the policy; it says how blocks of several groups lie.
  static constexpr bool shares_blocks = [] {
    if constexpr (HoldsGroups<P>) {
      return bool{P::shares_blocks};
    } else {
      return false;
    }
  }();
  /// As of the policy; never changes, so without the lock.
  [[nodiscard]] const GroupRules& group_rules() const noexcept
    requires HoldsGroups<P>
  {
    return policy_.group_rules();
  }
  /// As of the policy; never changes, so without the lock.
  [[nodiscard]] Pos block_tokens(Index group) const
    requires HoldsGroups<P>
  {
    return policy_.block_tokens(group);
  }
  /// As of the policy, with writers kept out.
  [[nodiscard]] Pos positions(SeqId seq, Index group) const
    requires HoldsGroups<P>
  {
    return with_shared_lock([&](const P& p) { return p.positions(seq, group); });
  }
  /// As of the policy, with writers kept out.
  [[nodiscard]] PosRange extension(SeqId seq, Index group) const
    requires HoldsGroups<P>
  {
    return with_shared_lock([&](const P& p) { return p.extension(seq, group); });
  }
  /// f is called without the lock, so that its work does not keep other threads waiting.
  template <class F>
    requires HoldsGroups<P>
  void for_each_run(SeqId seq, Index group, PosRange range, F&& f) const {
    std::vector<SlotRun> runs;
    with_shared_lock(
        [&](const P& p) { p.for_each_run(seq, group, range, [&](const SlotRun& run) { runs.push_back(run); }); });
    for (const SlotRun& run : runs) {
      f(run);
    }
  }
  /// As of the policy, with writers kept out. Changes only with the sequence.
  [[nodiscard]] std::span<const Pos> state_lengths(SeqId seq) const
    requires HoldsStates<P>
  {
    return with_shared_lock([&](const P& p) { return p.state_lengths(seq); });
  }
  /// As of the policy, with writers kept out.
  [[nodiscard]] bool keeps_state(SeqId seq, Pos length) const
    requires HoldsStates<P>
  {
    return with_shared_lock([&](const P& p) { return p.keeps_state(seq, length); });
  }
  /// As of the policy, with writers kept out. Changes only with the sequence.
  [[nodiscard]] std::span<const BlockId> state_blocks(SeqId seq, Index kind, Pos length) const
    requires HoldsStates<P>
  {
    return with_shared_lock([&](const P& p) { return p.state_blocks(seq, kind, length); });
  }
  /// As of the policy; never changes, so without the lock.
  [[nodiscard]] StateSizes state_sizes(Index kind) const
    requires HoldsStates<P>
  {
    return policy_.state_sizes(kind);
  }
  /// As of the policy, with writers kept out.
  [[nodiscard]] Stats stats(Index group) const
    requires HoldsGroups<P>
  {
    return with_shared_lock([&](const P& p) { return p.stats(group); });
  }
  /// As of the policy, with writers kept out.
  [[nodiscard]] Stats stats() const {
    return with_shared_lock([](const P& p) { return p.stats(); });
  }
  /// As of the policy, with writers kept out.
  void verify() const {
    with_shared_lock([](const P& p) { p.verify(); });
  }

 private:
  friend class detail::Forwarded<Synchronized, P>;
  template <class F>
  decltype(auto) access(F&& f) {
    return with_lock(std::forward<F>(f));
  }
  template <class F>
  decltype(auto) access(F&& f) const {
    return with_shared_lock(std::forward<F>(f));
  }

  template <class F>
  std::optional<Extension> extend_with(SeqId seq, F&& f) {
    return with_lock([&](P& p) {
      std::optional<Extension> extension = f(p);
      if (extension && !extension->copies.empty()) {
        detail::ScopeGuard undo([&] { p.rollback(seq); });
        extension->copies = own_copies(extension->copies);
        undo.dismiss();
      }
      return extension;
    });
  }
  /// The policy's own list belongs to whoever has the lock next.
  static std::span<const RowCopy> own_copies(std::span<const RowCopy> copies) {
    thread_local std::vector<RowCopy> own;
    own.assign(copies.begin(), copies.end());
    return own;
  }

  template <class M>
  static constexpr bool is_shared = requires(M& m) { m.lock_shared(); };
  using SharedLock = std::conditional_t<is_shared<Mutex>, std::shared_lock<Mutex>, std::unique_lock<Mutex>>;
  mutable Mutex mutex_;
  P policy_;
};

}  // namespace v0
}  // namespace kvc
