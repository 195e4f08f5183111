// RoPE against the node tests of the ONNX operator RotaryEmbedding.
#if defined(KVC_HAVE_PROTOBUF)

#include <vector>

#include "kvc/llama/llama.hpp"
#include "kvc/llama/rope.hpp"
#include "onnx_case.hpp"

using kvc::Index;
using kvc::Pos;
using kvc::llama::Matrix;

namespace {

/// The numbers of a tensor as rows of `cols`.
Matrix matrix(const std::vector<float>& numbers, Index cols) {
  return Eigen::Map<const Matrix>(numbers.data(), static_cast<Index>(numbers.size()) / cols, cols);
}

/// Input [batch, heads, tokens, head_dim] or [batch, tokens, heads * head_dim]; tables by position [positions, rotary /
/// 2] with position ids [batch, tokens], or one row per token [batch, tokens, rotary / 2].
std::vector<float> rotated(const kvc_test::OnnxCase& test) {
  const kvc_test::OnnxTensor& input = *test.input(0);
  const kvc_test::OnnxTensor& cos = *test.input(1);
  const kvc_test::OnnxTensor& sin = *test.input(2);
  const kvc_test::OnnxTensor* ids = test.input(3);
  const bool heads_first = input.dims.size() == 4;
  const Index batch = input.dim(0);
  const Index heads = heads_first ? input.dim(1) : test.integer("num_heads", 0);
  const Index tokens = input.dim(heads_first ? 2 : 1);
  const Index head_dim = heads_first ? input.dim(3) : input.dim(2) / heads;

  const Index half = cos.dims.back();
  const Index rotary_dim = test.integer("rotary_embedding_dim", 0);
  REQUIRE(2 * half == (rotary_dim == 0 ? head_dim : rotary_dim));
  const kvc::llama::RopeTable table(matrix(cos.floats(), half), matrix(sin.floats(), half));

  // As rows of one head each, which both forms are: row r is of token r % tokens, or of r / heads.
  Matrix x = matrix(input.floats(), head_dim);
  std::vector<Pos> positions;
  for (Index row = 0; row < x.rows(); ++row) {
    const Index b = row / (heads * tokens);
    const Index token = heads_first ? row % tokens : row / heads % tokens;
    REQUIRE(b < batch);
    const Index place = b * tokens + token;
    positions.push_back(
        static_cast<Pos>(ids == nullptr ? place : static_cast<Index>(ids->values.at(static_cast<std::size_t>(place)))));
  }
  if (test.integer("interleaved", 0) != 0) {
    kvc::llama::rope(kvc::llama::Interleaved{}, table, positions, x, head_dim);
  } else {
    kvc::llama::rope(kvc::llama::HalfSplit{}, table, positions, x, head_dim);
  }
  return {x.data(), x.data() + x.size()};
}

}  // namespace

TEST_CASE("ONNX RotaryEmbedding", "[golden][onnx][rope]") {
  for (const auto& folder : kvc_test::onnx_folders("test_rotary_embedding")) {
    INFO(folder.string());
    const kvc_test::OnnxCase test = kvc_test::load_onnx_case(folder);
    REQUIRE(test.op == "RotaryEmbedding");
    kvc_test::check_onnx(rotated(test), *test.output(0));
  }
}

#else

#include "catch.hpp"

TEST_CASE("ONNX RotaryEmbedding", "[golden][onnx][rope]") { KVC_SKIP("built without protobuf"); }

#endif
