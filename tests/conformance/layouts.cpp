// The contract of Layout: ours keep it, a minimal model does, and the suite rejects wrong ones.
#include "catch.hpp"
#include "kvc/layout/layer_major.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "kvc/layout/verify.hpp"
#include "kvc/testing/layout_conformance.hpp"
#include "user_layout.hpp"

namespace {
using namespace kvc;
using kvc_test::contains;
using kvc_test::Interleaved;
using kvc_test::LayersFirst;
using kvc_test::ValueIsKey;
using testing::ContractError;
using testing::layout_conformance;

// Layouts that compile and are wrong.

struct ValueTooNear : Interleaved {
  static constexpr std::string_view name = "value too near";
  using Interleaved::Interleaved;
  Index v(BlockId b, Index layer, Index head, Pos slot) const { return k(b, layer, head, slot) + of.key_row - 1; }
};
struct BlocksOverlap : Interleaved {
  static constexpr std::string_view name = "blocks overlap";
  using Interleaved::Interleaved;
  Index k(BlockId b, Index layer, Index head, Pos slot) const {
    return Interleaved::k(b, layer, head, slot) - to_index(b) * row();
  }
  Index v(BlockId b, Index layer, Index head, Pos slot) const { return k(b, layer, head, slot) + of.key_row; }
};
struct Outside : Interleaved {
  static constexpr std::string_view name = "outside";
  using Interleaved::Interleaved;
  Index k(BlockId b, Index layer, Index head, Pos slot) const { return Interleaved::k(b, layer, head, slot) + 1; }
  Index v(BlockId b, Index layer, Index head, Pos slot) const { return k(b, layer, head, slot) + of.key_row; }
};
struct HeadsUneven : Interleaved {  // the last two heads change places
  static constexpr std::string_view name = "heads uneven";
  using Interleaved::Interleaved;
  Index k(BlockId b, Index layer, Index head, Pos slot) const {
    const bool swapped = of.kv_heads > 2 && head < of.kv_heads && head > of.kv_heads - 3;
    return Interleaved::k(b, layer, swapped ? 2 * of.kv_heads - 3 - head : head, slot);
  }
  Index v(BlockId b, Index layer, Index head, Pos slot) const { return k(b, layer, head, slot) + of.key_row; }
};
struct StrideWrong : Interleaved {
  static constexpr std::string_view name = "stride wrong";
  using Interleaved::Interleaved;
  Index v_stride() const { return of.value_row; }
};
struct ForgetsExtents : Interleaved {
  static constexpr std::string_view name = "forgets extents";
  explicit ForgetsExtents(const PoolExtents& extents) : Interleaved(extents) { of.layers = 1; }
};
struct TooSmall : Interleaved {
  static constexpr std::string_view name = "too small";
  using Interleaved::Interleaved;
  Index size() const { return Interleaved::size() - (of.key_row > 1 ? 1 : 0); }
};
struct ScalesInCodes : ScalePlanes<HeadMajor> {
  static constexpr std::string_view name = "scales in codes";
  using ScalePlanes::ScalePlanes;
  Index k_scales(BlockId b, Index layer, Index head, Pos slot) const {
    return ScalePlanes::k_scales(b, layer, head, slot) - ScalePlanes::k_scales(BlockId{0}, 0, 0, 0);
  }
};

// Layouts that lack what KvCache, snapshots and transfers need: no layouts at all.

struct WithoutExtents {
  static constexpr std::string_view name = "without extents";
  explicit WithoutExtents(const PoolExtents&) {}
  Index size() const { return 0; }
  Index block_size() const { return 0; }
  Index k(BlockId, Index, Index, Pos) const { return 0; }
  Index v(BlockId, Index, Index, Pos) const { return 0; }
  Index k_stride() const { return 0; }
  Index v_stride() const { return 0; }
};
static_assert(!Layout<WithoutExtents>);
struct WithoutName : WithoutExtents {
  using WithoutExtents::WithoutExtents;
  static constexpr int name = 0;
  PoolExtents extents() const { return {}; }
};
static_assert(!Layout<WithoutName>);
struct WithoutStride : Interleaved {
  using Interleaved::Interleaved;

 private:
  using Interleaved::k_stride;
};
static_assert(!Layout<WithoutStride>);
}  // namespace

