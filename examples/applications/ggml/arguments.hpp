// Which of the two engines of generate runs a model.
#pragma once

#include <fstream>
#include <string>
#include <string_view>

namespace ggml_engine {

/// Whether the arguments name, by --model, a GGUF file: by the end of its name, or by its first bytes.
[[nodiscard]] inline bool names_gguf_file(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    std::string_view path = argv[i];
    if (path == "--model" && i + 1 < argc) {
      path = argv[++i];
    } else if (path.starts_with("--model=")) {
      path.remove_prefix(8);
    } else {
      continue;
    }
    char magic[4] = {};
    std::ifstream(std::string(path), std::ios::binary).read(magic, sizeof magic);
    return path.ends_with(".gguf") || std::string_view(magic, sizeof magic) == "GGUF";
  }
  return false;
}

}  // namespace ggml_engine
