// The trained model stories260K and its golden outputs, where they are present.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "catch.hpp"
#include "differences.hpp"
#include "kvc/llama/checkpoint.hpp"
#include "kvc/llama/llama.hpp"
#include "kvc/llama/tokenizer.hpp"
#include "test_data.hpp"

namespace kvc_test {

/// Skips the test case where the model is absent.
struct Stories {
  std::filesystem::path root = data_file("stories260k");
  kvc::llama::Model model = kvc::llama::load_checkpoint(root / "stories260K.bin");
  kvc::llama::Tokenizer tokenizer = kvc::llama::Tokenizer::load(root / "tok512.bin", model.config.vocab_size);

  /// The bytes of a golden file.
  [[nodiscard]] std::string text(const std::string& name) const {
    std::ifstream in(root / "golden" / name, std::ios::binary);
    if (!in) FAIL("cannot read " << (root / "golden" / name));
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }

  /// A golden array as a matrix of [rows, cols].
  [[nodiscard]] kvc::llama::Matrix array(const std::string& name, kvc::Index rows, kvc::Index cols) const {
    const std::string bytes = text(name);
    kvc::llama::Matrix m(rows, cols);
    REQUIRE(bytes.size() == static_cast<std::size_t>(m.size()) * sizeof(float));
    std::copy_n(bytes.data(), bytes.size(), reinterpret_cast<char*>(m.data()));
    return m;
  }
};

}  // namespace kvc_test
