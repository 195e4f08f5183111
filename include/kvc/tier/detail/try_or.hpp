// try_or: carries on where an operation of a store could not begin.
#pragma once

#include "kvc/config.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// f(), and `otherwise()` if that throws.
template <class F, class G>
void try_or(F&& f, [[maybe_unused]] G&& otherwise) {
#if KVC_HAS_EXCEPTIONS
  try {
    f();
  } catch (...) {
    otherwise();
  }
#else
  f();
#endif
}

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
