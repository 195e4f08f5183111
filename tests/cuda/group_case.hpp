// Sequences in one layer group of a host cache, with a step under way, and the expected attention of its rows: for
// emulated kernels and for those on a device.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "kvc/attention/reference.hpp"
#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/cuda/options.hpp"
#include "kvc/cuda/view.cuh"
#include "kvc/layout/layer_groups.hpp"
#include "prefill_case.hpp"  // element_at, put_element, PrefillSequence

namespace kvc_test {

struct GroupSpec {
  kvc::LayerKind kind = {};                     ///< of the layer that is read
  Index group = 4;                              ///< query heads per kv head
  std::vector<PrefillSequence> sequences = {};  ///< the last `queries` positions of each are those of the step
  Pos common = 0;                               ///< tokens with which all sequences begin
  std::vector<Pos> forks = {};         ///< sequences that begin as the first one, which go on by so many tokens
  kvc::AttentionOptions options = {};  ///< without sinks
  bool sinks = false;
  bool alone = false;  ///< no other layers
  std::uint64_t seed = 1;
};

/// The options of attention in a layer of a kind.
inline kvc::AttentionOptions options_of(const kvc::LayerKind& kind) {
  kvc::AttentionOptions options;
  options.window = kind.window;
  options.chunk = kind.chunk;
  options.kept = kind.kept;
  options.causal = kind.cross_rows == 0;
  return options;
}

/// Two layers of the kind, behind one of full attention, of which the last is read. Its rows are functions of their
/// tokens and positions. Everything that no sequence retains, and the other layers, are NaN.
template <class T, class P, class L, Format Q>
class GroupCase {
 public:
  using Cache = kvc::KvCache<T, P, L>;
  using Append = typename Cache::Append;
  static constexpr Format query_format = Q;

  GroupCase(GroupSpec what, const typename P::Config& config)
      : spec(std::move(what)), cache(layers_of(spec), config), random_(spec.seed) {
    for (std::size_t b = 0; b < spec.sequences.size(); ++b) {
      const auto [length, queries] = spec.sequences[b];
      tokens_.emplace_back();
      for (Pos p = 0; p < length; ++p) {
        tokens_[b].push_back(p < spec.common ? p : static_cast<kvc::Token>(1000 * (b + 1)) + p);
      }
      const auto prompt = std::span<const kvc::Token>(tokens_[b]).first(static_cast<std::size_t>(length - queries));
      sequences.push_back(cache.open(prompt));
      for (Pos at = cache.length(sequences[b]); at < length - queries; at = cache.length(sequences[b])) {
        found = found || at > 0;
        cache.commit(extend(b, std::min<Pos>(29, length - queries - at)));
      }
    }
    for (const Pos more : spec.forks) {
      const std::size_t b = sequences.size();
      sequences.push_back(cache.fork(sequences[0]));
      const Pos length = cache.length(sequences[0]);
      tokens_.push_back({tokens_[0].begin(), tokens_[0].begin() + length});
      for (Pos p = length; p < length + more; ++p) {
        tokens_[b].push_back(static_cast<kvc::Token>(1000 * (b + 1)) + p);
      }
      spec.sequences.push_back({length + more, std::min<Pos>(more, 1)});
      if (more > 1) {
        cache.commit(extend(b, more - 1));
      }
    }
    for (std::size_t b = 0; b < sequences.size(); ++b) {
      steps.push_back(extend(b, spec.sequences[b].queries));
    }
    tables = tables_of(0, steps.size());
    const Index elements = tables.queries() * query_heads() * shape().key_dim;
    q.resize(static_cast<std::size_t>(elements * kvc::cuda::code_bytes(Q)));
    for (Index i = 0; i < elements; ++i) {
      put_element(Q, q, i, normal_(random_));
    }
    for (Index h = 0; h < query_heads() && spec.sinks; ++h) {
      sinks.push_back(h % 5 == 3 ? -std::numeric_limits<float>::infinity() : 2 * normal_(random_));
    }
    poison();
  }

