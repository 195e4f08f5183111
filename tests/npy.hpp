// Npy: arrays in the files that NumPy writes, version 1 to 3 of the format: little-endian, in C order.
#pragma once

#include <algorithm>
#include <cctype>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"
#include "temp_files.hpp"

namespace kvc_test {

/// An array of float or std::int32_t in memory.
template <class S>
  requires(std::same_as<S, float> || std::same_as<S, std::int32_t>)
struct Npy {
  std::vector<kvc::Index> extents;
  std::vector<S> data;

  [[nodiscard]] kvc::Index rows() const { return extents.empty() ? 1 : extents[0]; }
  /// As a matrix of the first extent by all others.
  [[nodiscard]] kvc::MatrixRef<const S> matrix() const {
    return {data.data(), rows(), rows() == 0 ? 0 : static_cast<kvc::Index>(data.size()) / rows()};
  }
  /// Rows [first, last) of that matrix.
  [[nodiscard]] kvc::MatrixRef<const S> rows_of(kvc::PosRange range) const {
    return matrix().middle_rows(range.first, range.size());
  }
};

/// Reads a file. Throws std::runtime_error that says what is wrong with it, also if it holds another type.
template <class S>
[[nodiscard]] Npy<S> read_npy(const std::filesystem::path& path) {
  const auto check = [&](bool ok, const char* what) {
    if (!ok) {
      throw std::runtime_error(path.string() + ": " + what);
    }
  };
  const std::string bytes = file_text(path);
  check(bytes.size() >= 12 && bytes.starts_with("\x93NUMPY"), "cannot be read, or is not an .npy file");
  const auto byte = [&](std::size_t i) { return std::size_t{static_cast<unsigned char>(bytes[i])}; };
  const bool is_first_version = byte(6) == 1;
  const std::size_t begin = is_first_version ? 10 : 12;
  const std::size_t length = byte(8) + (byte(9) << 8U) + (is_first_version ? 0 : (byte(10) << 16U) + (byte(11) << 24U));
  check(begin + length <= bytes.size(), "ends within its header");
  std::string header = bytes.substr(begin, length);
  std::erase_if(header, [](unsigned char c) { return std::isspace(c) != 0; });

  constexpr std::string_view type = std::same_as<S, float> ? "'descr':'<f4'" : "'descr':'<i4'";
  check(header.find(type) != std::string::npos, "holds another type than is wanted");
  check(header.find("'fortran_order':False") != std::string::npos, "is not in C order");
  constexpr std::string_view shape = "'shape':(";
  const std::size_t at = header.find(shape);
  check(at != std::string::npos && header.find(')', at) != std::string::npos, "has no shape");
  Npy<S> array;
  for (std::size_t i = at + shape.size(); header[i] != ')';) {
    std::size_t used = 0;
    check(std::isdigit(static_cast<unsigned char>(header[i])) != 0, "has a shape that is no list of numbers");
    array.extents.push_back(std::stoll(header.substr(i), &used));
    i += used;
    i += header[i] == ',' ? 1 : 0;
  }
  const auto size = static_cast<std::size_t>(
      std::accumulate(array.extents.begin(), array.extents.end(), kvc::Index{1}, std::multiplies<>()));
  check(bytes.size() - begin - length == size * sizeof(S), "has another size than its shape says");
  array.data.resize(size);
  if (size > 0) {
    std::memcpy(array.data.data(), bytes.data() + begin + length, size * sizeof(S));
  }
  return array;
}

}  // namespace kvc_test
