// gnuplot, started as a program.
#pragma once

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace kvc_bench {

/// Throws std::runtime_error, with the name of its package, where gnuplot cannot be started.
inline void require_gnuplot() {
  if (std::system("command -v gnuplot >/dev/null 2>&1") != 0) {
    throw std::runtime_error("--plot: the program gnuplot was not found (Debian: gnuplot-nox)");
  }
}

/// In single quotes gnuplot reads everything as it is but the quote itself, and a line end ends the command: the names
/// of files are other people's.
[[nodiscard]] inline std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) {
    result += c == '\'' ? "''" : std::string(1, static_cast<unsigned char>(c) < ' ' ? ' ' : c);
  }
  return result + "'";
}

/// Throws std::runtime_error where gnuplot does not take the script.
inline void run_gnuplot(const std::string& script) {
  // Should gnuplot end early, the write below fails, rather than end this program.
  const auto before = std::signal(SIGPIPE, SIG_IGN);
  std::FILE* pipe = popen("gnuplot", "w");
  if (pipe == nullptr) {
    throw std::runtime_error("--plot: gnuplot cannot be started");
  }
  const bool written = std::fputs(script.c_str(), pipe) >= 0;
  const bool good = pclose(pipe) == 0 && written;
  std::signal(SIGPIPE, before);
  if (!good) {
    throw std::runtime_error("--plot: gnuplot failed");
  }
}

}  // namespace kvc_bench
