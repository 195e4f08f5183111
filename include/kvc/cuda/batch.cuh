// Batch: the block tables of a batch in device memory.
//
//   cuda::Batch batch({.sequences = 256, .blocks = 65536, .queries = 8192});   // once
//   batch.upload(cache, steps, stream);                                       // each step, after the last extend
//   cuda::write(cuda::view(cache, layer), batch, ...);                        // each layer; may be a captured graph
//
// A model with layer groups has a Batch for each group, and passes its number:
//
//   batches[g].upload(cache, g, steps, stream);                               // each step and group
//
// Device addresses are fixed, and kernels read all sizes on the device. So a graph that was captured with one batch
// also runs with the next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/batch.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/check.cuh"
#include "kvc/cuda/upload.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// The largest batch that a Batch can hold. Each limit is between 1 and 2^31 - 1.
struct BatchLimits {
  Index sequences = 0;
  Index blocks = 0;   ///< table entries of all sequences: blocks of a paged policy, one per contiguous sequence
  Index queries = 0;  ///< query rows of all sequences
};

/// The block tables of a batch in device memory. Allocates at construction only; not copyable. It serves one layer
/// group: that of its first upload.
class Batch {
 public:
  /// Allocates device and pinned memory for batches up to `limits`.
  /// Throws std::invalid_argument if a limit is out of range, OutOfMemory, Error.
  explicit Batch(const BatchLimits& limits) : limits_(checked(limits)), offsets_(limits_), upload_(offsets_.bytes) {}

  /// The limits that it was made for.
  [[nodiscard]] const BatchLimits& limits() const noexcept { return limits_; }
  /// The layer group of its tables; -1 before the first upload.
  [[nodiscard]] Index group() const noexcept { return group_; }
  /// The arguments of kernels. Constant for the life of the batch.
  [[nodiscard]] BatchView view() const noexcept {
    const std::byte* const p = upload_.device();
    const auto array = [p](std::size_t at) { return reinterpret_cast<const std::int32_t*>(p + at); };
    return {reinterpret_cast<const BatchHeader*>(p + offsets_.header),
            array(offsets_.q_indptr),
            array(offsets_.kv_indptr),
            array(offsets_.kv_indices),
            array(offsets_.first_slots),
            array(offsets_.seq_lens),
            reinterpret_cast<const EntryGap*>(p + offsets_.gaps),
            reinterpret_cast<TileQueue*>(upload_.device() + offsets_.tile_queue)};
  }

  /// Replaces the batch. Kernels that were launched on `stream` before still read the old tables, later ones read the
  /// new. Does not wait for the device unless two uploads are still in flight. O(table entries).
  /// Throws std::invalid_argument if the batch exceeds the limits, is of another layer group than the batches before,
  /// has a query row that sees a position whose row is gone (BatchTables::require_rows_for), or the stream is being
  /// captured (nothing has changed then), Error.
  void upload(const BatchTables& tables, cudaStream_t stream) {
    require(group_ == -1 || tables.group == group_, "group of the tables", tables.group,
            "that of the earlier uploads: a Batch serves one layer group");
    tables.require_rows_for(tables.retained);
    require(tables.size() <= limits_.sequences, "sequences of the batch", tables.size(),
            "within the limit of the Batch");
    require(static_cast<Index>(tables.kv_indices.size()) <= limits_.blocks, "blocks of the batch",
            tables.kv_indices.size(), "within the limit of the Batch");
    require(tables.queries() <= limits_.queries, "rows of queries", tables.queries(), "within the limit of the Batch");
    std::byte* const p = upload_.begin(stream);
    const BatchHeader header(tables);
    const std::vector<EntryGap> gaps = entry_gaps(tables);
    detail::put(p, offsets_.header, std::span<const BatchHeader>(&header, 1));
    const auto put = [p](std::size_t at, const auto& from) { return detail::put(p, at, std::span(from)); };
    const TileQueue none{};
    detail::put(p, offsets_.tile_queue, std::span<const TileQueue>(&none, 1));
    put(offsets_.q_indptr, tables.q_indptr);
    put(offsets_.kv_indptr, tables.kv_indptr);
    put(offsets_.seq_lens, tables.seq_lens);
    put(offsets_.gaps, gaps);
    upload_.send(0, put(offsets_.kv_indices, tables.kv_indices), stream);
    upload_.send(offsets_.first_slots, put(offsets_.first_slots, tables.first_slots), stream);
    upload_.end(stream);
    group_ = tables.group;
  }
  /// Uploads the tables of the sequences of `appends`, a range of Cache::Append; the query rows of each sequence are
  /// the tokens that its append reserves. Launches the queued copies of the cache first. Returns the tables, which
  /// DecodeWork::upload needs. Throws as above, and if an append is not an uncommitted one of this cache or the cache
  /// has layer groups.
  template <class Cache, class Appends>
  BatchTables upload(Cache& cache, const Appends& appends, cudaStream_t stream) {
    return upload_of(cache, make_tables(cache, appends), stream);
  }
  /// The same of one layer group: of layer i that of number cache.layers().place(i).group. Of a cross-attention group
  /// the tables are for attention; upload_cross_rows has those for `write`.
  template <class Cache, class Appends>
  BatchTables upload(Cache& cache, Index group, const Appends& appends, cudaStream_t stream) {
    return upload_of(cache, make_tables(cache, group, appends), stream);
  }
  /// The tables to write a cross-attention group by. The query rows of a sequence are the rows of its other input if
  /// its append is the first one, and none otherwise (KvCache::rows_to_write). Throws as above, and if the group is
  /// another.
  template <class Cache, class Appends>
  BatchTables upload_cross_rows(Cache& cache, Index group, const Appends& appends, cudaStream_t stream) {
    BatchTables tables = make_tables(cache, group, appends);
    require(cache.layers().groups()[static_cast<std::size_t>(group)].cross_rows > 0, "group", group,
            "one of cross attention");
    std::size_t i = 0;
    for (const auto& append : appends) {
      tables.q_indptr[i + 1] = tables.q_indptr[i] + cache.policy().extension(append.seq(), group).size();
      ++i;
    }
    return upload_of(cache, std::move(tables), stream);
  }

 private:
  struct Offsets {
    explicit Offsets(const BatchLimits& limits) {
      BufferLayout layout;
      header = layout.add<BatchHeader>(1);
      tile_queue = layout.add<TileQueue>(1);
      q_indptr = layout.add<std::int32_t>(limits.sequences + 1);
      kv_indptr = layout.add<std::int32_t>(limits.sequences + 1);
      seq_lens = layout.add<std::int32_t>(limits.sequences);
      gaps = layout.add<EntryGap>(limits.sequences);
      kv_indices = layout.add<std::int32_t>(limits.blocks);
      first_slots = layout.add<std::int32_t>(limits.blocks);
      bytes = layout.bytes();
    }
    std::size_t header, tile_queue, q_indptr, kv_indptr, seq_lens, gaps, kv_indices, first_slots, bytes;
  };
  template <class Cache>
  BatchTables upload_of(Cache& cache, BatchTables tables, cudaStream_t stream) {
    cache.space().flush();
    upload(tables, stream);
    return tables;
  }
  static const BatchLimits& checked(const BatchLimits& limits) {
    require_between(limits.sequences, Index{1}, Index{max_pos}, "limits.sequences");
    require_between(limits.blocks, Index{1}, Index{max_pos}, "limits.blocks");
    require_between(limits.queries, Index{1}, Index{max_pos}, "limits.queries");
    return limits;
  }

  BatchLimits limits_;
  Offsets offsets_;
  Upload upload_;
  Index group_ = -1;
};

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
