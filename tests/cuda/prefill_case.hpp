// A random batch for prefill on the host, and its expected results, for emulated kernels and for those on a device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "decode_case.hpp"  // half_to_float, to_half
#include "kvc/attention/reference.hpp"
#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/cuda/options.hpp"

namespace kvc_test {

/// A sequence of `length` positions, of which the last `queries` have query rows.
struct PrefillSequence {
  Pos length;
  Pos queries;
};

struct PrefillSpec {
  Index kv_heads = 2;
  Index group = 4;
  Index key_dim = 64;
  Index value_dim = 64;
  std::vector<PrefillSequence> sequences = {};
  kvc::AttentionOptions options = {};
  float query_scale = 1;  ///< standard deviation of queries, and so of logits with the default scale
  std::uint64_t seed = 1;
};

/// Rows of dim 128, whose default scale is not a power of two, with logits of this standard deviation.
inline PrefillSpec large_logits(float deviation) {
  return {
      .kv_heads = 1, .key_dim = 128, .value_dim = 128, .sequences = {{200, 20}}, .query_scale = deviation, .seed = 5};
}

/// Elements of f32, f16 or bf16 in an array, as floats.
inline float element_at(Format format, const std::vector<std::byte>& bytes, Index i) {
  if (format == Format::f32) {
    float x;
    std::memcpy(&x, bytes.data() + 4 * i, 4);
    return x;
  }
  std::uint16_t bits;
  std::memcpy(&bits, bytes.data() + 2 * i, 2);
  return half_to_float(format, bits);
}
inline void put_element(Format format, std::vector<std::byte>& bytes, Index i, float x) {
  if (format == Format::f32) {
    std::memcpy(bytes.data() + 4 * i, &x, 4);
  } else {
    const std::uint16_t bits = to_half(format, x);
    std::memcpy(bytes.data() + 2 * i, &bits, 2);
  }
}

/// Sequences in a host cache of two layers, of which the second is read. The first layer, and slots that no sequence
/// uses, are NaN.
template <class T, class P, class L, Format Q>
class PrefillCase {
 public:
  using Cache = kvc::KvCache<T, P, L>;

  PrefillCase(PrefillSpec what, const typename P::Config& config)
      : spec(std::move(what)),
        cache({.layers = 2, .kv_heads = spec.kv_heads, .key_dim = spec.key_dim, .value_dim = spec.value_dim}, config),
        random_(spec.seed) {
    std::memset(static_cast<void*>(cache.data()), 0xff,
                static_cast<std::size_t>(cache.layout().size()) * sizeof(kvc::StorageOf<T>));
    std::vector<Pos> lengths(spec.sequences.size(), 0);
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      sequences.push_back(cache.open());
      queries.push_back(spec.sequences[b].queries);
    }
    for (bool more = true; more;) {  // in turns, which scatters the blocks of a sequence
      more = false;
      for (std::size_t b = 0; b < lengths.size(); ++b) {
        const Pos count = std::min<Pos>(spec.sequences[b].length - lengths[b], 29);
        append(sequences[b], count);
        lengths[b] += count;
        more = more || lengths[b] < spec.sequences[b].length;
      }
    }
    tables = tables_of(sequences, queries);
    q.resize(static_cast<std::size_t>(tables.queries() * query_heads() * spec.key_dim * kvc::cuda::code_bytes(Q)));
    for (Index i = 0; i < tables.queries() * query_heads() * spec.key_dim; ++i) {
      put_element(Q, q, i, spec.query_scale * normal_(random_));
    }
  }

  [[nodiscard]] Index query_heads() const { return spec.kv_heads * spec.group; }
  [[nodiscard]] Index layer() const { return 1; }
  [[nodiscard]] auto layer_view() {
    return kvc::cuda::layer_view<T>(reinterpret_cast<std::byte*>(cache.data()), cache.layout(), cache.shape(), layer());
  }
  [[nodiscard]] const kvc::AttentionOptions& options() const { return spec.options; }
  [[nodiscard]] kvc::BatchTables tables_of(const std::vector<kvc::SeqId>& of, const std::vector<Pos>& rows) const {
    return kvc::make_tables(cache.policy(), std::span<const kvc::SeqId>(of), std::span<const Pos>(rows));
  }
  /// Bytes of rows [first, first + count) of q, and of an output.
  [[nodiscard]] std::vector<std::byte> q_rows(Index first, Index count) const {
    const Index row = query_heads() * spec.key_dim * kvc::cuda::code_bytes(Q);
    return {q.begin() + first * row, q.begin() + (first + count) * row};
  }
  [[nodiscard]] std::size_t out_bytes(Index rows) const {
    return static_cast<std::size_t>(rows * query_heads() * spec.value_dim * kvc::cuda::code_bytes(Q));
  }

