// PrefixPin: a prefix that is kept from eviction.
#pragma once

#include "kvc/core/types.hpp"
#include "kvc/fwd.hpp"

namespace kvc {
inline namespace v0 {

/// Handle of a pin. A handle that outlived its pin is recognised.
class PinId {
 public:
  /// A handle that is never valid.
  PinId() = default;
  friend constexpr bool operator==(PinId, PinId) = default;

 private:
  template <class, class, class>
  friend class PrefixShared;
  explicit PinId(SeqId record) : record_(record) {}
  SeqId record_;  // in the table of sequences; not given out, since a pin is no sequence
};

/// A new pin, and the number of tokens of its prefix that it protects.
struct PrefixPin {
  PinId pin;
  Pos tokens = 0;
};

}  // namespace v0
}  // namespace kvc
