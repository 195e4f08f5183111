// AnyPolicy: the policy concept as a virtual interface, so that long tests are compiled once and not once per policy.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "kvc/policy/concept.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace kvc_test {

struct AnyPolicy {
  virtual ~AnyPolicy() = default;
  virtual kvc::Index blocks() const = 0;
  virtual kvc::Pos block_tokens() const = 0;
  virtual std::optional<kvc::Opened> try_open(std::span<const kvc::Token> prompt, const kvc::OpenOptions& options) = 0;
  virtual std::optional<kvc::Extension> try_extend(kvc::SeqId seq, kvc::Pos count,
                                                   std::span<const kvc::Token> tokens) = 0;
  virtual void commit(kvc::SeqId seq) = 0;
  virtual void rollback(kvc::SeqId seq) noexcept = 0;
  virtual std::optional<kvc::Forked> try_fork(kvc::SeqId seq, kvc::Pos at) = 0;
  virtual void truncate(kvc::SeqId seq, kvc::Pos length) = 0;
  virtual void close(kvc::SeqId seq) = 0;
  virtual bool contains(kvc::SeqId seq) const noexcept = 0;
  virtual kvc::Pos length(kvc::SeqId seq) const = 0;
  virtual kvc::Pos reserved(kvc::SeqId seq) const = 0;
  virtual void for_each_run(kvc::SeqId seq, kvc::PosRange range,
                            const std::function<void(const kvc::SlotRun&)>& f) const = 0;
  virtual kvc::Stats stats() const = 0;
  virtual void verify() const = 0;
  // Of policies that share prefixes.
  virtual std::optional<kvc::PrefixPin> try_pin(std::span<const kvc::Token> prefix, const kvc::Salt& salt) = 0;
  virtual void unpin(kvc::PinId pin) = 0;
  virtual void clear() = 0;
  virtual kvc::Pos match_length(std::span<const kvc::Token> prompt, const kvc::OpenOptions& options) const = 0;
};

template <kvc::Policy P>
class Wrapped final : public AnyPolicy {
 public:
  explicit Wrapped(const typename P::Config& config) : policy_(config) {}
  kvc::Index blocks() const override { return policy_.blocks(); }
  kvc::Pos block_tokens() const override { return policy_.block_tokens(); }
  std::optional<kvc::Opened> try_open(std::span<const kvc::Token> prompt, const kvc::OpenOptions& options) override {
    return policy_.try_open(prompt, options);
  }
  std::optional<kvc::Extension> try_extend(kvc::SeqId seq, kvc::Pos count,
                                           std::span<const kvc::Token> tokens) override {
    return policy_.try_extend(seq, count, tokens);
  }
  void commit(kvc::SeqId seq) override { policy_.commit(seq); }
  void rollback(kvc::SeqId seq) noexcept override { policy_.rollback(seq); }
  std::optional<kvc::Forked> try_fork(kvc::SeqId seq, kvc::Pos at) override { return policy_.try_fork(seq, at); }
  void truncate(kvc::SeqId seq, kvc::Pos length) override { policy_.truncate(seq, length); }
  void close(kvc::SeqId seq) override { policy_.close(seq); }
  bool contains(kvc::SeqId seq) const noexcept override { return policy_.contains(seq); }
  kvc::Pos length(kvc::SeqId seq) const override { return policy_.length(seq); }
  kvc::Pos reserved(kvc::SeqId seq) const override { return policy_.reserved(seq); }
  void for_each_run(kvc::SeqId seq, kvc::PosRange range,
                    const std::function<void(const kvc::SlotRun&)>& f) const override {
    policy_.for_each_run(seq, range, f);
  }
  kvc::Stats stats() const override { return policy_.stats(); }
  void verify() const override { policy_.verify(); }
  std::optional<kvc::PrefixPin> try_pin(std::span<const kvc::Token> prefix, const kvc::Salt& salt) override {
    if constexpr (pins) {
      return policy_.try_pin(prefix, salt);
    }
    return std::nullopt;
  }
  void unpin(kvc::PinId pin) override {
    if constexpr (pins) {
      policy_.unpin(pin);
    }
  }
  void clear() override {
    if constexpr (pins) {
      policy_.clear();
    }
  }
  kvc::Pos match_length(std::span<const kvc::Token> prompt, const kvc::OpenOptions& options) const override {
    if constexpr (pins) {
      return policy_.match_length(prompt, options);
    }
    return 0;
  }

 private:
  static constexpr bool pins = requires(P& p, std::span<const kvc::Token> prefix) { p.try_pin(prefix); };
  P policy_;
};

/// The policy of a case of policies.hpp.
template <class Case>
std::unique_ptr<AnyPolicy> make_policy(kvc::Pos tokens, kvc::Index sequences, kvc::Pos max_tokens) {
  return std::make_unique<Wrapped<typename Case::Policy>>(Case::config(tokens, sequences, max_tokens));
}

}  // namespace kvc_test
