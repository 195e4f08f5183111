// A whole file as text, for programs that take the name of one.
#pragma once

#include <cstddef>
#include <fstream>
#include <ios>
#include <optional>
#include <string>
#include <utility>

/// The bytes of a file; nothing if it cannot be read, or is a folder. (Iterators of a stream throw for a folder, and do
/// not name it.)
[[nodiscard]] inline std::optional<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  char part[4096];
  while (file.read(part, sizeof part) || file.gcount() > 0) {
    text.append(part, static_cast<std::size_t>(file.gcount()));
  }
  return file.eof() ? std::optional(std::move(text)) : std::nullopt;
}
