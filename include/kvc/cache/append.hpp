// Append: positions of one sequence between their reservation and their commit.
#pragma once

#include <utility>

#include "kvc/core/types.hpp"
#include "kvc/fwd.hpp"

namespace kvc {
inline namespace v0 {

/// Positions that `KvCache::extend` reserved and that are not yet committed. An Append that is destroyed uncommitted
/// takes its positions back, so it must not outlive its cache. It is empty when it was default-constructed, moved from,
/// committed or rolled back. Movable, not copyable. P is the policy of the cache.
template <class P>
class Append {
 public:
  /// Empty. Assign an extension to it.
  Append() = default;
  /// Takes the positions over; `other` is empty then.
  Append(Append&& other) noexcept
      : policy_(std::exchange(other.policy_, nullptr)),
        seq_(other.seq_),
        range_(std::exchange(other.range_, {})),
        is_restored_(std::exchange(other.is_restored_, false)),
        writes_(std::exchange(other.writes_, 0)) {}
  /// Takes back the positions that it has first.
  Append& operator=(Append&& other) noexcept {
    if (this != &other) {
      rollback();
      policy_ = std::exchange(other.policy_, nullptr);
      seq_ = other.seq_;
      range_ = std::exchange(other.range_, {});
      is_restored_ = std::exchange(other.is_restored_, false);
      writes_ = std::exchange(other.writes_, 0);
    }
    return *this;
  }
  ~Append() { rollback(); }

  /// Whether it has positions to commit or to roll back.
  [[nodiscard]] bool uncommitted() const noexcept { return policy_ != nullptr; }
  [[nodiscard]] SeqId seq() const noexcept { return seq_; }          ///< the sequence
  [[nodiscard]] PosRange range() const noexcept { return range_; }   ///< the reserved positions
  [[nodiscard]] Pos size() const noexcept { return range_.size(); }  ///< how many they are

  /// Gives up the ownership of the positions: they stay reserved, neither committed nor taken back, until the sequence
  /// is closed.
  void release() noexcept { policy_ = nullptr; }

  /// Takes the positions back. Does nothing if it is empty, or if the sequence was closed, which took them back.
  void rollback() noexcept {
    if (policy_ != nullptr) {
      std::exchange(policy_, nullptr)->rollback(seq_);
      range_ = {};
    }
  }

 private:
  template <class T, class Policy, class L, class S>
  friend class KvCache;
  Append(P* policy, SeqId seq, PosRange range, bool is_restored = false) noexcept
      : policy_(policy), seq_(seq), range_(range), is_restored_(is_restored) {}

  P* policy_ = nullptr;
  SeqId seq_;
  PosRange range_;
  bool is_restored_ = false;  // by try_restore: groups may have no slots for rows that no query sees
  mutable Index writes_ = 0;  // calls of write: for the assertion that no layer was forgotten
};

}  // namespace v0
}  // namespace kvc
