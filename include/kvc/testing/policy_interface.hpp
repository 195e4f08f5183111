// PolicyInterface: a policy behind virtual functions.
#pragma once

#include <functional>
#include <optional>
#include <span>

#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/open_options.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

/// The Policy concept as virtual functions, so that long tests are compiled once and not once per policy. Each function
/// is the expression of the same name in the table of Policy.
struct PolicyInterface {
  virtual ~PolicyInterface() = default;
  /// The expressions of the contract.
  [[nodiscard]] virtual Index blocks() const = 0;
  [[nodiscard]] virtual Pos block_tokens() const = 0;
  virtual std::optional<Opened> try_open(std::span<const Token> prompt, const OpenOptions& options) = 0;
  virtual std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens) = 0;
  virtual void commit(SeqId seq) = 0;
  virtual void rollback(SeqId seq) noexcept = 0;
  virtual std::optional<Forked> try_fork(SeqId seq, Pos at) = 0;
  virtual void truncate(SeqId seq, Pos length) = 0;
  virtual void close(SeqId seq) = 0;
  [[nodiscard]] virtual bool contains(SeqId seq) const noexcept = 0;
  [[nodiscard]] virtual Pos length(SeqId seq) const = 0;
  [[nodiscard]] virtual Pos reserved(SeqId seq) const = 0;
  virtual void for_each_run(SeqId seq, PosRange range, const std::function<void(const SlotRun&)>& f) const = 0;
  [[nodiscard]] virtual Stats stats() const = 0;
  virtual void verify() const = 0;
};

/// A P behind PolicyInterface, or behind an interface that derives from it.
template <Policy P, class Interface = PolicyInterface>
class PolicyAdapter : public Interface {
 public:
  /// Makes the policy.
  explicit PolicyAdapter(const typename P::Config& config) : policy_(config) {}
  /// The policy itself.
  [[nodiscard]] P& policy() noexcept { return policy_; }
  /// The policy itself.
  [[nodiscard]] const P& policy() const noexcept { return policy_; }

  [[nodiscard]] Index blocks() const override { return policy_.blocks(); }
  [[nodiscard]] Pos block_tokens() const override { return policy_.block_tokens(); }
  std::optional<Opened> try_open(std::span<const Token> prompt, const OpenOptions& options) override {
    return policy_.try_open(prompt, options);
  }
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens) override {
    return policy_.try_extend(seq, count, tokens);
  }
  void commit(SeqId seq) override { policy_.commit(seq); }
  void rollback(SeqId seq) noexcept override { policy_.rollback(seq); }
  std::optional<Forked> try_fork(SeqId seq, Pos at) override { return policy_.try_fork(seq, at); }
  void truncate(SeqId seq, Pos length) override { policy_.truncate(seq, length); }
  void close(SeqId seq) override { policy_.close(seq); }
  [[nodiscard]] bool contains(SeqId seq) const noexcept override { return policy_.contains(seq); }
  [[nodiscard]] Pos length(SeqId seq) const override { return policy_.length(seq); }
  [[nodiscard]] Pos reserved(SeqId seq) const override { return policy_.reserved(seq); }
  void for_each_run(SeqId seq, PosRange range, const std::function<void(const SlotRun&)>& f) const override {
    policy_.for_each_run(seq, range, f);
  }
  [[nodiscard]] Stats stats() const override { return policy_.stats(); }
  void verify() const override { policy_.verify(); }

 private:
  P policy_;
};

}  // namespace testing
}  // namespace v0
}  // namespace kvc
