// Scales of quantised rows in planes of their own: where they lie, what they are, and attention over them, beside forms
// that the test computes itself.
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "attend.hpp"
#include "catch.hpp"
#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/cache/fingerprint.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/interop/tensors.hpp"
#include "kvc/layout/layer_major.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "random_source.hpp"

namespace scale_planes_test {
namespace {
using namespace kvc;
using namespace kvc::interop;
using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr Shape shape{.layers = 2, .kv_heads = 2, .key_dim = 64, .value_dim = 32};

Rows random_rows(Index rows, Index cols, std::uint64_t seed) {
  kvc_test::Random random(seed);
  Rows m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) {
    m.data()[i] = random.uniform() * (i % 7 == 0 ? 3.0F : 1.0F);
  }
  return m;
}

/// The element (block, slot, head, d) of a tensor in NHD order.
template <class S>
S at(const Tensor& t, Index block, Index slot, Index head, Index d) {
  return static_cast<const S*>(
      t.data)[block * t.strides[0] + slot * t.strides[1] + head * t.strides[2] + d * t.strides[3]];
}

/// A sequence of `tokens` rows in both layers; `stale` writes others before it, so that blocks are not in order.
template <class Cache>
SeqId fill(Cache& cache, const Rows& k, const Rows& v) {
  const SeqId stale = cache.open();
  cache.commit(cache.extend_without_tokens(stale, 3));
  const SeqId seq = cache.open();
  for (Index first = 0; first < k.rows();) {
    const Index count = std::min<Index>(9, k.rows() - first);
    auto append = cache.extend_without_tokens(seq, static_cast<Pos>(count));
    for (Index layer = 0; layer < 2; ++layer) {
      const float factor = layer == 0 ? -2.0F : 1.0F;
      cache.write(layer, append, k.middleRows(first, count) * factor, v.middleRows(first, count) * factor);
    }
    cache.commit(std::move(append));
    first += count;
  }
  cache.close(stale);
  return seq;
}

/// Attention of one query row per head, in double, over numbers of `number(keys, position, kv head, d)`.
template <class F>
Rows attention_of(const Rows& q, Index tokens, F number) {
  Rows out(1, 4 * shape.value_dim);
  for (Index h = 0; h < 4; ++h) {
    std::vector<double> p(static_cast<std::size_t>(tokens));
    double sum = 0;
    for (Index t = 0; t < tokens; ++t) {
      double dot = 0;
      for (Index d = 0; d < shape.key_dim; ++d) {
        dot += static_cast<double>(q(0, h * shape.key_dim + d)) * number(true, t, h / 2, d);
      }
      p[static_cast<std::size_t>(t)] = std::exp(dot / std::sqrt(static_cast<double>(shape.key_dim)));
      sum += p[static_cast<std::size_t>(t)];
    }
    for (Index d = 0; d < shape.value_dim; ++d) {
      double x = 0;
      for (Index t = 0; t < tokens; ++t) {
        x += p[static_cast<std::size_t>(t)] / sum * number(false, t, h / 2, d);
      }
      out(0, h * shape.value_dim + d) = static_cast<float>(x);
    }
  }
  return out;
}

template <class T, class Cache>
Rows decode(const Cache& cache, Index layer, SeqId seq, const Rows& q) {
  Rows out(1, 4 * shape.value_dim);
  const Pos length = cache.length(seq);
  kvc_test::Attend<T>::prefill(cache.view(layer, seq), PosRange{length - 1, length}, MatrixArg<float>(q).ref(),
                               MatrixRef<float>(out.data(), 1, out.cols()), {});
  return out;
}
}  // namespace

