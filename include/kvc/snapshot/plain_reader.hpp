// PlainReader: loads a snapshot of a cache whose layers are all alike, layer by layer: version 1 of the format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/snapshot/options.hpp"
#include "kvc/snapshot/restore.hpp"
#include "kvc/snapshot/row_reader.hpp"
#include "kvc/snapshot/sections.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

namespace detail {

/// Loads a snapshot of version 1: into a cache whose layers are all alike. The contract is that of Reader.
template <class Cache>
class PlainReader {
 public:
  PlainReader(Cache& cache, io::ByteSource& source, const LoadOptions& options = {})
      : cache_(&cache),
        in_(source),
        contents_(ContentsReader(in_).read()),
        restorer_(cache, contents_, options.cached_prefixes),
        rows_(cache, contents_, order_of(in_, contents_), decoder_of<T>(in_, contents_, options.convert_elements)),
        layers_(contents_.shape.layers) {
    require_fit();
  }
  PlainReader(const PlainReader&) = delete;
  PlainReader& operator=(const PlainReader&) = delete;

  [[nodiscard]] const Contents& contents() const noexcept { return contents_; }
  [[nodiscard]] Index tokens() const noexcept { return restorer_.tokens(); }

  [[nodiscard]] bool try_reserve() {
    require(!reserved_, "try_reserve", "called again", "called once");
    const Stats now = cache_->stats();
    if (now.blocks_cached > 0 && restorer_.blocks() > now.blocks_free && in_.can_rewind()) {
      const SectionReader::Mark rows = in_.mark();
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

  [[noreturn]] KVC_COLD void refuse(std::size_t field, const std::string& expected, const std::string& found) const {
    refuse_description(in_, field, expected, found);
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
    same(stored_row_bytes<T>(contents_.element, s.key_dim), contents_.key_row_bytes,
         offsetof(Description, key_row_bytes), "bytes of a key");
    same(stored_row_bytes<T>(contents_.element, s.value_dim), contents_.value_row_bytes,
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
  SectionReader in_;
  Contents contents_;
  Restorer<Cache> restorer_;
  RowReader<Cache> rows_;
  LayerSections layers_;
  bool reserved_ = false;
  bool ended_ = false;
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
