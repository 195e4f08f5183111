// decode(): attention of the newest position, or the newest positions, of each sequence of a batch, on a GPU.
//
//   cuda::DecodeWork work({.sequences = 256, .positions = 1 << 20, .query_heads = 32, .kv_heads = 8, .dim = 128,
//                          .format = cuda::format_of<T>});                                         // once
//   work.upload(tables, {.window = 1024}, stream);                                                 // each step
//   cuda::decode(cuda::view(cache, layer), batch, work, q, out, options, stream);                  // each layer
//
// A row has the same bits in every batch, for every policy, layout and block size, and whether or not its prefix is
// shared. These bits differ from those of the CPU: sums are taken in another order, and weights are rounded to 16 bits.
// The scale is applied to the scores in float, never to the 16-bit queries, so large logits lose no precision.
//
// A plan of QueryRows::every computes several rows of a sequence, each with the bits that it has as the only one. It is
// for speculative decoding, and for few rows after a long prefix: their keys are split among all multiprocessors, and
// read once for up to 32 rows of queries. prefill() is for many rows.
//
// Where a batch has few work items for the device, they are halves of splits (decode_plan.hpp). A layer takes up to
// three launches: items of few rows, items of many, and the merge. The second and the third may begin while those
// before them end (from compute capability 9.0 on); launches without work are left out, but in a graph, which may run
// with other plans.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "kvc/attention/options.hpp"
#include "kvc/batch.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/check.cuh"
#include "kvc/cuda/decode_kernel.cuh"
#include "kvc/cuda/decode_limits.hpp"
#include "kvc/cuda/decode_plan.hpp"
#include "kvc/cuda/element.cuh"
#include "kvc/cuda/launch.cuh"
#include "kvc/cuda/merge_kernel.cuh"
#include "kvc/cuda/occupancy.cuh"
#include "kvc/cuda/options.hpp"
#include "kvc/cuda/remembered.hpp"
#include "kvc/cuda/upload.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Whether the work items of a plan are small: halves of splits, or, over latent rows, of 16 rows of queries rather
/// than
/// 64. No result depends on it.
///
///   where_few  where large ones are less than two for each multiprocessor (one, over latent rows)
///   never      large ones
///   always     small ones, as far as there is memory for them: halves of up to most_halved splits
enum class SmallItems { where_few, never, always };

/// The plan of a decode in device memory, and memory for the partial results of splits. Allocates at construction only;
/// not copyable. Calls of decode() that use the same DecodeWork must not run concurrently.
class DecodeWork {
 public:
  /// Throws std::invalid_argument if a limit is not positive, dim is not a multiple of 8 up to 256, query_heads is not
  /// a multiple of kv_heads, or the format is not f16, bf16, fp8_e4m3 or int8 (for latent rows: as decode_latent says);
  /// OutOfMemory; Error.
  explicit DecodeWork(const DecodeLimits& limits)
      : limits_(detail::checked(limits)),
        offsets_(limits_),
        few_items_((limits_.latent() ? 1 : 2) * multiprocessors()),
        upload_(offsets_.bytes),
        partials_(static_cast<std::size_t>(offsets_.partials * limits_.query_heads * limits_.out_dim()) *
                  sizeof(float)),
        partial_sums_(static_cast<std::size_t>(offsets_.partials * limits_.query_heads * 2) * sizeof(float)) {}

  /// The limits that it was made for.
  [[nodiscard]] const DecodeLimits& limits() const noexcept { return limits_; }
  /// Query heads per kv head.
  [[nodiscard]] std::int32_t group() const noexcept {
    return static_cast<std::int32_t>(limits_.query_heads / limits_.kv_heads);
  }
  /// Query rows that each kernel handles at once.
  [[nodiscard]] ItemRows item_rows() const noexcept { return detail::item_rows(limits_); }
  /// The rows of the current plan.
  [[nodiscard]] QueryRows rows() const noexcept { return rows_; }
  /// The positions that rows see by the current plan.
  [[nodiscard]] const Retained& seen() const noexcept { return seen_; }
  /// The layer group of the tables of the current plan; -1 before the first one.
  [[nodiscard]] Index layer_group() const noexcept { return layer_group_; }
  /// Whether the work items of the current plan are small.
  [[nodiscard]] bool has_small_items() const noexcept { return has_small_items_; }
  /// Which of the three launches of decode() have work by the current plan.
  [[nodiscard]] bool has_narrow() const noexcept { return has_narrow_; }
  [[nodiscard]] bool has_wide() const noexcept { return has_wide_; }
  [[nodiscard]] bool has_merges() const noexcept { return has_merges_; }
  /// The current plan, in device memory.
  [[nodiscard]] DecodePlanView view() const noexcept {
    const std::byte* const p = upload_.device();
    return {reinterpret_cast<const std::int32_t*>(p + offsets_.counts),
            reinterpret_cast<const DecodeItem*>(p + offsets_.narrow),
            reinterpret_cast<const DecodeItem*>(p + offsets_.wide),
            reinterpret_cast<const DecodeMember*>(p + offsets_.members),
            reinterpret_cast<const std::int32_t*>(p + offsets_.partial_begin)};
  }
  /// Partial outputs of splits in device memory.
  [[nodiscard]] float* partials() const noexcept { return reinterpret_cast<float*>(partials_.data()); }
  /// Largest scores and sums of the partial outputs in device memory.
  [[nodiscard]] float* partial_sums() const noexcept { return reinterpret_cast<float*>(partial_sums_.data()); }

