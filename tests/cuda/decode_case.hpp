// A random batch for decode on the host, and its expected results, for emulated kernels and for those on a device.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kvc/attention/reference.hpp"
#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/cuda/decode_plan.hpp"
#include "kvc/cuda/options.hpp"
#include "kvc/cuda/view.cuh"
#include "kvc/policy/paged.hpp"

namespace kvc_test {

using kvc::Index;
using kvc::Pos;
using kvc::cuda::Format;

/// f16 and bf16 on the host, without a library.
inline float half_to_float(Format format, std::uint32_t bits) {
  if (format == Format::bf16) {
    return std::bit_cast<float>(bits << 16);
  }
  const std::uint32_t sign = (bits & 0x8000U) << 16, exponent = bits >> 10 & 31U, mantissa = bits & 0x3ffU;
  const float magnitude = exponent == 31 ? (mantissa == 0 ? std::numeric_limits<float>::infinity() : std::nanf(""))
                          : exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -24)
                              : std::ldexp(static_cast<float>(mantissa | 0x400U), static_cast<int>(exponent) - 25);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
}
/// Rounds a finite float within the range of the format to nearest even.
inline std::uint16_t to_half(Format format, float x) {
  const auto word = std::bit_cast<std::uint32_t>(x);
  if (format == Format::bf16) {
    return static_cast<std::uint16_t>((word + 0x7fffU + (word >> 16 & 1U)) >> 16);
  }
  const double magnitude = std::fabs(static_cast<double>(x));
  const int exponent = magnitude < std::ldexp(1.0, -14) ? -14 : std::ilogb(magnitude);
  const auto units = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<std::uint16_t>((word >> 16 & 0x8000U) |
                                    (units + (static_cast<std::uint32_t>(exponent + 14) << 10)));
}

/// A policy with several runs per sequence and no block tables: Paged without its tables.
struct Untabled : kvc::Paged {
  using Paged::Paged;
  std::span<const kvc::BlockId> block_table(kvc::SeqId) const = delete;
};
static_assert(kvc::Policy<Untabled> && !kvc::BlockTablePolicy<Untabled>);

/// A batch on the host, as kernels see it.
struct HostBatch {
  explicit HostBatch(const kvc::BatchTables& of)
      : tables(of),
        gaps(kvc::cuda::entry_gaps(of)),
        header(of),
        view{&header,
             tables.q_indptr.data(),
             tables.kv_indptr.data(),
             tables.kv_indices.data(),
             tables.first_slots.data(),
             tables.seq_lens.data(),
             gaps.data(),
             &tile_queue} {}
  HostBatch(const HostBatch&) = delete;
  kvc::BatchTables tables;
  std::vector<kvc::cuda::EntryGap> gaps;
  kvc::cuda::BatchHeader header;
  kvc::cuda::TileQueue tile_queue;
  kvc::cuda::BatchView view;
};

/// The largest difference relative to 1 or to the expected number; 1e9 where one is missing, or infinite alone.
inline float lse_difference(std::span<const float> got, std::span<const float> expected) {
  float largest = got.size() == expected.size() ? 0.0F : 1e9F;
  for (std::size_t i = 0; i < std::min(got.size(), expected.size()); ++i) {
    if (got[i] != expected[i]) {
      const float difference = std::fabs(got[i] - expected[i]) / std::max(1.0F, std::fabs(expected[i]));
      largest = difference <= 1e9F ? std::max(largest, difference) : 1e9F;
    }
  }
  return largest;
}

/// Stores the key of a slot, or its value, in a pool of Element<T> with this layout, its scales where that has them.
template <class T, class L>
void put_row(const L& layout, kvc::StorageOf<T>* pool, bool is_key, kvc::BlockId block, Index layer, Index head,
             Pos slot, const float* from, Index dim) {
  kvc::StorageOf<T>* const to =
      pool + (is_key ? layout.k(block, layer, head, slot) : layout.v(block, layer, head, slot));
  if constexpr (kvc::ScaledElement<T> && kvc::ScalePlaneLayout<L>) {
    kvc::Element<T>::encode_parts(
        from, dim, to,
        pool + (is_key ? layout.k_scales(block, layer, head, slot) : layout.v_scales(block, layer, head, slot)));
  } else {
    kvc::Element<T>::encode(from, dim, to);
  }
}

/// The parameters of a case.
struct DecodeSpec {
  Index layers = 2;
  Index kv_heads = 2;
  Index group = 4;
  Index dim = 64;
  std::vector<Pos> lengths = {};  ///< of sequences that share nothing
  Pos prefix = 0;                 ///< > 0: positions that the `sharers` have in common
  std::vector<Pos> sharers = {};  ///< positions of each of them beyond the prefix
  Pos window = 0;
  float softcap = 0;
  float query_scale = 1;  ///< standard deviation of queries, and so of logits with the default scale
  std::uint64_t seed = 1;
};

/// Sequences in a host cache, queries, and the expected output. Slots that no sequence uses, and the other layers of
/// the cache, are NaN.
template <class T, class P, class L, Format Q>
class DecodeCase {
 public:
  using Cache = kvc::KvCache<T, P, L>;

