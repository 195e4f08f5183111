// What kernels of others are given: slots, tensors, block pointers, masks and fingerprints, beside numbers by hand.
#include <Eigen/Core>
#include <array>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/cache/fingerprint.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/interop/bit_mask.hpp"
#include "kvc/interop/dlpack.hpp"
#include "kvc/interop/slots.hpp"
#include "kvc/interop/tensors.hpp"
#include "kvc/layout/layer_major.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"

namespace interop_test {
namespace {
using namespace kvc;
using namespace kvc::interop;
using kvc_test::contains;
using Slots = std::vector<std::int64_t>;
using Ints = std::vector<std::int32_t>;
using Dims = std::array<std::int64_t, 4>;

constexpr Shape shape{.layers = 2, .kv_heads = 3, .key_dim = 8, .value_dim = 4};

/// Two sequences of 6 and 2 tokens in blocks of 4, then a step of 3 and 1 rows: blocks 0 1 | 2, then 0 1 3 | 2.
template <class Cache>
struct Step {
  Cache cache{shape, {.blocks = 10, .block_tokens = 4}};
  std::array<SeqId, 2> seqs{cache.open(), cache.open()};
  std::vector<typename Cache::Append> appends;
  Step() {
    cache.commit(cache.extend(seqs[0], 6));
    cache.commit(cache.extend(seqs[1], 2));
    appends.push_back(cache.extend(seqs[0], 3));
    appends.push_back(cache.extend(seqs[1], 1));
  }
};
using Plain = KvCache<float, Paged>;

const float* at(const Tensor& t, Index a, Index b, Index c) {
  return static_cast<const float*>(t.data) + a * t.strides[0] + b * t.strides[1] + c * t.strides[2];
}
}  // namespace

TEST_CASE("slot_mapping has the slot of each new row, padded with -1", "[interop]") {
  Step<Plain> step;
  const std::span<const BlockId> table = step.cache.policy().block_table(step.seqs[0]);
  REQUIRE(table.size() == 3);
  const Index b1 = to_index(table[1]), b2 = to_index(table[2]);
  const Index other = to_index(step.cache.policy().block_table(step.seqs[1])[0]);
  // Positions 6, 7 and 8 of the first sequence, position 2 of the second.
  const Slots expected{b1 * 4 + 2, b1 * 4 + 3, b2 * 4, other * 4 + 2};
  REQUIRE(slot_mapping(step.cache, step.appends) == expected);
  Slots padded(7, 99);
  slot_mapping(step.cache, step.appends, std::span(padded));
  REQUIRE(padded == Slots{expected[0], expected[1], expected[2], expected[3], -1, -1, -1});
  REQUIRE(slot_mapping(step.cache, step.appends, 6).size() == 6);
  Slots few(3, 99);
  REQUIRE_THROWS_WITH(slot_mapping(step.cache, step.appends, std::span(few)), contains("slots.size() is 3"));
  REQUIRE(few == Slots{99, 99, 99});
  REQUIRE_THROWS_WITH(slot_mapping(step.cache, step.appends, 0, 1), contains("group"));
  step.cache.commit(std::move(step.appends[0]));
  REQUIRE_THROWS_WITH(slot_mapping(step.cache, step.appends), contains("append is finished or of another cache"));
}

TEST_CASE("slot_mapping and indices of a policy without blocks, and of a window group", "[interop][groups]") {
  KvCache<float, Contiguous> cache(shape, {.sequences = 2, .max_tokens = 10});
  const SeqId first = cache.open({.max_tokens = 5}), second = cache.open({.max_tokens = 5});
  std::vector<Append<Contiguous>> appends;
  appends.push_back(cache.extend(first, 2));
  appends.push_back(cache.extend(second, 1));
  const Slots slots = slot_mapping(cache, appends);
  REQUIRE(slots.size() == 3);
  REQUIRE(slots[1] == slots[0] + 1);
  for (std::size_t i = 0; i < 3; ++i) {  // a row at this offset in storage units belongs to that slot
    REQUIRE((slots[i] >= 0 && slots[i] < cache.policy().block_tokens()));
  }

  LayerGroups layers;
  layers.add({.key_dim = 8});
  layers.add({.key_dim = 8, .window = 4});
  KvCache<float, Paged> groups(layers, {.blocks = 20, .block_tokens = 4});
  const SeqId seq = groups.open();
  groups.commit(groups.extend(seq, 13));
  Ints indices(3);
  const std::vector<Pos> positions{12, -1};
  slot_indices(groups.policy(), seq, positions, indices, 1);
  const GroupBlocks blocks = groups.policy().group_blocks(seq, 1);
  REQUIRE(
      indices ==
      Ints{static_cast<std::int32_t>(to_index(blocks.rest[static_cast<std::size_t>(3 - blocks.first)]) * 4), -1, -1});
  const std::vector<Pos> gone{0};
  REQUIRE_THROWS_WITH(slot_indices(groups.policy(), seq, gone, indices, 1), contains("position is 0"));
  slot_indices(groups.policy(), seq, gone, indices, 0);  // of full attention it is there
  REQUIRE(indices[0] == to_index(groups.policy().group_blocks(seq, 0).rest[0]) * 4);
}

TEST_CASE("slot_mapping has no slot for what a restored sequence does not hold and rows stay in their places",
          "[interop][groups]") {
  LayerGroups layers;
  layers.add({.key_dim = 8, .window = 4});
  KvCache<float, Paged> cache(layers, {.blocks = 20, .block_tokens = 4});
  const SeqId restored = cache.open(), other = cache.open();
  std::vector<Append<Paged>> appends;
  appends.push_back(std::move(*cache.try_restore(restored, {.length = 13})));  // the window has 10, 11 and 12
  appends.push_back(cache.extend(other, 1));
  const GroupBlocks blocks = cache.policy().group_blocks(restored, 0);
  REQUIRE(blocks.first == 2);
  REQUIRE(blocks.rest.size() == 2);
  const Slots slots = slot_mapping(cache, appends);
  REQUIRE(slots.size() == 14);
  for (std::size_t position = 0; position < 13; ++position) {
    const Index expected =
        position < 10 ? no_slot : to_index(blocks.rest[position / 4 - 2]) * 4 + static_cast<Index>(position % 4);
    REQUIRE(slots[position] == expected);
  }
  REQUIRE(slots[13] == to_index(cache.policy().group_blocks(other, 0).rest[0]) * 4);
}

TEST_CASE("indices are block * block_tokens + slot, -1 where nothing is read", "[interop]") {
  Step<Plain> step;
  const std::span<const BlockId> table = step.cache.policy().block_table(step.seqs[0]);
  const std::vector<Pos> positions{8, 0, -1, 5};
  Ints indices(6, 7);
  slot_indices(step.cache.policy(), step.seqs[0], positions, indices);
  const auto slot = [&](std::size_t block, Index offset) {
    return static_cast<std::int32_t>(to_index(table[block]) * 4 + offset);
  };
  REQUIRE(indices == Ints{slot(2, 0), slot(0, 0), -1, slot(1, 1), -1, -1});
  const std::vector<Pos> behind{9};
  REQUIRE_THROWS_WITH(slot_indices(step.cache.policy(), step.seqs[0], behind, indices), contains("position is 9"));
  Ints few(3);
  REQUIRE_THROWS_WITH(slot_indices(step.cache.policy(), step.seqs[0], positions, few), contains("indices.size() is 3"));
  Paged large({.blocks = Index{1} << 18, .block_tokens = 1 << 14});
  const SeqId seq = large.try_open()->seq;
  REQUIRE_THROWS_WITH(slot_indices(large, seq, {}, indices),
                      contains("slots in the pool is 4294967296, must be at most 2^31"));
}

TEST_CASE("The tensors of a layer have the addresses, sizes and strides of its rows", "[interop]") {
  Step<Plain> step;
  // A block of head-major has 2 layers of 3 heads x 4 slots x (8 + 4) elements.
  const LayerTensors nhd = layer_tensors(step.cache, 1);
  REQUIRE(nhd.k.shape == Dims{10, 4, 3, 8});
  REQUIRE(nhd.k.strides == Dims{288, 8, 32, 1});
  REQUIRE(nhd.k.data == step.cache.data() + 144);
  REQUIRE(nhd.v.shape == Dims{10, 4, 3, 4});
  REQUIRE(nhd.v.strides == Dims{288, 4, 16, 1});
  REQUIRE(nhd.v.data == step.cache.data() + 144 + 96);
  const LayerTensors hnd = layer_tensors(step.cache, 1, Axes::hnd);
  REQUIRE(hnd.k.shape == Dims{10, 3, 4, 8});
  REQUIRE(hnd.k.strides == Dims{288, 32, 8, 1});
  // Of layer-major each tensor is contiguous: 10 blocks x 4 slots x 3 heads x 8 = 960, and 480, for each layer.
  KvCache<float, Paged, LayerMajor<>> cache(shape, {.blocks = 10, .block_tokens = 4});
  const LayerTensors second = layer_tensors(cache, 1);
  REQUIRE(second.k.strides == Dims{96, 24, 8, 1});
  REQUIRE(second.v.strides == Dims{48, 12, 4, 1});
  REQUIRE(second.k.data == cache.data() + 1440);
  REQUIRE(second.v.data == cache.data() + 1440 + 960);
  // What is written is found there.
  const SeqId seq = cache.open();
  auto append = cache.extend(seq, 6);
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> k(6, 24), v(6, 12);
  for (Index i = 0; i < k.size(); ++i) {
    k.data()[i] = static_cast<float>(i);
  }
  v = -k.leftCols(12);
  cache.write(0, append, k, v);
  cache.write(1, append, k * 2.0F, v * 2.0F);
  const Index block = to_index(cache.policy().block_table(seq)[1]);
  REQUIRE(at(second.k, block, 1, 2)[3] == 2 * k(5, 2 * 8 + 3));  // position 5: slot 1 of its second block
  REQUIRE(at(second.v, block, 1, 2)[3] == 2 * v(5, 2 * 4 + 3));
  REQUIRE_THROWS_WITH(layer_tensors(cache, 2), contains("layer is 2"));
}

TEST_CASE("DLPack tensors say element type, device and whether they may be written", "[interop]") {
  static_assert(data_type<float>() == DLDataType{DLDataTypeCode::floating_point, 32, 1});
  static_assert(data_type<Eigen::half>() == DLDataType{DLDataTypeCode::floating_point, 16, 1});
  static_assert(data_type<Eigen::bfloat16>() == DLDataType{DLDataTypeCode::bfloat, 16, 1});
  static_assert(data_type<Fp8E4M3>() == DLDataType{DLDataTypeCode::float8_e4m3fn, 8, 1});
  static_assert(data_type<Int8>() == DLDataType{DLDataTypeCode::unsigned_integer, 8, 1});
  const KvCache<Int8, Paged> cache(shape, {.blocks = 10, .block_tokens = 4});
  LayerTensors tensors = layer_tensors(cache, 0, Axes::nhd, {DLDeviceType::cuda, 3});
  const DLTensor view = tensors.k.dl_tensor();
  REQUIRE(view.ndim == 4);
  REQUIRE(view.shape[3] == 12);  // 8 codes and a scale of 4 bytes
  REQUIRE(view.strides[2] == 4 * 12);
  REQUIRE(view.device.device_type == DLDeviceType::cuda);
  REQUIRE(view.device.device_id == 3);
  REQUIRE(view.byte_offset == 0);
  DLManagedTensorVersioned* const managed = tensors.v.managed();
  tensors = {};  // it has arrays of its own
  REQUIRE(managed->version.major == 1);
  REQUIRE(managed->flags == 1);
  REQUIRE(managed->dl_tensor.shape[0] == 10);
  REQUIRE(managed->dl_tensor.shape[3] == 8);
  REQUIRE(managed->dl_tensor.data == static_cast<const void*>(cache.data() + 3 * 4 * 12));
  managed->deleter(managed);
  KvCache<float, Paged> written(shape, {.blocks = 1});
  DLManagedTensorVersioned* const writable = layer_tensors(written, 0).k.managed();
  REQUIRE(writable->flags == 0);
  writable->deleter(writable);
}

TEST_CASE("Strides and offsets that 32 bits do not hold are refused by name", "[interop]") {
  Tensor tensor;
  tensor.shape = {3, 16, 8, 128};
  tensor.strides = {Index{1} << 31, 1024, 128, 1};
  REQUIRE_THROWS_WITH(tensor.strides_32(), contains("stride of axis 0 is 2147483648, must be at most 2^31 - 1"));
  tensor.strides[0] = (Index{1} << 31) - 1;
  REQUIRE(tensor.strides_32() == std::array<std::int32_t, 4>{max_pos, 1024, 128, 1});
  REQUIRE_THROWS_WITH(tensor.require_offsets_of_32_bits(),
                      contains("last offset of the tensor is " + std::to_string(2 * Index{max_pos} + 16383)));
  tensor.strides[0] = 16384;
  REQUIRE_NOTHROW(tensor.require_offsets_of_32_bits());
}

TEST_CASE("Block pointers are the addresses of table entries", "[interop]") {
  Step<Plain> step;
  const BatchTables tables = make_tables(step.cache, step.appends);
  const BlockPointers pointers = block_pointers(step.cache, 1, tables);
  REQUIRE(pointers.k.size() == 4);
  for (std::size_t e = 0; e < 4; ++e) {
    REQUIRE(pointers.k[e] == step.cache.data() + tables.kv_indices[e] * 288 + 144);
    REQUIRE(pointers.v[e] == step.cache.data() + tables.kv_indices[e] * 288 + 144 + 96);
  }
  BatchTables wrong = tables;
  wrong.kv_indices[0] = 10;
  REQUIRE_THROWS_WITH(block_pointers(step.cache, 1, wrong), contains("block is 10, must be one of the pool"));
  wrong = tables;
  wrong.first_slots = {0, 0, 4, 0};
  REQUIRE_THROWS_WITH(block_pointers(step.cache, 1, wrong), contains("first slot is 4, must be one of a block"));
  wrong.first_slots = {0};
  REQUIRE_THROWS_WITH(block_pointers(step.cache, 1, wrong), contains("first_slots.size() is 1"));
}

TEST_CASE("Masks are packed from the least significant bit", "[interop]") {
  BitMasks masks;
  masks.add_causal(2, 5);  // rows see keys 0 .. 3, and 0 .. 4: 01111 11111 from the last key on, in ten bits
  REQUIRE(masks.bits == std::vector<std::uint8_t>{0b1110'1111, 0b11});
  // Drafts 0 and 1 behind the prefix of 2, 2 behind 0:  keys  p p 0 1 2
  masks.add_tree(2, std::vector<Pos>{-1, -1, 0});
  REQUIRE(masks.indptr == Ints{0, 2, 4});
  // Rows 11100, 11010, 11101 in the order of keys: bits 0..7 are 1110 0110, 8..14 are 1011 101.
  REQUIRE(masks.bits[2] == 0b0110'0111);
  REQUIRE(masks.bits[3] == 0b0101'1101);
  REQUIRE(masks.sees(1, 2, 2));
  REQUIRE_FALSE(masks.sees(1, 2, 3));
  REQUIRE(masks.rows == Ints{2, 3});
  REQUIRE(masks.keys == Ints{5, 5});
  const BitMasks before = masks;
  REQUIRE_THROWS_WITH(masks.add_causal(3, 2), contains("rows is 3, must be at most the number of keys"));
  REQUIRE_THROWS_WITH(masks.add_tree(2, std::vector<Pos>{0}), contains("parent is 0, must be an earlier row"));
  REQUIRE_THROWS_WITH(masks.add(1 << 20, 1 << 20, [](Pos, Pos) { return true; }), contains("bytes of the masks"));
  REQUIRE_THROWS_WITH(masks.add_tree(0, std::vector<Pos>(200'000, -1)), contains("bytes of the masks is 5000000004"));
  const auto fails = [&](Pos row, Pos) { return row == 0 ? true : throw std::runtime_error("no mask"); };
  REQUIRE_THROWS_WITH(masks.add(2, 8, fails), "no mask");
  REQUIRE(masks.bits == before.bits);
  REQUIRE(masks.indptr == before.indptr);
  masks.add(1, 8, [](Pos, Pos) { return false; });
  REQUIRE(masks.bits.back() == 0);
}

TEST_CASE("A fingerprint says whether rows or blocks can be exchanged", "[interop]") {
  const Paged::Config config{.blocks = 10, .block_tokens = 4};
  const KvCache<float, Paged> cache(shape, config);
  const Fingerprint rows = fingerprint(cache);
  REQUIRE(
      rows.text ==
      "kvc rows 1; element f32; little-endian; group layers 2 kv_heads 3 key_dim 8 value_dim 4; model layers 0.0 0.1");
  REQUIRE(kvc::detail::fnv_1a("") == 0xcbf29ce484222325);
  REQUIRE(kvc::detail::fnv_1a("a") == 0xaf63dc4c8601ec8c);  // of the reference implementation
  REQUIRE(rows.hash == kvc::detail::fnv_1a(rows.text));
  // Other block sizes, layouts, policies and pools: the same rows, other blocks.
  const KvCache<float, Paged, LayerMajor<>> layer_major(shape, {.blocks = 3, .block_tokens = 8});
  const KvCache<float, Contiguous> contiguous(shape, {.sequences = 1, .max_tokens = 8});
  REQUIRE(fingerprint(layer_major) == rows);
  REQUIRE(fingerprint(contiguous) == rows);
  REQUIRE(fingerprint(cache, FingerprintOf::blocks) !=
          fingerprint(KvCache<float, Paged, LayerMajor<>>(shape, config), FingerprintOf::blocks));
  REQUIRE(fingerprint(cache, FingerprintOf::blocks) !=
          fingerprint(KvCache<float, Paged>(shape, {.blocks = 10, .block_tokens = 8}), FingerprintOf::blocks));
  REQUIRE(fingerprint(cache, FingerprintOf::blocks) ==
          fingerprint(KvCache<float, Paged>(shape, {.blocks = 11, .block_tokens = 4}), FingerprintOf::blocks));
  // Another element type, another kind of layer, another order of layers.
  REQUIRE(fingerprint(KvCache<Int8, Paged>(shape, config)) != rows);
  LayerGroups one, two, reader;
  one.add({.key_dim = 8});
  one.add({.key_dim = 8, .window = 4});
  two.add({.key_dim = 8, .window = 4});
  two.add({.key_dim = 8});
  reader.add({.key_dim = 8});
  reader.add_reader_of(0);
  using Cache = KvCache<float, Paged>;
  REQUIRE(fingerprint(Cache(one, config)) != fingerprint(Cache(two, config)));
  REQUIRE(fingerprint(Cache(one, config)).text.find("key_dim 8 value_dim 8 window 4") != std::string::npos);
  REQUIRE(fingerprint(Cache(reader, config)).text.ends_with("model layers 0.0 0.0r"));
  REQUIRE(fingerprint(Cache(one, config)).hash != fingerprint(Cache(two, config)).hash);
}

}  // namespace interop_test
