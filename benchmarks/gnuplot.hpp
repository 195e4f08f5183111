// Runs gnuplot.
#pragma once

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace kvc_bench {

/// A text in single quotes, in which gnuplot reads everything literally except the quote itself; line ends, which would
/// end the command, become spaces.
[[nodiscard]] inline std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) {
    result += c == '\'' ? "''" : std::string(1, static_cast<unsigned char>(c) < ' ' ? ' ' : c);
  }
  return result + "'";
}

/// Throws std::runtime_error, which names `option` and the package, if gnuplot cannot be started.
inline void require_gnuplot(const std::string& option) {
  if (std::system("command -v gnuplot >/dev/null 2>&1") != 0) {
    throw std::runtime_error(option + ": the program gnuplot was not found (Debian: gnuplot-nox)");
  }
}

/// Throws std::runtime_error if gnuplot does not run the whole script.
inline void run_gnuplot(const std::string& script, const std::string& option) {
  // If gnuplot ends early, the write below must fail rather than end this program.
  const auto before = std::signal(SIGPIPE, SIG_IGN);
  std::FILE* pipe = popen("gnuplot", "w");
  if (pipe == nullptr) {
    throw std::runtime_error(option + ": gnuplot cannot be started");
  }
  const bool written = std::fputs(script.c_str(), pipe) >= 0;
  const bool good = pclose(pipe) == 0 && written;
  std::signal(SIGPIPE, before);
  if (!good) {
    throw std::runtime_error(option + ": gnuplot failed");
  }
}

}  // namespace kvc_bench
