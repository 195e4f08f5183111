// Reader: loads a snapshot from any source into a cache of any policy, block size and layout, layer by layer.
//
//   snapshot::Reader reader(cache, source);             reads and checks everything but the rows
//   if (reader.try_reserve()) {                         reserves room
//     while (reader.next_layer()) {}                    as the layers arrive
//     const snapshot::Loaded loaded = reader.commit();
//   }
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvc/cache/one_group.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/restore.hpp"
#include "kvc/snapshot/row_reader.hpp"
#include "kvc/snapshot/sections.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

/// Options of loading.
struct LoadOptions {
  /// Load what was cached and no sequence references, if the policy keeps such.
  bool cached_prefixes = true;
  bool convert_elements = false;  ///< allow f32, f16 and bf16 for each other, rounding to nearest
};

/// The result of loading a snapshot.
struct Loaded {
  std::vector<SeqId> sequences;  ///< in the order in which they were saved
  /// contents.tokens_of(i): the known tokens of sequence i. With layer groups, `shape` is that of the first one, and
  /// `blocks` has one for each sequence, and for each prefix that was cached.
  Contents contents;
};

/// Loads one snapshot. Cache and source must outlive it, and nobody else may use the cache until it has committed or is
/// destroyed.
///
///   expression                       | does                             | throws                        | complexity
///   ---------------------------------+----------------------------------+-------------------------------+-------------
///   Reader r(cache, source, options) | reads and checks all but the     | FormatError: no snapshot, or  | O(blocks +
///                                    | rows                             | none that this cache can hold | tokens)
///   r.try_reserve()                  | reserves room for everything;    | FormatError: where room must  | O(blocks +
///                                    | false if there is none, and      | be made by evicting and the   | tokens)
///                                    | nothing has changed              | source can rewind, all rows   | or O(bytes)
///                                    |                                  | are checked first             |
///   r.next_layer()                   | reads the next layer to its      | FormatError                   | O(bytes)
///                                    | place; its number, or nothing    |                               |
///                                    | after the last one               |                               |
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
  /// this cache can hold.
  Reader(Cache& cache, io::ByteSource& source, const LoadOptions& options = {})
      : cache_(&one_group(cache)),
        in_(source),
        contents_(detail::ContentsReader(in_).read()),
        restorer_(cache, contents_, options.cached_prefixes),
        rows_(cache, contents_, detail::order_of(in_, contents_),
              detail::decoder_of<T>(in_, contents_, options.convert_elements)),
        layers_(contents_.shape.layers) {
    require_fit();
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  /// The contents of the snapshot without the rows.
  [[nodiscard]] const Contents& contents() const noexcept { return contents_; }
  /// Positions that need room.
  [[nodiscard]] Index tokens() const noexcept { return restorer_.tokens(); }

  /// Reserves room for everything; false if there is none, and nothing has changed. Throws FormatError.
  [[nodiscard]] bool try_reserve() {
    require(!reserved_, "try_reserve", "called again", "called once");
    const Stats now = cache_->stats();
    if (now.blocks_cached > 0 && restorer_.blocks() > now.blocks_free && in_.can_rewind()) {
      const detail::SectionReader::Mark rows = in_.mark();
      while (begin_layer()) {
        in_.skip();
        in_.finish();
      }
      in_.rewind(rows);
      layers_.restart();
    }
    reserved_ = restorer_.try_reserve();
    return reserved_;
  }

  /// Reads the next layer to its place; returns its number, or nothing after the last one. O(bytes). Throws
  /// FormatError.
  std::optional<Index> next_layer() {
    require(reserved_ && !ended_, "next_layer", "called before try_reserve or after the end", "called in between");
    const std::optional<Index> layer = begin_layer();
    if (layer) {
      rows_.read(in_, *layer, restorer_.targets());
      in_.finish();
    } else {
      ended_ = true;
    }
    return layer;
  }

  /// Makes all of it part of the cache. Throws std::bad_alloc; nothing has changed then.
  [[nodiscard]] Loaded commit() {
    require(ended_, "commit", "called before the end was read", "called after it");
    ended_ = reserved_ = false;
    Loaded loaded{restorer_.commit(), {}};
    loaded.contents = std::move(contents_);
    return loaded;
  }

 private:
  using T = typename Cache::Element;
  using Description = format::DescriptionRecord;

  [[nodiscard]] static Cache& one_group(Cache& cache) {
    require_one_group(cache, "snapshot::Reader");
    return cache;
  }
  [[noreturn]] KVC_COLD void refuse(std::size_t field, const std::string& expected, const std::string& found) const {
    detail::refuse_description(in_, field, expected, found);
  }
  void require_fit() const {
    const Shape& own = cache_->shape();
    const Shape& s = contents_.shape;
    const auto same = [&](Index ours, Index found, std::size_t field, const char* what) {
      if (ours != found) {
        refuse(field, kvc::detail::concat({what, " ", std::to_string(ours), ", as the cache has"}),
               std::to_string(found));
      }
    };
    same(own.layers, s.layers, offsetof(Description, layers), "layers");
    same(own.kv_heads, s.kv_heads, offsetof(Description, kv_heads), "kv_heads");
    same(own.key_dim, s.key_dim, offsetof(Description, key_dim), "key_dim");
    same(own.value_dim, s.value_dim, offsetof(Description, value_dim), "value_dim");
    same(detail::stored_row_bytes<T>(contents_.element, s.key_dim), contents_.key_row_bytes,
         offsetof(Description, key_row_bytes), "bytes of a key");
    same(detail::stored_row_bytes<T>(contents_.element, s.value_dim), contents_.value_row_bytes,
         offsetof(Description, value_row_bytes), "bytes of a value");
    // A few bytes of a sequence record can ask for a large block table. Allow no more than the bytes of the rows, which
    // the source must have.
    const std::uint64_t table_bytes = format::bounded_product(restorer_.table_entries(), sizeof(BlockId));
    if (table_bytes > (std::uint64_t{1} << 20) +
                          format::bounded_product(contents_.layer_bytes(), static_cast<std::uint64_t>(s.layers))) {
      in_.fail_at(sizeof(format::FileHeader),
                  kvc::detail::concat({"sequences whose block tables are smaller than the rows, found ",
                                       std::to_string(contents_.sequences.size()), " that need ",
                                       std::to_string(table_bytes), " bytes"}));
    }
  }
  /// The layer of the next section, or nothing after reading the end.
  [[nodiscard]] std::optional<Index> begin_layer() {
    return layers_.next(in_, [&](Index) { return contents_.layer_bytes(); });
  }

  Cache* cache_;
  detail::SectionReader in_;
  Contents contents_;
  detail::Restorer<Cache> restorer_;
  detail::RowReader<Cache> rows_;
  detail::LayerSections layers_;
  bool reserved_ = false;
  bool ended_ = false;
};

}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