  /// Pointers to key and value (head, position) of a sequence.
  [[nodiscard]] kvc::StorageOf<T>* value_row(std::size_t b, Index head, Pos position) {
    kvc::StorageOf<T>* at = nullptr;
    cache.policy().for_each_run(sequences[b], {position, position + 1}, [&](const kvc::SlotRun& run) {
      at = cache.data() + cache.layout().v(run.block, layer(), head, run.offset);
    });
    return at;
  }

  /// The queries of sequence b as floats.
  [[nodiscard]] std::vector<float> query_rows(std::size_t b) const {
    const Index width = query_heads() * spec.key_dim;
    std::vector<float> out(static_cast<std::size_t>(queries[b] * width));
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = element_at(Q, q, tables.q_indptr[b] * width + static_cast<Index>(i));
    }
    return out;
  }

  /// Outputs, and log-sum-exp [queries, query_heads] if wanted; in double, from the definition.
  [[nodiscard]] std::vector<float> expected(std::vector<float>* lse = nullptr) const {
    std::vector<float> sums(static_cast<std::size_t>(tables.queries() * query_heads()));
    const Index width = query_heads() * spec.key_dim, out_width = query_heads() * spec.value_dim;
    std::vector<float> out(static_cast<std::size_t>(tables.queries() * out_width));
    for (std::size_t b = 0; b < sequences.size(); ++b) {
      const Index first = tables.q_indptr[b], n = queries[b];
      if (n == 0) {
        continue;
      }
      const std::vector<float> rows = query_rows(b);
      const Pos length = spec.sequences[b].length;
      kvc::reference(cache.view(layer(), sequences[b]), {length - queries[b], length},
                     kvc::MatrixRef<const float>(rows.data(), n, width),
                     {kvc::MatrixRef<float>(out.data() + first * out_width, n, out_width),
                      kvc::MatrixRef<float>(sums.data() + first * query_heads(), n, query_heads())},
                     spec.options);
    }
    if (lse != nullptr) {
      *lse = sums;
    }
    return out;
  }

  /// The largest difference; 1e9 where only one of both is a number. Infinities must be the same.
  [[nodiscard]] static float difference(const std::vector<std::byte>& out, const std::vector<float>& expected) {
    float largest = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const float x = element_at(Q, out, static_cast<Index>(i)), y = expected[i];
      if (!(x == y || (std::isnan(x) && std::isnan(y)))) {
        const float apart = std::fabs(x - y);
        largest = apart <= 1e9F ? std::max(largest, apart) : 1e9F;
      }
    }
    return largest;
  }

  PrefillSpec spec;
  Cache cache;
  std::vector<kvc::SeqId> sequences;
  std::vector<Pos> queries;
  kvc::BatchTables tables;
  std::vector<std::byte> q;  ///< [queries, query_heads * key_dim]

 private:
  void append(kvc::SeqId seq, Pos count) {
    auto step = cache.extend_without_tokens(seq, count);
    std::vector<float> row(static_cast<std::size_t>(std::max(spec.key_dim, spec.value_dim)));
    const auto put = [&](bool is_key, kvc::BlockId block, Index head, Pos slot) {
      for (float& x : row) {
        x = normal_(random_);
      }
      put_row<T>(cache.layout(), cache.data(), is_key, block, layer(), head, slot, row.data(),
                 is_key ? spec.key_dim : spec.value_dim);
    };
    // Writes only the layer that is read: an Append expects them all.
    cache.policy().for_each_run(seq, step.range(), [&](const kvc::SlotRun& run) {
      for (Pos r = 0; r < run.count; ++r) {  // positions in the outer loop, so that values do not depend on the runs
        for (Index head = 0; head < spec.kv_heads; ++head) {
          put(true, run.block, head, run.offset + r);
          put(false, run.block, head, run.offset + r);
        }
      }
    });
    cache.commit(std::move(step));
  }

  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
};

}  // namespace kvc_test
