// A file to write, checked before the work begins and there as a whole or not at all.
#pragma once

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace kvc_bench {

/// Writes beside the file, and takes its place when all is written. What is no regular file, such as /dev/stdout, is
/// written to directly.
class OutputFile {
 public:
  /// Throws std::runtime_error with the name of the option where the file cannot be written.
  OutputFile(std::string option, std::string path) : option_(std::move(option)), path_(std::move(path)) {
    std::error_code unknown;
    direct_ = std::filesystem::exists(path_, unknown) && !std::filesystem::is_regular_file(path_, unknown);
    working_path_ = direct_ ? path_ : path_ + ".partial";
    if (!std::ofstream(working_path_, std::ios::binary | std::ios::app)) {
      fail();
    }
    remove();  // a run that is interrupted leaves nothing behind
  }
  ~OutputFile() { remove(); }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Where another program may write.
  [[nodiscard]] const std::string& working_path() const noexcept { return working_path_; }

  void write(std::string_view text) {
    std::ofstream out(working_path_, std::ios::binary);
    if (!out.write(text.data(), static_cast<std::streamsize>(text.size())).flush()) {
      fail();
    }
  }

  /// What was written becomes the file.
  void finish() {
    std::error_code error;
    if (!direct_) {
      std::filesystem::rename(working_path_, path_, error);
    }
    if (error) {
      fail();
    }
  }

 private:
  void remove() const {
    if (!direct_) {
      std::remove(working_path_.c_str());
    }
  }
  [[noreturn]] void fail() const { throw std::runtime_error(option_ + ": cannot write \"" + path_ + "\""); }

  std::string option_;
  std::string path_;
  std::string working_path_;
  bool direct_ = false;
};

}  // namespace kvc_bench
