// An output file that is checked before the work begins, and complete or absent afterwards.
#pragma once

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace kvc_bench {

/// Writes a temporary file and renames it when it is complete. A special file, such as /dev/stdout or a FIFO, is
/// written directly, and opened once: whoever reads a FIFO would take a second opening for the end.
class OutputFile {
 public:
  /// Throws std::runtime_error, which names the option, if the file cannot be written.
  OutputFile(std::string option, std::string path) : option_(std::move(option)), path_(std::move(path)) {
    std::error_code unknown;
    direct_ = std::filesystem::exists(path_, unknown) && !std::filesystem::is_regular_file(path_, unknown);
    working_path_ = direct_ ? path_ : path_ + ".partial";
    if (!std::filesystem::is_fifo(path_, unknown) && !std::ofstream(working_path_, std::ios::binary | std::ios::app)) {
      fail();
    }
    remove();  // a run that is interrupted leaves nothing behind
  }
  ~OutputFile() { remove(); }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// The path that another program may write to.
  [[nodiscard]] const std::string& working_path() const noexcept { return working_path_; }

  void write(std::string_view text) {
    std::ofstream out(working_path_, std::ios::binary);
    if (!out.write(text.data(), static_cast<std::streamsize>(text.size())).flush()) {
      fail();
    }
  }

  /// Renames the temporary file.
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