  /// Plans the decode of rows of a batch and uploads the plan. The plan serves all layers of a group whose rows see as
  /// much.
  ///
  ///   tables          those of the Batch that decode() gets
  ///   seen            what a row sees: the window, chunk and kept of the options that decode() gets; {}: everything
  ///   share_prefixes  read a prefix that rows share once for all of them; this changes no bit of the result
  ///   which           one row of each sequence, or every query row of the tables
  ///   small           whether its work items are small; this changes no bit of the result
  ///
  /// Does not wait for the device unless two uploads are still in flight. O(entries + items), and a sort of the rows;
  /// with QueryRows::every the entries count once for each row.
  /// Throws std::invalid_argument if the batch exceeds the limits, `seen` is not possible, a row sees a position whose
  /// row is gone, a sequence has more query rows than positions (QueryRows::every), or the stream is being captured;
  /// Error.
  void upload(const BatchTables& tables, const Retained& seen, cudaStream_t stream, bool share_prefixes = true,
              QueryRows which = QueryRows::last, SmallItems small = SmallItems::where_few) {
    require_valid(seen);
    const std::vector<detail::PlannedRow> rows = detail::planned_rows(tables, which);
    require(std::ssize(rows) <= limits_.sequences, "rows of the batch", rows.size(),
            "within limits.sequences of the DecodeWork");
    Index positions = 0;
    for (const detail::PlannedRow& row : rows) {
      const DecodeKeys keys = decode_keys(seen, row.length);
      positions += keys.kept + (keys.length - keys.first);
    }
    require(positions <= limits_.positions, "positions of the batch", positions, "within the limit of the DecodeWork");
    const auto planned = [&](ItemRows item_rows) {
      return make_decode_plan(tables, group(), seen, item_rows, share_prefixes, which);
    };
    const ItemRows most = item_rows();
    DecodePlan plan = planned(most);
    const bool few = (std::ssize(plan.narrow) + std::ssize(plan.wide)) * limits_.kv_heads < few_items_;
    const bool wanted = small == SmallItems::always || (small == SmallItems::where_few && few);
    const bool cuts = wanted && (limits_.latent() || 2 * plan.splits() <= offsets_.partials);
    if (cuts && limits_.latent()) {
      plan = planned({most.narrow, most.narrow});
    } else if (cuts) {
      halve(plan);
    }
    const std::int32_t counts[4] = {static_cast<std::int32_t>(plan.narrow.size()),
                                    static_cast<std::int32_t>(plan.wide.size()), static_cast<std::int32_t>(plan.rows()),
                                    plan.parts};
    std::byte* const p = upload_.begin(stream);
    detail::put(p, offsets_.counts, std::span<const std::int32_t>(counts));
    upload_.send(0, detail::put(p, offsets_.partial_begin, std::span<const std::int32_t>(plan.partial_begin)), stream);
    upload_.send(offsets_.narrow, detail::put(p, offsets_.narrow, std::span<const DecodeItem>(plan.narrow)), stream);
    upload_.send(offsets_.wide, detail::put(p, offsets_.wide, std::span<const DecodeItem>(plan.wide)), stream);
    upload_.send(offsets_.members, detail::put(p, offsets_.members, std::span<const DecodeMember>(plan.members)),
                 stream);
    upload_.end(stream);
    seen_ = seen;
    layer_group_ = tables.group;
    rows_ = which;
    has_small_items_ = cuts;
    has_narrow_ = !plan.narrow.empty();
    has_wide_ = !plan.wide.empty();
    has_merges_ = plan.merges();
  }

