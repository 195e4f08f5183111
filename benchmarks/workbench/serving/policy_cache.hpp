// PolicyCache: a policy with the interface of kvc::KvCache, and no keys and values behind it.
//
// The scheduler runs over this one as it runs over a cache. Rows that a policy asks to be copied are counted, so that a
// cost model can charge for them.
#pragma once

#include <optional>
#include <span>
#include <utility>

#include "step.hpp"

namespace serving {

template <kvc::Policy P>
class PolicyCache {
 public:
  using PolicyType = P;

  /// As KvCache::Append: takes the positions back when it is destroyed uncommitted.
  class Append {
   public:
    Append(Append&& other) noexcept
        : policy_(std::exchange(other.policy_, nullptr)), seq_(other.seq_), range_(other.range_) {}
    Append& operator=(Append&& other) noexcept {
      if (this != &other) {
        rollback();
        policy_ = std::exchange(other.policy_, nullptr);
        seq_ = other.seq_;
        range_ = other.range_;
      }
      return *this;
    }
    ~Append() { rollback(); }
    [[nodiscard]] kvc::PosRange range() const noexcept { return range_; }

   private:
    friend class PolicyCache;
    Append(P* policy, kvc::SeqId seq, kvc::PosRange range) noexcept : policy_(policy), seq_(seq), range_(range) {}
    void rollback() noexcept {
      if (policy_ != nullptr) {
        std::exchange(policy_, nullptr)->rollback(seq_);
      }
    }
    P* policy_;
    kvc::SeqId seq_;
    kvc::PosRange range_;
  };

  explicit PolicyCache(const typename P::Config& config) : policy_(config) {}
  PolicyCache(const PolicyCache&) = delete;  // appends point into it
  PolicyCache& operator=(const PolicyCache&) = delete;

  [[nodiscard]] std::optional<kvc::Opened> try_open(std::span<const Token> prompt,
                                                    const kvc::OpenOptions& options = {}) {
    return policy_.try_open(prompt, options);
  }
  [[nodiscard]] std::optional<Append> try_extend(kvc::SeqId seq, std::span<const Token> tokens) {
    const auto extension = policy_.try_extend(seq, static_cast<Pos>(tokens.size()), tokens);
    if (!extension) {
      return std::nullopt;
    }
    for (const kvc::RowCopy& copy : extension->copies) {
      copied_tokens_ += copy.count;
    }
    return Append(&policy_, seq, extension->range);
  }
  void commit(Append&& append) {
    policy_.commit(append.seq_);
    append.policy_ = nullptr;
  }
  [[nodiscard]] std::optional<kvc::SeqId> try_fork(kvc::SeqId parent, Pos at) {
    const auto forked = policy_.try_fork(parent, at);
    if (!forked) {
      return std::nullopt;
    }
    for (const kvc::RowCopy& copy : forked->copies) {
      copied_tokens_ += copy.count;
    }
    return forked->seq;
  }
  void close(kvc::SeqId seq) { policy_.close(seq); }
  [[nodiscard]] auto try_pin(std::span<const Token> prefix, const kvc::Salt& salt = {})
    requires requires(P& p) { p.try_pin(prefix, salt); }
  {
    return policy_.try_pin(prefix, salt);
  }
  template <class Pin>
    requires requires(P& p, Pin pin) { p.unpin(pin); }
  void unpin(Pin pin) {
    policy_.unpin(pin);
  }

  [[nodiscard]] Pos length(kvc::SeqId seq) const { return policy_.length(seq); }
  [[nodiscard]] const P& policy() const noexcept { return policy_; }
  [[nodiscard]] kvc::Stats stats() const { return policy_.stats(); }
  void verify() const { policy_.verify(); }

  /// Rows that were copied since this was last called.
  [[nodiscard]] Index take_copied_tokens() noexcept { return std::exchange(copied_tokens_, 0); }

 private:
  P policy_;
  Index copied_tokens_ = 0;
};

}  // namespace serving
