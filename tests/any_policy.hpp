// AnyPolicy: the policy concept, and pins and matches, as a virtual interface: long tests are compiled once and not
// once per policy.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/testing/policy_model.hpp"

namespace kvc_test {

struct AnyPolicy : kvc::testing::PolicyInterface {
  virtual std::optional<kvc::PrefixPin> try_pin(std::span<const kvc::Token> prefix, const kvc::Salt& salt) = 0;
  virtual void unpin(kvc::PinId pin) = 0;
  virtual void clear() = 0;
  virtual kvc::Pos match_length(std::span<const kvc::Token> prompt, const kvc::OpenOptions& options) const = 0;
};

template <kvc::Policy P>
class Wrapped final : public kvc::testing::PolicyAdapter<P, AnyPolicy> {
  using Base = kvc::testing::PolicyAdapter<P, AnyPolicy>;

 public:
  using Base::Base;
  std::optional<kvc::PrefixPin> try_pin(std::span<const kvc::Token> prefix, const kvc::Salt& salt) override {
    if constexpr (kvc::PinsPrefixes<P>) {
      return this->policy().try_pin(prefix, salt);
    }
    return std::nullopt;
  }
  void unpin(kvc::PinId pin) override {
    if constexpr (kvc::PinsPrefixes<P>) {
      this->policy().unpin(pin);
    }
  }
  void clear() override {
    if constexpr (kvc::ClearsCache<P>) {
      this->policy().clear();
    }
  }
  kvc::Pos match_length(std::span<const kvc::Token> prompt, const kvc::OpenOptions& options) const override {
    if constexpr (kvc::MatchesPrefixes<P>) {
      return this->policy().match_length(prompt, options);
    }
    return 0;
  }
};

/// The policy of a case of policies.hpp.
template <class Case>
std::unique_ptr<AnyPolicy> make_policy(kvc::Pos tokens, kvc::Index sequences, kvc::Pos max_tokens) {
  return std::make_unique<Wrapped<typename Case::Policy>>(Case::config(tokens, sequences, max_tokens));
}

}  // namespace kvc_test