 private:
  struct Offsets {
    explicit Offsets(const DecodeLimits& limits) {
      const Index group = limits.query_heads / limits.kv_heads;
      const DecodeCapacity most =
          decode_capacity(limits.sequences, limits.positions, group, detail::item_rows(limits), !limits.latent());
      partials = most.partials;
      items = most.items;
      require(items * limits.kv_heads <= max_pos, "limits.positions", limits.positions,
              "so few that there are less than 2^31 items, of up to 512 positions of a kv head");
      BufferLayout layout;
      counts = layout.add<std::int32_t>(4);
      partial_begin = layout.add<std::int32_t>(limits.sequences + 1);
      narrow = layout.add<DecodeItem>(items);
      wide = layout.add<DecodeItem>(items);
      members = layout.add<DecodeMember>(partials);
      bytes = layout.bytes();
    }
    Index partials, items;
    std::size_t counts, partial_begin, narrow, wide, members, bytes;
  };
  [[nodiscard]] static Index multiprocessors() {
    int processors = 0;
    KVC_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, detail::current_device()));
    return processors;
  }

  DecodeLimits limits_;
  Offsets offsets_;
  Index few_items_;
  Upload upload_;
  DeviceBuffer partials_;
  DeviceBuffer partial_sums_;
  Retained seen_{};
  Index layer_group_ = -1;
  QueryRows rows_ = QueryRows::last;
  bool has_small_items_ = false;
  bool has_narrow_ = false, has_wide_ = false, has_merges_ = false;
};

namespace detail {

/// Which items a launch of decode_kernel takes, and whether it may overlap with the launch of the others before it.
struct ItemList {
  bool wide;
  bool dependent;
};

template <Format F, Format Q, int D, int N>
void launch_decode(const DecodeArguments<F>& a, ItemList list, cudaStream_t stream) {
  static PerDevice known, waits;
  const unsigned blocks = resident_blocks(known, decode_kernel<F, Q, D, N>, decode_threads);
  if (list.dependent) {
    launch_dependent(waits, "decode_kernel", decode_kernel<F, Q, D, N>, blocks, decode_threads, 0, stream, a,
                     list.wide);
  } else {
    launch("decode_kernel", decode_kernel<F, Q, D, N>, blocks, decode_threads, 0, stream, a, list.wide);
  }
}

template <Format F, Format Q, int D>
void launch_decode_rows(const DecodeArguments<F>& a, int rows, ItemList list, cudaStream_t stream) {
  if constexpr (D <= 128 && code_bytes(F) == 1) {
    rows == 8 ? launch_decode<F, Q, D, 1>(a, list, stream) : launch_decode<F, Q, D, 2>(a, list, stream);
  } else if constexpr (D <= 128) {
    rows == 8    ? launch_decode<F, Q, D, 1>(a, list, stream)
    : rows == 16 ? launch_decode<F, Q, D, 2>(a, list, stream)
                 : launch_decode<F, Q, D, 4>(a, list, stream);
  } else {
    launch_decode<F, Q, D, 1>(a, list, stream);
  }
}

template <Format F, Format Q>
void launch_decode_dim(const DecodeArguments<F>& a, int rows, ItemList list, cudaStream_t stream) {
  const int dim = a.kv.key_dim;
  dim <= 64    ? launch_decode_rows<F, Q, 64>(a, rows, list, stream)
  : dim <= 128 ? launch_decode_rows<F, Q, 128>(a, rows, list, stream)
  : dim <= 192 ? launch_decode_rows<F, Q, 192>(a, rows, list, stream)
               : launch_decode_rows<F, Q, 256>(a, rows, list, stream);
}

template <Format F, Format Q, int D>
void launch_merge(const DecodeArguments<F>& a, unsigned blocks, bool dependent, cudaStream_t stream) {
  static PerDevice waits;
  if (dependent) {
    launch_dependent(waits, "merge_kernel", merge_kernel<F, Q, D>, blocks, decode_threads, 0, stream, a);
  } else {
    launch("merge_kernel", merge_kernel<F, Q, D>, blocks, decode_threads, 0, stream, a);
  }
}

/// Launches what a plan needs: launch_items(rows, list) launches the items of a list, of so many rows of queries, and
/// merge_kernel<F, Q, D> follows. A graph may run with other plans, so it has all launches.
template <Format Q, int D, Format F, class LaunchItems>
void launch_plan(const DecodeArguments<F>& a, const DecodeWork& work, cudaStream_t stream, LaunchItems launch_items) {
  const DecodeLimits& limits = work.limits();
  const bool all = is_captured(stream);
  const ItemRows rows = work.item_rows();
  const bool narrow = all || work.has_narrow(), wide = rows.wide > rows.narrow && (all || work.has_wide());
  if (narrow) {
    launch_items(rows.narrow, ItemList{false, false});
  }
  if (wide) {
    launch_items(rows.wide, ItemList{true, narrow});
  }
  if (all || work.has_merges()) {
    const Index blocks = merge_grid(limits.sequences, limits.query_heads, limits.out_dim());
    launch_merge<F, Q, D>(a, static_cast<unsigned>(blocks), narrow || wide, stream);
  }
}

inline void require_aligned(const void* p, std::uintptr_t bytes, const char* name) {
  require(reinterpret_cast<std::uintptr_t>(p) % bytes == 0, name, reinterpret_cast<std::uintptr_t>(p),
          "an address that is a multiple of 16");
}

/// The arguments of the kernels. Throws std::invalid_argument as decode.
template <class Scalar, Format F>
[[nodiscard]] DecodeArguments<F> decode_arguments(const LayerView<F>& kv, const Batch& batch, const DecodeWork& work,
                                                  const Scalar* q, Scalar* out, const AttentionOptions& options,
                                                  float* lse) {
  const DecodeLimits& limits = work.limits();
  require_same_group(kv.rule, batch.group());
  require_same_group(kv.rule, work.layer_group());
  const float scale = checked_decode(kv, limits, work.seen(), options, work.rows());
  require_aligned(q, 16, "q");
  require_aligned(out, 16, "out");
  return {kv,
          batch.view(),
          work.view(),
          reinterpret_cast<const std::byte*>(q),
          reinterpret_cast<std::byte*>(out),
          lse,
          options.sinks.empty() ? nullptr : options.sinks.data(),
          work.partials(),
          work.partial_sums(),
          static_cast<std::int32_t>(limits.query_heads),
          work.group(),
          scale,
          options.softcap,
          has_aligned_rows(kv)};
}

}  // namespace detail