  DecodeCase(const DecodeSpec& what, const typename P::Config& config)
      : spec(what),
        cache({.layers = what.layers, .kv_heads = what.kv_heads, .key_dim = what.dim}, config),
        random_(what.seed) {
    std::memset(static_cast<void*>(cache.data()), 0xff,
                static_cast<std::size_t>(cache.layout().size()) * sizeof(kvc::StorageOf<T>));
    for (const Pos length : spec.lengths) {
      const kvc::SeqId seq = cache.open();
      append(seq, length);
      sequences.push_back(seq);
    }
    if (!spec.sharers.empty()) {
      const kvc::SeqId root = cache.open();
      append(root, spec.prefix);
      for (const Pos more : spec.sharers) {
        const kvc::SeqId seq = cache.fork(root);
        append(seq, more);
        sequences.push_back(seq);
      }
      cache.close(root);
    }
    std::shuffle(sequences.begin(), sequences.end(), random_);
    tables = kvc::make_tables(cache.policy(), std::span<const kvc::SeqId>(sequences),
                              std::span<const Pos>(std::vector<Pos>(sequences.size(), 1)));
    q.resize(static_cast<std::size_t>(rows() * query_heads() * spec.dim));
    for (std::uint16_t& x : q) {
      x = to_half(Q, spec.query_scale * normal_(random_));
    }
  }

  [[nodiscard]] Index rows() const { return static_cast<Index>(sequences.size()); }
  [[nodiscard]] Index query_heads() const { return spec.kv_heads * spec.group; }
  [[nodiscard]] Index layer() const { return spec.layers - 1; }
  [[nodiscard]] auto layer_view() {
    return kvc::cuda::layer_view<T>(reinterpret_cast<std::byte*>(cache.data()), cache.layout(), cache.shape(), layer());
  }
  [[nodiscard]] kvc::cuda::AttentionOptions options() const { return {.window = spec.window, .softcap = spec.softcap}; }

  /// The queries of sequence b as floats.
  [[nodiscard]] std::vector<float> row(Index b) const {
    std::vector<float> out(static_cast<std::size_t>(query_heads() * spec.dim));
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = half_to_float(Q, q[static_cast<std::size_t>(b) * out.size() + i]);
    }
    return out;
  }

  /// Outputs, and log-sum-exp [rows, query_heads] if wanted; in double, from the definition.
  [[nodiscard]] std::vector<float> expected(std::vector<float>* lse = nullptr) const {
    std::vector<float> sums(static_cast<std::size_t>(rows() * query_heads()));
    std::vector<float> out(static_cast<std::size_t>(rows() * query_heads() * spec.dim));
    const Index width = query_heads() * spec.dim;
    for (Index b = 0; b < rows(); ++b) {
      const std::vector<float> q_row = row(b);
      const Pos length = cache.length(sequences[static_cast<std::size_t>(b)]);
      const Pos at = length > 0 ? length - 1 : 0;
      kvc::reference(cache.view(layer(), sequences[static_cast<std::size_t>(b)]), {at, at + 1},
                     kvc::MatrixRef<const float>(q_row.data(), 1, width),
                     {kvc::MatrixRef<float>(out.data() + b * width, 1, width),
                      kvc::MatrixRef<float>(sums.data() + b * query_heads(), 1, query_heads())},
                     {.window = spec.window, .softcap = spec.softcap});
    }
    if (lse != nullptr) {
      *lse = sums;
    }
    return out;
  }

  DecodeSpec spec;
  Cache cache;
  std::vector<kvc::SeqId> sequences;
  kvc::BatchTables tables;
  std::vector<std::uint16_t> q;  ///< [rows, query_heads * dim]

 private:
  void append(kvc::SeqId seq, Pos count) {
    auto step = cache.extend_without_tokens(seq, count);
    const Index width = spec.kv_heads * spec.dim;
    std::vector<float> k(static_cast<std::size_t>(count * width)), v(k.size());
    for (std::size_t i = 0; i < k.size(); ++i) {
      k[i] = normal_(random_);
      v[i] = normal_(random_);
    }
    // Writes only the layer that is read, through data(): the others must stay NaN, and an Append expects them all.
    cache.policy().for_each_run(seq, step.range(), [&](const kvc::SlotRun& run) {
      for (Index head = 0; head < spec.kv_heads; ++head) {
        for (Pos r = 0; r < run.count; ++r) {
          const Index at = (run.first - step.range().first + r) * width + head * spec.dim;
          const Pos slot = run.offset + r;
          put_row<T>(cache.layout(), cache.data(), true, run.block, layer(), head, slot, k.data() + at, spec.dim);
          put_row<T>(cache.layout(), cache.data(), false, run.block, layer(), head, slot, v.data() + at, spec.dim);
        }
      }
    });
    cache.commit(std::move(step));
  }

  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
};

/// The largest difference, and 1e9 where a number is missing or not finite.
inline float largest_difference(Format format, std::span<const std::uint16_t> out, std::span<const float> expected) {
  float largest = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const float difference = std::fabs(half_to_float(format, out[i]) - expected[i]);
    largest = difference <= 1e9F ? std::max(largest, difference) : 1e9F;
  }
  return largest;
}

}  // namespace kvc_test