  [[nodiscard]] Index layer() const { return cache.layers().layers() - 1; }
  [[nodiscard]] kvc::LayerPlace place() const { return cache.layers().place(layer()); }
  [[nodiscard]] const kvc::Shape& shape() const { return cache.shape(place().group); }
  [[nodiscard]] Index query_heads() const { return shape().kv_heads * spec.group; }
  [[nodiscard]] kvc::cuda::LayerRule rule() const {
    const kvc::LayerKind& kind = spec.kind;
    return {place().group, {kind.window, kind.chunk, kind.kept}, kind.latent, kind.cross_rows > 0, true};
  }
  /// The layer in a pool at another address, for example on a device; without it in that of the host.
  [[nodiscard]] auto layer_view(std::byte* pool = nullptr) {
    pool = pool == nullptr ? reinterpret_cast<std::byte*>(cache.data()) : pool;
    return kvc::cuda::layer_view<T>(pool, cache.group_layout(place().group), shape(), place().layer, rule());
  }
  /// The tables of sequences [first, first + count).
  [[nodiscard]] kvc::BatchTables tables_of(std::size_t first, std::size_t count) const {
    return kvc::make_tables(cache, place().group, std::span(steps).subspan(first, count));
  }
  /// Bytes of the queries, and of an output, of rows [first, first + count).
  [[nodiscard]] std::vector<std::byte> q_rows(Index first, Index count) const {
    const Index row = query_heads() * shape().key_dim * kvc::cuda::code_bytes(Q);
    return {q.begin() + first * row, q.begin() + (first + count) * row};
  }
  [[nodiscard]] std::size_t out_bytes(Index rows) const {
    return static_cast<std::size_t>(rows * query_heads() * shape().value_dim * kvc::cuda::code_bytes(Q));
  }
  /// The options with sinks at an address, for example on a device.
  [[nodiscard]] kvc::AttentionOptions options(const float* at) const {
    kvc::AttentionOptions options = spec.options;
    options.sinks = std::span(at, sinks.size());
    return options;
  }
  [[nodiscard]] kvc::AttentionOptions options() const { return options(sinks.data()); }

