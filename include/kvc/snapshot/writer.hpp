// Writer: saves keys and values of a cache to any sink, layer by layer.
//
//   snapshot::Writer writer(cache, sequences, sink);    writes everything but the rows
//   writer.layer(0) ... writer.layer(layers - 1);       in any order, each once
//   writer.finish();
//
// So a layer can be sent while the next one is computed: with SaveOptions::reserved, the rows of an uncommitted
// extension are saved too, layer by layer as they are written, and its recurrent states. The sink gathers the rows from
// the pool; they are not copied first.
#pragma once

#include <span>
#include <type_traits>
#include <utility>
#include <variant>

#include "kvc/core/types.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/snapshot/collect.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/group_writer.hpp"
#include "kvc/snapshot/options.hpp"
#include "kvc/snapshot/plain_writer.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

/// Writes one snapshot. Cache, sink and the tokens in `sequences` must outlive it. Until `finish` the saved sequences
/// must not change; rows and states of a layer may be written until `layer` saves them. Layers are those of the model.
/// A layer that reads the rows of another one has none of its own: `layer` writes nothing for it, however often.
///
///   expression                                | does                     | throws                       | complexity
///   ------------------------------------------+--------------------------+------------------------------+-------------
///   Writer w(cache, sequences, sink, options) | writes all but the rows  | invalid_argument: a sequence | O(blocks +
///                                             |                          | is not open, or has other    | tokens)
///                                             |                          | tokens than a sequence that  |
///                                             |                          | shares its rows              |
///   w.layer(l)                                | writes the rows of layer | invalid_argument: l is no    | O(bytes)
///                                             | l, or its states         | layer, or was written before |
///   w.finish()                                | writes the end, without  | invalid_argument: a layer    | O(layers)
///                                             | which the bytes are no   | was not written              |
///                                             | snapshot                 |                              |
///   w.contents()                              | returns what was written |                              | O(1)
///                                             | so far                   |                              |
///
/// All of them also throw what the sink throws.
template <class Cache>
class Writer {
 public:
  /// Writes all but the rows. O(blocks + tokens). Throws std::invalid_argument if a sequence is not open, or has other
  /// tokens than one that shares its rows.
  Writer(const Cache& cache, std::span<const SavedSequence> sequences, io::ByteSink& sink,
         const SaveOptions& options = {})
      : parts_(parts(cache, sequences, sink, options)) {}
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  /// The contents written so far; with layer groups as those of Loaded.
  [[nodiscard]] const Contents& contents() const noexcept {
    return std::visit([](const auto& writer) -> const Contents& { return writer.contents(); }, parts_);
  }

  /// Writes the rows of a layer of the model, or its states. O(bytes). Throws std::invalid_argument if there is no such
  /// layer, or it was written before.
  void layer(Index layer) {
    std::visit([&](auto& writer) { writer.layer(layer); }, parts_);
  }

  /// Writes the end. Throws std::invalid_argument if a layer was not written.
  void finish() {
    std::visit([](auto& writer) { writer.finish(); }, parts_);
  }

 private:
  static constexpr bool has_groups = HoldsGroups<typename Cache::PolicyType>;
  using Plain = detail::PlainWriter<Cache>;
  using Parts =
      typename std::conditional_t<has_groups, std::type_identity<std::variant<Plain, detail::GroupWriter<Cache>>>,
                                  std::type_identity<std::variant<Plain>>>::type;

  [[nodiscard]] static Parts parts(const Cache& cache, std::span<const SavedSequence> sequences, io::ByteSink& sink,
                                   const SaveOptions& options) {
    if constexpr (has_groups) {
      if (!cache.layers().is_plain()) {
        return Parts(std::in_place_index<1>, cache, sequences, sink, options);
      }
    }
    return Parts(std::in_place_index<0>, cache, sequences, sink, options);
  }

  Parts parts_;  // which of the two depends on the layers
};

}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
