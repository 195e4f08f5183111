// Node tests of the ONNX standard, as they lie in folders:
//
//   NAME/model.onnx                     a graph of one node: operator, attributes, names of inputs and outputs
//   NAME/test_data_set_0/input_K.pb     the tensor of the graph's K-th input
//   NAME/test_data_set_0/output_K.pb    what the graph's K-th output must be
//
// Needs protobuf: include it where KVC_HAVE_PROTOBUF is defined. Throws std::runtime_error, with the reason, for a file
// that it cannot read.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "catch.hpp"
#include "test_data.hpp"

#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wpedantic"
#endif
#include "onnx.pb.h"
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

namespace kvc_test {

/// Element types, by their numbers in the format.
enum class OnnxType : int { f32 = 1, i32 = 6, i64 = 7, boolean = 9, f16 = 10, f64 = 11, bf16 = 16 };

/// A tensor of any element type; double holds every number of these types that occurs.
struct OnnxTensor {
  std::string name;
  OnnxType type = OnnxType::f32;
  std::vector<std::int64_t> dims = {};
  std::vector<double> values = {};  // row-major

  std::int64_t dim(std::size_t i) const { return dims.at(i); }
  std::vector<float> floats() const { return std::vector<float>(values.begin(), values.end()); }
};

/// One node test.
struct OnnxCase {
  std::string name;
  std::string op;
  std::int64_t opset = 0;
  std::map<std::string, double> numbers = {};          // attributes of type float and int
  std::map<std::string, std::string> strings = {};     // attributes of type string
  std::vector<std::string> inputs = {}, outputs = {};  // of the node, by position; "" where left out
  std::map<std::string, OnnxTensor> tensors = {};      // inputs and expected outputs, by name

  /// Input or expected output at a position of the node; nullptr where it is left out.
  const OnnxTensor* input(std::size_t i) const { return find(inputs, i); }
  const OnnxTensor* output(std::size_t i) const { return find(outputs, i); }
  double number(const std::string& attribute, double otherwise) const {
    const auto found = numbers.find(attribute);
    return found == numbers.end() ? otherwise : found->second;
  }
  std::int64_t integer(const std::string& attribute, std::int64_t otherwise) const {
    return static_cast<std::int64_t>(number(attribute, static_cast<double>(otherwise)));
  }

