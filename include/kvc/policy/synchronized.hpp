// Synchronized<P>: a policy that several threads may use at once.
//
// One lock around the whole policy. A policy of its own, so it also serves a cache: threads may then open, extend, commit
// and close sequences of their own at once. Each sequence still belongs to one thread at a time.
//
// Why one lock and not shards with a lock each: requests that share a prefix belong in one shard, and with one system
// prompt for all that is all of them, in a fraction of the pool. docs/prefix-sharing.md has what each costs.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"

namespace kvc {
inline namespace v0 {

/// A mutex for operations of a microsecond: waits on its feet for some, and only then sleeps. Lockable.
class AdaptiveMutex {
 public:
  [[nodiscard]] bool try_lock() noexcept {
    // Not an exchange: it would overwrite `contended` when it fails, and nobody would wake those who sleep.
    int expected = unlocked;
    return state_.load(std::memory_order_relaxed) == unlocked &&
           state_.compare_exchange_strong(expected, locked, std::memory_order_acquire, std::memory_order_relaxed);
  }
  void lock() noexcept {
    for (int i = 0; i < spins; ++i) {
      if (try_lock()) {
        return;
      }
      pause();
    }
    while (state_.exchange(contended, std::memory_order_acquire) != unlocked) {
      state_.wait(contended, std::memory_order_relaxed);
    }
  }
  void unlock() noexcept {
    if (state_.exchange(unlocked, std::memory_order_release) == contended) {
      state_.notify_one();
    }
  }

 private:
  static constexpr int unlocked = 0;
  static constexpr int locked = 1;
  static constexpr int contended = 2;  // held, and somebody sleeps
  static constexpr int spins = 2000;

  static void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::atomic<int> state_ = unlocked;
};

/// `Mutex` is any Lockable; with a SharedLockable, operations that only look go on beside each other.
template <Policy P, class Mutex = AdaptiveMutex>
class Synchronized {
 public:
  using Config = typename P::Config;
  static constexpr std::string_view name = P::name;

  explicit Synchronized(const Config& config) : policy_(config) {}

  /// f(policy) with all other threads kept out: for several operations that must follow one another, or that are not
  /// below. Returns what f returns; it must not keep references to the policy.
  template <class F>
  decltype(auto) with_lock(F&& f) {
    const std::unique_lock lock(mutex_);
    return std::forward<F>(f)(policy_);
  }
  /// f(const policy), if the mutex is a shared one beside others that only look.
  template <class F>
  decltype(auto) with_shared_lock(F&& f) const {
    const SharedLock lock(mutex_);
    return std::forward<F>(f)(policy_);
  }

  [[nodiscard]] Index blocks() const noexcept { return policy_.blocks(); }
  [[nodiscard]] Pos block_tokens() const noexcept { return policy_.block_tokens(); }

  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& options = {}) {
    return with_lock([&](P& p) { return p.try_open(prompt, options); });
  }
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    return with_lock([&](P& p) { return p.try_extend(seq, count, tokens); });
  }
  void commit(SeqId seq) {
    with_lock([&](P& p) { p.commit(seq); });
  }
  void rollback(SeqId seq) noexcept {
    with_lock([&](P& p) { p.rollback(seq); });
  }
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    return with_lock([&](P& p) { return p.try_fork(parent, at); });
  }
  void truncate(SeqId seq, Pos length) {
    with_lock([&](P& p) { p.truncate(seq, length); });
  }
  void close(SeqId seq) {
    with_lock([&](P& p) { p.close(seq); });
  }

  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return with_shared_lock([&](const P& p) { return p.contains(seq); });
  }
  [[nodiscard]] Pos length(SeqId seq) const {
    return with_shared_lock([&](const P& p) { return p.length(seq); });
  }
  [[nodiscard]] Pos reserved(SeqId seq) const {
    return with_shared_lock([&](const P& p) { return p.reserved(seq); });
  }
  /// f is called after the lock was let go of: what it does with the rows does not keep others waiting. The runs stay
  /// good, since the sequence is this thread's.
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    std::vector<SlotRun> runs;
    with_shared_lock([&](const P& p) { p.for_each_run(seq, range, [&](const SlotRun& run) { runs.push_back(run); }); });
    for (const SlotRun& run : runs) {
      f(run);
    }
  }
  /// A copy: a span would be out of date when the lock is let go.
  [[nodiscard]] std::vector<BlockId> block_table(SeqId seq) const
    requires BlockTablePolicy<P>
  {
    return with_shared_lock([&](const P& p) {
      const std::span<const BlockId> table = p.block_table(seq);
      return std::vector<BlockId>(table.begin(), table.end());
    });
  }
  [[nodiscard]] Stats stats() const {
    return with_shared_lock([](const P& p) { return p.stats(); });
  }
  void verify() const {
    with_shared_lock([](const P& p) { p.verify(); });
  }

  [[nodiscard]] auto try_pin(std::span<const Token> prefix, const Salt& salt = {})
    requires requires(P& p) { p.try_pin(prefix, salt); }
  {
    return with_lock([&](P& p) { return p.try_pin(prefix, salt); });
  }
  template <class Pin>
    requires requires(P& p, Pin pin) { p.unpin(pin); }
  void unpin(Pin pin) {
    with_lock([&](P& p) { p.unpin(pin); });
  }
  void clear() noexcept
    requires requires(P& p) { p.clear(); }
  {
    with_lock([](P& p) { p.clear(); });
  }
  void set_time(std::uint64_t now) noexcept
    requires requires(P& p) { p.set_time(now); }
  {
    with_lock([&](P& p) { p.set_time(now); });
  }

  template <class F>
    requires requires(const P& p, F& f) { p.for_each_sequence(f); }
  void for_each_sequence(F&& f) const {
    with_shared_lock([&](const P& p) { p.for_each_sequence(f); });
  }
  template <class F>
    requires requires(const P& p, F& f) { p.for_each_cached(f); }
  void for_each_cached(F&& f) const {
    with_shared_lock([&](const P& p) { p.for_each_cached(f); });
  }
  void publish_tokens(SeqId seq, std::span<const Token> tokens)
    requires requires(P& p) { p.publish_tokens(seq, tokens); }
  {
    with_lock([&](P& p) { p.publish_tokens(seq, tokens); });
  }
  [[nodiscard]] auto known_tokens(SeqId seq) const
    requires requires(const P& p) { p.known_tokens(seq); }
  {
    return with_shared_lock([&](const P& p) { return p.known_tokens(seq); });
  }
  [[nodiscard]] std::string salt_bytes(SeqId seq) const
    requires requires(const P& p) { p.salt_bytes(seq); }
  {
    return with_shared_lock([&](const P& p) { return std::string(p.salt_bytes(seq)); });
  }

  [[nodiscard]] Pos match_length(std::span<const Token> prompt, const OpenOptions& options = {}) const
    requires requires(const P& p) { p.match_length(prompt, options); }
  {
    return with_shared_lock([&](const P& p) { return p.match_length(prompt, options); });
  }
  [[nodiscard]] Admission admission(std::span<const Token> prompt, Pos reserve = 0,
                                    const OpenOptions& options = {}) const
    requires requires(const P& p) { p.admission(prompt, reserve, options); }
  {
    return with_shared_lock([&](const P& p) { return p.admission(prompt, reserve, options); });
  }
  [[nodiscard]] bool can_admit(std::span<const Token> prompt, Pos reserve = 0, const OpenOptions& options = {}) const
    requires requires(const P& p) { p.admission(prompt, reserve, options); }
  {
    return admission(prompt, reserve, options) == Admission::now;
  }

 private:
  template <class M>
  static constexpr bool is_shared = requires(M& m) { m.lock_shared(); };
  using SharedLock = std::conditional_t<is_shared<Mutex>, std::shared_lock<Mutex>, std::unique_lock<Mutex>>;
  mutable Mutex mutex_;
  P policy_;
};

}  // namespace v0
}  // namespace kvc