  /// Outputs, and log-sum-exp [queries, query_heads]; in double, from the definition.
  [[nodiscard]] std::vector<float> expected(std::vector<float>& lse) const {
    const Index width = query_heads() * shape().key_dim, out_width = query_heads() * shape().value_dim;
    lse.assign(static_cast<std::size_t>(tables.queries() * query_heads()), 0.0F);
    std::vector<float> out(static_cast<std::size_t>(tables.queries() * out_width));
    for (std::size_t b = 0; b < sequences.size(); ++b) {
      const Index first = tables.q_indptr[b];
      const Pos n = spec.sequences[b].queries, length = spec.sequences[b].length;
      std::vector<float> rows(static_cast<std::size_t>(n * width));
      for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i] = element_at(Q, q, first * width + static_cast<Index>(i));
      }
      if (n > 0) {
        kvc::reference(cache.view(layer(), sequences[b]), {length - n, length},
                       kvc::MatrixRef<const float>(rows.data(), n, width),
                       {kvc::MatrixRef<float>(out.data() + first * out_width, n, out_width),
                        kvc::MatrixRef<float>(lse.data() + first * query_heads(), n, query_heads())},
                       options());
      }
    }
    return out;
  }
  /// The largest difference; 1e9 where one is not a number.
  [[nodiscard]] static float difference(const std::vector<std::byte>& out, const std::vector<float>& expected) {
    float largest = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const float apart = std::fabs(element_at(Q, out, static_cast<Index>(i)) - expected[i]);
      largest = apart <= 1e9F ? std::max(largest, apart) : 1e9F;
    }
    return largest;
  }

  GroupSpec spec;
  Cache cache;
  std::vector<kvc::SeqId> sequences;
  std::vector<Append> steps;  ///< not committed
  bool found = false;         ///< whether a sequence has begun with cached tokens
  kvc::BatchTables tables;
  std::vector<std::byte> q;  ///< [queries, query_heads * key_dim]
  std::vector<float> sinks;  ///< [query_heads], or none

 private:
  static kvc::LayerGroups layers_of(const GroupSpec& spec) {
    kvc::LayerGroups layers;
    if (!spec.alone) {
      layers.add({.kv_heads = 1, .key_dim = 32});
    }
    layers.add(spec.kind, 2);
    return layers;
  }

  [[nodiscard]] Append extend(std::size_t b, Pos count) {
    const Pos from = cache.length(sequences[b]);
    Append step =
        cache.extend(sequences[b], std::span<const kvc::Token>(tokens_[b])
                                       .subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(count)));
    const kvc::PosRange range =
        spec.kind.cross_rows > 0 ? kvc::PosRange{0, cache.rows_to_write(layer(), step)} : step.range();
    each_row(b, range, [&](Pos p, Index head, kvc::StorageOf<T>* key, kvc::StorageOf<T>* value) {
      const kvc::Token token = spec.kind.cross_rows > 0 ? tokens_[b][0] : tokens_[b][static_cast<std::size_t>(p)];
      encode(token, p, 2 * head, shape().key_dim, key);
      if (!spec.kind.latent) {
        encode(token, p, 2 * head + 1, shape().value_dim, value);
      }
    });
    return step;
  }
  /// f(position, head, key, value) for retained positions of a range, in the layer that is read.
  template <class F>
  void each_row(std::size_t b, kvc::PosRange range, F f) {
    const auto& layout = cache.group_layout(place().group);
    const auto visit = [&](const kvc::SlotRun& run) {
      for (Pos r = 0; r < run.count; ++r) {
        for (Index head = 0; head < shape().kv_heads; ++head) {
          f(run.first + r, head, cache.data() + layout.k(run.block, place().layer, head, run.offset + r),
            cache.data() + layout.v(run.block, place().layer, head, run.offset + r));
        }
      }
    };
    cache.policy().for_each_run(sequences[b], place().group, range, visit);
  }
  static void encode(kvc::Token token, Pos p, Index part, Index dim, kvc::StorageOf<T>* to) {
    std::minstd_rand random(static_cast<unsigned>(token * 7919 + p * 31 + part * 104729 + 1));
    std::normal_distribution<float> normal;
    std::vector<float> row(static_cast<std::size_t>(dim));
    std::generate(row.begin(), row.end(), [&] { return normal(random); });
    kvc::Element<T>::encode(row.data(), dim, to);
  }
  /// Makes everything NaN but the rows that sequences retain in the layer that is read.
  void poison() {
    struct Row {
      kvc::StorageOf<T>* at;
      std::vector<kvc::StorageOf<T>> bytes;
    };
    std::vector<Row> kept;
    const auto keep = [&](kvc::StorageOf<T>* at, Index dim) {
      kept.push_back({at, {at, at + kvc::Element<T>::row_size(dim)}});
    };
    for (std::size_t b = 0; b < sequences.size(); ++b) {
      each_row(b, {0, cache.policy().positions(sequences[b], place().group)},
               [&](Pos, Index, kvc::StorageOf<T>* key, kvc::StorageOf<T>* value) {
                 keep(key, shape().key_dim);
                 if (!spec.kind.latent) {
                   keep(value, shape().value_dim);
                 }
               });
    }
    std::memset(static_cast<void*>(cache.data()), 0xff, static_cast<std::size_t>(cache.pool_bytes()));
    for (const Row& row : kept) {
      std::copy(row.bytes.begin(), row.bytes.end(), row.at);
    }
  }

  std::vector<std::vector<kvc::Token>> tokens_;
  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
};

/// A batch of one row each whose sequences end within and at the ends of blocks and splits.
inline std::vector<PrefillSequence> one_row_each(std::vector<Pos> lengths) {
  std::vector<PrefillSequence> sequences;
  for (const Pos length : lengths) {
    sequences.push_back({length, 1});
  }
  return sequences;
}

}  // namespace kvc_test