 private:
  const OnnxTensor* find(const std::vector<std::string>& names, std::size_t i) const {
    return i < names.size() && !names[i].empty() ? &tensors.at(names[i]) : nullptr;
  }
};

namespace onnx_detail {

template <class Message>
Message parse(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  Message message;
  if (!file || !message.ParseFromIstream(&file)) {
    throw std::runtime_error("cannot read " + path.string());
  }
  return message;
}

/// Numbers of type S from little-endian bytes.
template <class S>
void append_raw(const std::string& raw, std::vector<double>& values) {
  static_assert(std::endian::native == std::endian::little);
  for (std::size_t at = 0; at + sizeof(S) <= raw.size(); at += sizeof(S)) {
    S number;
    std::memcpy(&number, raw.data() + at, sizeof number);
    values.push_back(static_cast<double>(number));
  }
}

/// The number with these 16 bits.
template <class S>
double from_bits(std::int32_t bits) {
  return static_cast<double>(static_cast<float>(Eigen::numext::bit_cast<S>(static_cast<std::uint16_t>(bits))));
}

inline OnnxTensor tensor(const kvc_onnx::TensorProto& from, const std::string& name) {
  OnnxTensor to{
      .name = name, .type = static_cast<OnnxType>(from.data_type()), .dims = {from.dims().begin(), from.dims().end()}};
  const std::string& raw = from.raw_data();
  const auto typed = [&](const auto& field) { to.values.assign(field.begin(), field.end()); };
  switch (to.type) {
    case OnnxType::f32:
      raw.empty() ? typed(from.float_data()) : append_raw<float>(raw, to.values);
      break;
    case OnnxType::f64:
      raw.empty() ? typed(from.double_data()) : append_raw<double>(raw, to.values);
      break;
    case OnnxType::i32:
      raw.empty() ? typed(from.int32_data()) : append_raw<std::int32_t>(raw, to.values);
      break;
    case OnnxType::i64:
      raw.empty() ? typed(from.int64_data()) : append_raw<std::int64_t>(raw, to.values);
      break;
    case OnnxType::boolean:
      raw.empty() ? typed(from.int32_data()) : append_raw<std::uint8_t>(raw, to.values);
      break;
    case OnnxType::f16:
      for (const std::int32_t bits : from.int32_data()) {
        to.values.push_back(from_bits<Eigen::half>(bits));
      }
      append_raw<Eigen::half>(raw, to.values);
      break;
    case OnnxType::bf16:
      for (const std::int32_t bits : from.int32_data()) {
        to.values.push_back(from_bits<Eigen::bfloat16>(bits));
      }
      append_raw<Eigen::bfloat16>(raw, to.values);
      break;
    default:
      throw std::runtime_error(name + ": element type " + std::to_string(from.data_type()) + " is not supported");
  }
  std::int64_t count = 1;
  for (const std::int64_t dim : to.dims) {
    count *= dim;
  }
  if (from.data_location() != 0 || static_cast<std::int64_t>(to.values.size()) != count) {
    throw std::runtime_error(name + ": its numbers are not all there");
  }
  return to;
}

}  // namespace onnx_detail

/// Reads the test in `folder`. Throws std::runtime_error.
inline OnnxCase load_onnx_case(const std::filesystem::path& folder) {
  using namespace onnx_detail;
  const auto model = parse<kvc_onnx::ModelProto>(folder / "model.onnx");
  if (model.graph().node_size() != 1) {
    throw std::runtime_error("a graph of " + std::to_string(model.graph().node_size()) + " nodes, not of one");
  }
  const kvc_onnx::NodeProto& node = model.graph().node(0);
  OnnxCase result{.name = folder.filename().string(),
                  .op = node.op_type(),
                  .inputs = {node.input().begin(), node.input().end()},
                  .outputs = {node.output().begin(), node.output().end()}};
  for (const auto& set : model.opset_import()) {
    result.opset = set.domain().empty() ? set.version() : result.opset;
  }
  for (const auto& attribute : node.attribute()) {
    switch (attribute.type()) {
      case 1:
        result.numbers[attribute.name()] = static_cast<double>(attribute.f());
        break;
      case 2:
        result.numbers[attribute.name()] = static_cast<double>(attribute.i());
        break;
      case 3:
        result.strings[attribute.name()] = attribute.s();
        break;
      default:
        throw std::runtime_error("attribute " + attribute.name() + " is of an unsupported type");
    }
  }
  for (const auto& constant : model.graph().initializer()) {
    result.tensors[constant.name()] = tensor(constant, constant.name());
  }
  const auto read = [&](const auto& values, const std::string& prefix) {
    for (int i = 0; i < values.size(); ++i) {
      const auto file = folder / "test_data_set_0" / (prefix + std::to_string(i) + ".pb");
      result.tensors[values[i].name()] = tensor(parse<kvc_onnx::TensorProto>(file), values[i].name());
    }
  };
  read(model.graph().input(), "input_");
  read(model.graph().output(), "output_");
  return result;
}

/// The folders of the node tests whose names begin with `prefix`, sorted: below KVC_ONNX_DIR, or below onnx_attention
/// of the test data. The running test case ends as skipped where there are none.
inline std::vector<std::filesystem::path> onnx_folders(const std::string& prefix) {
  const char* given = std::getenv("KVC_ONNX_DIR");
  const std::filesystem::path root =
      given != nullptr && *given != '\0' ? std::string(given) : data_file("onnx_attention");
  std::vector<std::filesystem::path> folders;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(root, ignored)) {
    if (entry.is_directory() && entry.path().filename().string().rfind(prefix, 0) == 0) {
      folders.push_back(entry.path());
    }
  }
  if (folders.empty()) {
    KVC_SKIP("no folder " << prefix << "* below " << root.string());
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

/// How accurately an output of this type can be expected to agree.
inline double onnx_tolerance(OnnxType type) {
  return type == OnnxType::f16 ? 2e-3 : type == OnnxType::bf16 ? 1.6e-2 : 1e-5;
}

/// Checks every number of `got` against `expected`; infinities must agree exactly.
inline void check_onnx(const std::vector<float>& got, const OnnxTensor& expected) {
  INFO("output " << expected.name);
  REQUIRE(got.size() == expected.values.size());
  const double tolerance = onnx_tolerance(expected.type);
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double a = static_cast<double>(got[i]), b = expected.values[i];
    const bool agrees = a == b || (std::isnan(a) && std::isnan(b)) || std::abs(a - b) <= tolerance * (1 + std::abs(b));
    if (!agrees) {
      INFO("number " << i << " is " << a << ", expected " << b);
      CHECK(agrees);
      return;
    }
  }
}

}  // namespace kvc_test