TEST_CASE("Int8 in scale planes is a tensor of codes and one of scales, as computed by hand", "[layout][interop]") {
  constexpr Pos tokens = 21;
  const Rows k = random_rows(tokens, 2 * 64, 1), v = random_rows(tokens, 2 * 32, 2), q = random_rows(1, 4 * 64, 3);
  KvCache<Int8, Paged, ScalePlanes<LayerMajor<>>> cache(shape, {.blocks = 8, .block_tokens = 4});
  const SeqId seq = fill(cache, k, v);
  const LayerTensors t = layer_tensors(cache, 1);
  REQUIRE(t.k.dtype == DLDataType{DLDataTypeCode::signed_integer, 8, 1});
  REQUIRE(t.k_scales.dtype == DLDataType{DLDataTypeCode::floating_point, 32, 1});
  // All blocks of a layer in one tensor, contiguous: codes [8, 4, 2, 64], a float for each of their rows.
  REQUIRE(t.k.shape == std::array<std::int64_t, 4>{8, 4, 2, 64});
  REQUIRE(t.k.strides == std::array<std::int64_t, 4>{512, 128, 64, 1});
  REQUIRE(t.v.strides == std::array<std::int64_t, 4>{256, 64, 32, 1});
  REQUIRE(t.k_scales.shape == std::array<std::int64_t, 4>{8, 4, 2, 1});
  REQUIRE(t.k_scales.strides == std::array<std::int64_t, 4>{8, 2, 1, 1});
  // Codes of both layers are (512 + 256) x 8 bytes each; then 2 x 64 floats of each layer, keys before values.
  const auto* const pool = cache.data();
  REQUIRE(t.k.data == pool + 6144);
  REQUIRE(t.v.data == pool + 6144 + 4096);
  REQUIRE(t.k_scales.data == pool + 12288 + 512);
  REQUIRE(t.v_scales.data == pool + 12288 + 512 + 256);
  const auto place = [&](Index position) {
    return std::pair(to_index(cache.policy().block_table(seq)[static_cast<std::size_t>(position / 4)]), position % 4);
  };
  const auto number = [&](bool keys, Index position, Index head, Index d) {
    const auto [block, slot] = place(position);
    return static_cast<double>(at<std::int8_t>(keys ? t.k : t.v, block, slot, head, d)) *
           static_cast<double>(at<float>(keys ? t.k_scales : t.v_scales, block, slot, head, 0));
  };
  for (const bool keys : {true, false}) {
    const Rows& rows = keys ? k : v;
    const Index dim = keys ? 64 : 32;
    for (Index position = 0; position < tokens; ++position) {
      for (Index head = 0; head < 2; ++head) {
        const auto row = rows.row(position).segment(head * dim, dim);
        const float scale = row.cwiseAbs().maxCoeff() / 127.0F;
        const auto [block, slot] = place(position);
        REQUIRE(at<float>(keys ? t.k_scales : t.v_scales, block, slot, head, 0) == scale);
        for (Index d = 0; d < dim; ++d) {
          REQUIRE(at<std::int8_t>(keys ? t.k : t.v, block, slot, head, d) == std::nearbyint(row[d] / scale));
        }
      }
    }
  }
  const Rows by_hand = attention_of(q, tokens, number), out = decode<Int8>(cache, 1, seq, q);
  REQUIRE((out - by_hand).cwiseAbs().maxCoeff() < 2e-3F);
}

#if !defined(KVC_FLOAT_AND_INT8_ALONE)
TEST_CASE("Int4 in scale planes has words of scale and minimum apart from its codes", "[layout][interop]") {
  constexpr Pos tokens = 10;
  const Rows k = random_rows(tokens, 2 * 64, 4), v = random_rows(tokens, 2 * 32, 5), q = random_rows(1, 4 * 64, 6);
  KvCache<Int4, Paged, ScalePlanes<>> cache(shape, {.blocks = 8, .block_tokens = 4});
  const SeqId seq = fill(cache, k, v);
  const LayerTensors t = layer_tensors(cache, 1);
  REQUIRE(t.k.shape[3] == 32);
  REQUIRE(t.k_scales.dtype == DLDataType{DLDataTypeCode::unsigned_integer, 32, 1});
  REQUIRE(t.k_scales.shape[3] == 2);  // groups of 32 elements
  REQUIRE(t.v_scales.shape[3] == 1);
  const auto bf16 = [](std::uint32_t bits) {
    float x;
    bits <<= 16;
    std::memcpy(&x, &bits, 4);
    return static_cast<double>(x);
  };
  const auto number = [&](bool keys, Index position, Index head, Index d) {
    const Index block = to_index(cache.policy().block_table(seq)[static_cast<std::size_t>(position / 4)]);
    const auto byte = at<std::uint8_t>(keys ? t.k : t.v, block, position % 4, head, d / 32 * 16 + d % 16);
    const auto word = at<std::uint32_t>(keys ? t.k_scales : t.v_scales, block, position % 4, head, d / 32);
    return (d % 32 < 16 ? byte & 15 : byte >> 4) * bf16(word & 0xffffU) + bf16(word >> 16);
  };
  float farthest = 0;
  for (Index position = 0; position < tokens; ++position) {
    for (Index i = 0; i < 2 * 64; ++i) {
      farthest =
          std::max(farthest, std::abs(static_cast<float>(number(true, position, i / 64, i % 64)) - k(position, i)));
    }
  }
  REQUIRE(farthest < 6.0F / 30 + 0.01F);  // elements are within [-3, 3]
  const Rows by_hand = attention_of(q, tokens, number), out = decode<Int4>(cache, 1, seq, q);
  REQUIRE((out - by_hand).cwiseAbs().maxCoeff() < 3e-2F);
}
#endif

