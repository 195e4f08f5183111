// Reader: loads a snapshot from any source into a cache of any policy, block size and layout, layer by layer.
//
//   snapshot::Reader reader(cache, source);             reads and checks everything but the rows
//   if (reader.try_reserve()) {                         reserves room
//     while (reader.next_layer()) {}                    as the layers arrive
//     const snapshot::Loaded loaded = reader.commit();
//   }
#pragma once

#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

#include "kvc/cache/one_group.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/group_reader.hpp"
#include "kvc/snapshot/options.hpp"
#include "kvc/snapshot/plain_reader.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

/// Loads one snapshot. Cache and source must outlive it, and nobody else may use the cache until it has committed or is
/// destroyed.
///
///   expression                       | does                             | throws                        | complexity
///   ---------------------------------+----------------------------------+-------------------------------+-------------
///   Reader r(cache, source, options) | reads and checks all but the     | FormatError: no snapshot, or  | O(blocks +
///                                    | rows                             | none that this cache can hold | tokens)
///                                    |                                  | invalid_argument: the policy  |
///                                    |                                  | cannot restore layer groups   |
///   r.try_reserve()                  | reserves room for everything;    | FormatError: where room must  | O(blocks +
///                                    | false if there is none, and      | be made by evicting and the   | tokens)
///                                    | nothing has changed              | source can rewind, all rows   | or O(bytes)
///                                    |                                  | are checked first             |
///   r.next_layer()                   | reads the next layer to its      | FormatError                   | O(bytes)
///                                    | place; which layer of the model  |                               |
///                                    | that is, or nothing after the    |                               |
///                                    | last one                         |                               |
///   r.commit()                       | makes all of it part of the      | bad_alloc; nothing has        | O(blocks +
///                                    | cache                            | changed                       | tokens)
///   r.contents(), r.tokens()         | what the snapshot holds but the  |                               | O(1)
///                                    | rows; the positions that need    |                               |
///                                    | room                             |                               |
///
/// Until `commit` nothing can be seen of it: no handle has been given out, and no prompt matches a row. A reader that
/// is destroyed before rolls everything back; only the counters of stats() may have moved.
template <class Cache>
class Reader {
 public:
  /// Reads and checks all but the rows. O(blocks + tokens). Throws FormatError for what is no snapshot, or none that
  /// this cache can hold, and std::invalid_argument for layer groups of a policy that cannot restore sequences
  /// (RestoresSequences).
  Reader(Cache& cache, io::ByteSource& source, const LoadOptions& options = {})
      : parts_(parts(cache, source, options)) {}
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  /// The contents of the snapshot without the rows; with layer groups as those of Loaded.
  [[nodiscard]] const Contents& contents() const noexcept {
    return std::visit([](const auto& reader) -> const Contents& { return reader.contents(); }, parts_);
  }
  /// Positions that need room. With layer groups: of all sequences, whatever they share.
  [[nodiscard]] Index tokens() const noexcept {
    return std::visit([](const auto& reader) { return reader.tokens(); }, parts_);
  }

  /// Reserves room for everything; false if there is none, and nothing has changed. Throws FormatError.
  [[nodiscard]] bool try_reserve() {
    return std::visit([](auto& reader) { return reader.try_reserve(); }, parts_);
  }

  /// Reads the next layer to its place; returns which layer of the model that is, or nothing after the last one. Layers
  /// that read the rows of another one do not come. O(bytes). Throws FormatError.
  std::optional<Index> next_layer() {
    return std::visit([](auto& reader) { return reader.next_layer(); }, parts_);
  }

  /// Makes all of it part of the cache. Throws std::bad_alloc; nothing has changed then.
  [[nodiscard]] Loaded commit() {
    return std::visit([](auto& reader) { return reader.commit(); }, parts_);
  }

 private:
  static constexpr bool has_groups = RestoresSequences<typename Cache::PolicyType>;
  using Plain = detail::PlainReader<Cache>;
  using Parts =
      typename std::conditional_t<has_groups, std::type_identity<std::variant<Plain, detail::GroupReader<Cache>>>,
                                  std::type_identity<std::variant<Plain>>>::type;

  [[nodiscard]] static Parts parts(Cache& cache, io::ByteSource& source, const LoadOptions& options) {
    if constexpr (has_groups) {
      if (!cache.layers().is_plain()) {
        return Parts(std::in_place_index<1>, cache, source, options);
      }
    }
    kvc::require_one_group(cache, "snapshot::Reader");
    return Parts(std::in_place_index<0>, cache, source, options);
  }

  Parts parts_;  // which of the two depends on the layers
};

}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
