// Requests to a policy, in short.
#pragma once

#include <span>
#include <vector>

#include "catch.hpp"
#include "kvc/policy/concept.hpp"

namespace kvc_test {

using Tokens = std::vector<kvc::Token>;

inline Tokens counting(kvc::Token first, int count) {
  Tokens tokens(static_cast<std::size_t>(count));
  for (kvc::Token& token : tokens) {
    token = first++;
  }
  return tokens;
}

inline Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Opens, computes what is not cached, commits.
template <class P>
kvc::Opened serve(P& policy, const Tokens& prompt, const kvc::OpenOptions& options = {}) {
  const kvc::Opened opened = *policy.try_open(prompt, options);
  const auto rest = std::span(prompt).subspan(static_cast<std::size_t>(opened.cached));
  REQUIRE(policy.try_extend(opened.seq, static_cast<kvc::Pos>(rest.size()), rest));
  policy.commit(opened.seq);
  policy.verify();
  return opened;
}

/// And closes; how many tokens were cached.
template <class P>
kvc::Pos serve_and_close(P& policy, const Tokens& prompt, const kvc::OpenOptions& options = {}) {
  const kvc::Opened opened = serve(policy, prompt, options);
  policy.close(opened.seq);
  policy.verify();
  return opened.cached;
}

}  // namespace kvc_test