TEMPLATE_TEST_CASE("A layout keeps the contract", "[layout][contract]", HeadMajor, TokenMajor, LayerMajor<>,
                   LayerMajor<HeadMajor>, ScalePlanes<HeadMajor>, ScalePlanes<TokenMajor>, ScalePlanes<LayerMajor<>>,
                   Interleaved, LayersFirst) {
  layout_conformance<TestType>();
}

TEST_CASE("A layout that breaks the contract is found, by the name of the row", "[layout][contract]") {
  REQUIRE_THROWS_WITH(layout_conformance<ValueIsKey>(),
                      contains("layout value is key breaks its contract") &&
                          contains("the key of block 0, layer 0, head 0, slot 0 overlaps"));
  REQUIRE_THROWS_WITH(layout_conformance<ValueTooNear>(), contains("overlaps the value of block 0"));
  REQUIRE_THROWS_WITH(layout_conformance<BlocksOverlap>(), contains("overlaps the key of block 1"));
  REQUIRE_THROWS_WITH(layout_conformance<Outside>(), contains("lies outside of the pool"));
  REQUIRE_THROWS_WITH(layout_conformance<HeadsUneven>(), contains("head 2, slot 0 is not at an even distance"));
  REQUIRE_THROWS_WITH(layout_conformance<StrideWrong>(), contains("slot 1 is not at an even distance"));
  REQUIRE_THROWS_WITH(layout_conformance<ForgetsExtents>(), contains("extents() differs"));
  REQUIRE_THROWS_WITH(layout_conformance<TooSmall>(), contains("size() is"));
  REQUIRE_THROWS_WITH(layout_conformance<ScalesInCodes>(), contains("the scales of the key of block 0"));
}

TEST_CASE("The corners of a large pool show an overlap", "[layout][contract]") {
  const PoolExtents large{
      .blocks = 1, .block_tokens = 1 << 24, .layers = 80, .kv_heads = 8, .key_row = 128, .value_row = 128};
  layout::verify(HeadMajor(large));
  layout::verify(TokenMajor(large));
  layout::verify(LayerMajor<>(large));
  layout::verify(LayerMajor<HeadMajor>(large));
  layout::verify(LayersFirst(large));
  REQUIRE_THROWS_WITH(layout::verify(ValueIsKey(large)), contains("overlaps the value"));
  REQUIRE_THROWS_WITH(layout::verify(ValueTooNear(large)), contains("overlaps the value"));
}

TEST_CASE("A layer-major pool has two tensors for each layer", "[layout]") {
  const PoolExtents extents{.blocks = 5, .block_tokens = 4, .layers = 3, .kv_heads = 2, .key_row = 6, .value_row = 3};
  // Keys of a layer: 5 x 4 x 2 x 6 = 240 units; its values: 120.
  const LayerMajor<TokenMajor> nhd(extents);
  REQUIRE(nhd.size() == 3 * 360);
  REQUIRE(nhd.layer_size() == 360);
  REQUIRE(nhd.block_size() == 3 * 72);
  REQUIRE(nhd.k(BlockId{0}, 0, 0, 0) == 0);
  REQUIRE(nhd.v(BlockId{0}, 0, 0, 0) == 240);
  REQUIRE(nhd.k(BlockId{2}, 1, 1, 3) == 360 + 2 * 48 + 3 * 12 + 6);
  REQUIRE(nhd.v(BlockId{2}, 1, 1, 3) == 360 + 240 + 2 * 24 + 3 * 6 + 3);
  REQUIRE(nhd.k_stride() == 12);
  REQUIRE(nhd.v_stride() == 6);
  const LayerMajor<HeadMajor> hnd(extents);
  REQUIRE(hnd.size() == nhd.size());
  REQUIRE(hnd.k(BlockId{2}, 1, 1, 3) == 360 + 2 * 48 + 24 + 3 * 6);
  REQUIRE(hnd.v(BlockId{2}, 1, 1, 3) == 360 + 240 + 2 * 24 + 12 + 3 * 3);
  REQUIRE(hnd.k_stride() == 6);
  REQUIRE(hnd.v_stride() == 3);
  REQUIRE_THROWS_WITH(LayerMajor<>({.blocks = Index{1} << 30,
                                    .block_tokens = 1 << 10,
                                    .layers = 1 << 10,
                                    .kv_heads = 1 << 5,
                                    .key_row = 1 << 6,
                                    .value_row = 1 << 6}),
                      contains("pool size is 1024 x") && contains("must be at most 2^60 units"));
}