/// out[r] = attention of query row r over the positions that `options` let it see. Row r is at the last position of
/// sequence r; by a plan of QueryRows::every the rows are those of the tables, as for prefill().
///
///   kv           one layer of a cache; f16 or bf16 (then Scalar is the same type), Fp8E4M3 or Int8, whose scales may
///                be in planes (ScalePlanes)
///   batch        the uploaded tables of its layer group
///   work         the uploaded plan of the same tables
///   q            [rows, query_heads * dim]
///   out          [rows, query_heads * dim], overwritten; 0 for a sequence without positions
///   lse          [rows, query_heads] or null; overwritten with the natural logarithm of the sum of exp(score) over
///                the visible positions, without sinks; -infinity for a sequence without positions. Results over
///                disjoint sets of keys, without sinks, merge by these weights.
///   options      window, chunk and kept are those that were planned for; sinks are in device memory; causal
///                makes no difference to the last row, and must be true for others
///   Scalar       __half or __nv_bfloat16
///
/// All arrays are in device memory; q and out are at multiples of 16 bytes. Query head h reads kv head
/// h / (query_heads / kv_heads). Each key and value is read once for up to 32 query heads of its GQA group (16 for
/// caches of bytes, 8 beyond dim 128), and once for as many rows of sequences that share it. The call allocates
/// nothing, does not synchronise, and may be captured in a graph: sizes and work items are read on the device.
///
/// Latent rows with key_dim != value_dim, or of more than 256 elements, are for decode_latent().
///
/// Throws std::invalid_argument if shapes, options or alignment do not fit, a row could see what the layer's group
/// drops, the batch is of another group, or the layer reads rows of another input by a plan of QueryRows::every; Error
/// if a launch fails.
template <class Scalar, Format F>
void decode(const LayerView<F>& kv, const Batch& batch, const DecodeWork& work, const Scalar* q, Scalar* out,
            const AttentionOptions& options, cudaStream_t stream, float* lse = nullptr) {
  constexpr Format Q = format_of<Scalar>;
  static_assert(Q == Format::f16 || Q == Format::bf16, "queries are __half or __nv_bfloat16");
  static_assert(F == Q || code_bytes(F) == 1,
                "a cache of 16-bit elements takes queries of the same, and one of float none");
  require(!work.limits().latent(), "limits.value_dim of the DecodeWork", work.limits().value_dim,
          "0: cuda::decode_latent takes latent rows");
  const DecodeArguments<F> a = detail::decode_arguments(kv, batch, work, q, out, options, lse);
  detail::launch_plan<Q, 256>(a, work, stream, [&](int rows, detail::ItemList list) {
    detail::launch_decode_dim<F, Q>(a, rows, list, stream);
  });
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