namespace {
/// The bytes of a layer's rows in the order of a snapshot.
template <class Cache>
std::vector<std::uint8_t> stored(const Cache& cache, SeqId seq, Index layer, layout::RowOrder order) {
  std::vector<layout::SlotSpan> slots;
  cache.policy().for_each_run(seq, {0, cache.length(seq)},
                              [&](const SlotRun& run) { slots.push_back({run.block, run.offset, run.count}); });
  std::vector<std::uint8_t> bytes;
  layout::for_each_row_span(cache.layout(), layer, order, slots, [&](Index offset, Index units) {
    bytes.insert(bytes.end(), cache.data() + offset, cache.data() + offset + units);
  });
  return bytes;
}

template <class T, class L>
void require_same_as_in_rows() {
  constexpr Pos tokens = 75;
  const Rows k = random_rows(tokens, 2 * 64, 7), v = random_rows(tokens, 2 * 32, 8), q = random_rows(1, 4 * 64, 9);
  const PrefixShared<>::Config config{.blocks = 40, .block_tokens = 4};
  KvCache<T, PrefixShared<>> in_rows(shape, config);
  KvCache<T, PrefixShared<>, L> in_planes(shape, config);
  CAPTURE(L::name);
  const auto compare = [&](SeqId of_rows, SeqId of_planes) {
    for (Index layer = 0; layer < 2; ++layer) {
      REQUIRE(decode<T>(in_rows, layer, of_rows, q) == decode<T>(in_planes, layer, of_planes, q));
      for (const auto order : {layout::RowOrder::head_major, layout::RowOrder::token_major}) {
        REQUIRE(stored(in_rows, of_rows, layer, order) == stored(in_planes, of_planes, layer, order));
      }
      Rows k1(tokens, 2 * 64), v1(tokens, 2 * 32), k2 = k1, v2 = v1;
      const PosRange all{0, in_rows.length(of_rows)};
      const auto gather = [&](auto& cache, SeqId seq, Rows& a, Rows& b) {
        cache.gather(layer, seq, all, MatrixRef<float>(a.data(), all.size(), a.cols()),
                     MatrixRef<float>(b.data(), all.size(), b.cols()));
      };
      gather(in_rows, of_rows, k1, v1);
      gather(in_planes, of_planes, k2, v2);
      REQUIRE(k1.topRows(all.size()) == k2.topRows(all.size()));
      REQUIRE(v1.topRows(all.size()) == v2.topRows(all.size()));
    }
  };
  const SeqId a = fill(in_rows, k, v), b = fill(in_planes, k, v);
  compare(a, b);
  // A fork in the middle of a block, and copy-on-write of its tail: codes and scales are copied.
  const SeqId fork_a = in_rows.fork(a, 30), fork_b = in_planes.fork(b, 30);
  const auto extend = [&](auto& cache, SeqId seq) {
    auto append = cache.extend_without_tokens(seq, 5);
    cache.write(0, append, k.topRows(5), v.topRows(5));
    cache.write(1, append, k.middleRows(5, 5), v.middleRows(5, 5));
    cache.commit(std::move(append));
  };
  extend(in_rows, fork_a);
  extend(in_planes, fork_b);
  compare(fork_a, fork_b);
  compare(a, b);
  REQUIRE(fingerprint(in_rows) == fingerprint(in_planes));
  REQUIRE(fingerprint(in_rows, FingerprintOf::blocks) != fingerprint(in_planes, FingerprintOf::blocks));
}
}  // namespace

TEST_CASE("Scale planes change neither bits nor stored bytes", "[layout][attention]") {
  require_same_as_in_rows<Int8, ScalePlanes<>>();
  require_same_as_in_rows<Int8, ScalePlanes<LayerMajor<>>>();
#if !defined(KVC_FLOAT_AND_INT8_ALONE)
  require_same_as_in_rows<Int4, ScalePlanes<TokenMajor>>();
  require_same_as_in_rows<Fp8E4M3, ScalePlanes<>>();  // has none
#endif
}

TEST_CASE("Layer groups that share blocks have scale planes within each block", "[layout][groups]") {
  LayerGroups layers;
  layers.add({.kv_heads = 2, .key_dim = 64, .value_dim = 32});
  layers.add({.kv_heads = 2, .key_dim = 64, .value_dim = 32, .window = 8});
  KvCache<Int8, Paged> in_rows(layers, {.blocks = 40, .block_tokens = 4});
  KvCache<Int8, Paged, ScalePlanes<>> in_planes(layers, {.blocks = 40, .block_tokens = 4});
  const Rows k = random_rows(40, 2 * 64, 10), v = random_rows(40, 2 * 32, 11), q = random_rows(1, 4 * 64, 12);
  const SeqId a = fill(in_rows, k, v), b = fill(in_planes, k, v);
  REQUIRE(decode<Int8>(in_rows, 0, a, q) == decode<Int8>(in_planes, 0, b, q));
  const GroupLayout<ScalePlanes<>>& group = in_planes.group_layout(1);
  const Index block = group.k(BlockId{1}, 0, 0, 0) - group.k(BlockId{0}, 0, 0, 0);
  REQUIRE(block % 64 == 0);
  REQUIRE(group.k_scales(BlockId{1}, 0, 0, 0) - group.k_scales(BlockId{0}, 0, 0, 0) == block);
  REQUIRE(group.k_scales(BlockId{0}, 0, 0, 0) % 64 == 0);
  for (const BlockId id : {BlockId{0}, BlockId{7}}) {
    for (const Pos slot : {0, 1, 3}) {
      REQUIRE(group.k(id, 0, 1, slot) % 16 == 0);  // so that kernels read 16 bytes of codes at a time
      REQUIRE(group.v(id, 0, 1, slot) % 16 == 0);
    }
  }
}

}  // namespace scale_planes_test
