// Pins the prefixes of a scenario in caches that can pin, once they are computed.
#pragma once

#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/salt.hpp"
#include "request.hpp"

namespace serving {

/// The salt of a request: its tenant.
[[nodiscard]] inline kvc::Salt salt_of(const Request& request) {
  return request.tenant.empty() ? kvc::Salt{} : kvc::Salt(kvc::SaltKind::tenant, request.tenant);
}

/// For caches that cannot pin: pins nothing.
template <class Cache>
class Pins {
 public:
  static constexpr bool possible = false;
  [[nodiscard]] bool pin(Cache&, const Request&, std::span<const Token>) { return false; }
  void unpin_all(Cache&) noexcept {}
};

/// For caches that can pin: remembers the pinned prefixes until unpin_all.
template <class Cache>
  requires kvc::PinsPrefixes<Cache>
class Pins<Cache> {
 public:
  static constexpr bool possible = true;

  /// Pins the first tokens of a computed prompt, if the request wants it and they are not pinned already. Returns
  /// whether it did.
  [[nodiscard]] bool pin(Cache& cache, const Request& request, std::span<const Token> prompt) {
    if (request.pinned_tokens == 0 || request.prompt.empty() ||
        !pinned_.insert({request.tenant, request.prompt.front().content}).second) {
      return false;
    }
    const auto prefix = prompt.first(static_cast<std::size_t>(request.pinned_tokens));
    const auto pinned = cache.try_pin(prefix, salt_of(request));
    if (pinned) {
      pins_.push_back(pinned->pin);
    }
    return pinned.has_value();
  }
  void unpin_all(Cache& cache) {
    for (const auto& pin : pins_) {
      cache.unpin(pin);
    }
    pins_.clear();
  }

 private:
  using Pin = decltype(std::declval<Cache&>().try_pin(std::span<const Token>{}, kvc::Salt{})->pin);
  std::set<std::pair<std::string, std::uint64_t>> pinned_;  // tenant, and content of the first segment
  std::vector<Pin> pins_;
};

}  // namespace serving
