// TempFolder and TempFile: files that a test writes, and that are removed when it ends.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace kvc_test {

/// The bytes of a file; none if it cannot be read.
inline std::string file_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// A new folder, which is removed with the object.
class TempFolder {
 public:
  explicit TempFolder(const std::filesystem::path& root = std::filesystem::temp_directory_path())
      : path_(root / ("kvc_test_" + std::to_string(::getpid()) + "_" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directory(path_);
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  [[nodiscard]] std::string path() const { return path_; }
  [[nodiscard]] std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  /// The path of a file in the folder, which need not be there.
  [[nodiscard]] std::string file(std::string_view name) const { return path_ / name; }
  /// Writes a file, and returns its path.
  std::string write(std::string_view name, std::string_view bytes) const {
    std::ofstream(path_ / name, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return file(name);
  }
  [[nodiscard]] std::string read(std::string_view name) const { return file_text(path_ / name); }
  /// The names of the files and folders in it, sorted.
  [[nodiscard]] std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  std::filesystem::path path_;
};

/// A file with these bytes, which is removed with the object.
class TempFile {
 public:
  explicit TempFile(std::string_view bytes) : path_(folder_.write("file", bytes)) {}
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  TempFolder folder_;
  std::string path_;
};

}  // namespace kvc_test
