// Fingerprint: whether two caches hold the same kind of rows, and whether their blocks are the same bytes.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "kvc/cache.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/policy/capabilities.hpp"

namespace kvc {
inline namespace v0 {

/// What two caches with equal fingerprints have in common.
enum class FingerprintOf {
  /// Element type, layers and layer groups: a sequence of one can be stored in the other, as snapshots and transfers
  /// do. Policy, block size and layout may differ.
  rows,
  /// These, the layout and the slots in a block: a block of one is, byte for byte, a block of the other.
  blocks
};

/// A text that says all that matters, for people and for comparisons, and a hash of it, for keys and headers. Both are
/// the same in every process and on every machine. The text begins with the version of its form.
struct Fingerprint {
  std::string text;        ///< "kvc rows 1; element f32; ..."
  std::uint64_t hash = 0;  ///< FNV-1a of text, 64 bits

  /// Whether both say the same.
  friend bool operator==(const Fingerprint& a, const Fingerprint& b) noexcept { return a.text == b.text; }
};

namespace detail {
/// FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/
[[nodiscard]] constexpr std::uint64_t fnv_1a(std::string_view text) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  return hash;
}

class FingerprintText {
 public:
  explicit FingerprintText(std::string begin) : text_(std::move(begin)) {}
  /// Adds a word and a number, if it is not 0.
  void add(std::string_view word, Index number) {
    if (number != 0) {
      text_.append(" ").append(word).append(" ").append(std::to_string(number));
    }
  }
  void add(std::string_view words) { text_.append(words); }
  [[nodiscard]] Fingerprint take() && {
    const std::uint64_t hash = fnv_1a(text_);
    return {std::move(text_), hash};
  }

 private:
  std::string text_;
};
}  // namespace detail

/// The fingerprint of a cache: of what it holds, not of its present rows. The room for a rewind and the size of the
/// pool are not in it. O(layers).
template <class Cache>
[[nodiscard]] Fingerprint fingerprint(const Cache& cache, FingerprintOf of = FingerprintOf::rows) {
  using P = typename Cache::PolicyType;
  const LayerGroups& layers = cache.layers();
  detail::FingerprintText text(of == FingerprintOf::rows ? "kvc rows 1" : "kvc blocks 1");
  text.add("; element ");
  text.add(Element<typename Cache::Element>::name);
  text.add(std::endian::native == std::endian::little ? "; little-endian" : "; big-endian");
  Index number = 0;
  for (const LayerGroup& group : layers.groups()) {
    text.add("; group");
    text.add("layers", group.shape.layers);
    text.add("kv_heads", group.shape.kv_heads);
    text.add("key_dim", group.shape.key_dim);
    text.add("value_dim", group.shape.value_dim);
    text.add("window", group.retained.window);
    text.add("chunk", group.retained.chunk);
    text.add("kept", group.retained.kept);
    text.add("cross_rows", group.cross_rows);
    text.add("tokens_per_row", group.tokens_per_row == 1 ? 0 : group.tokens_per_row);
    text.add(group.latent ? " latent" : "");
    if (of == FingerprintOf::blocks) {
      if constexpr (HoldsGroups<P>) {
        text.add("block_tokens", cache.policy().block_tokens(number));
      } else {
        text.add("block_tokens", cache.policy().block_tokens());
      }
    }
    ++number;
  }
  for (const StateGroup& states : layers.states()) {
    text.add("; states");
    text.add("layers", states.layers);
    text.add("bytes", states.bytes);
  }
  text.add("; model layers");
  for (Index layer = 0; layer < layers.layers(); ++layer) {  // group.layer, with r if it reads, or s kind.layer
    const bool recurrent = layers.is_recurrent(layer);
    const LayerPlace place = recurrent
                                 ? LayerPlace{layers.state_place(layer).kind, layers.state_place(layer).layer, true}
                                 : layers.place(layer);
    text.add(recurrent ? " s" : " ");
    text.add(std::to_string(place.group));
    text.add(".");
    text.add(std::to_string(place.layer));
    text.add(place.is_owner ? "" : "r");
  }
  if (of == FingerprintOf::blocks) {
    text.add("; layout ");
    text.add(Cache::LayoutType::name);
  }
  return std::move(text).take();
}

}  // namespace v0
}  // namespace kvc
