// require_one_group: for what does not know layer groups.
#pragma once

#include <string>
#include <string_view>

#include "kvc/core/error.hpp"

namespace kvc {
inline namespace v0 {

/// Throws std::invalid_argument unless all layers of the cache are alike, keep every position, and store rows of their
/// own: unless it is what a Shape describes.
///   what   who asks: "cuda::view"
template <class Cache>
void require_one_group(const Cache& cache, std::string_view what) {
  require(cache.layers().is_plain(), "cache.layers()",
          std::to_string(cache.layers().groups().size()) + " layer group(s) of " +
              std::to_string(cache.layers().layers()) + " layers",
          detail::concat({"one group of full attention, each layer with rows of its own: ", what, " knows no other"}));
}

}  // namespace v0
}  // namespace kvc
