// The command line of generate --model FILE.gguf.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cache.hpp"

namespace ggml_engine {

struct Options {
  std::string model;
  std::vector<std::string> prompts;
  std::vector<std::string> prompt_files;
  Pos new_tokens = 128;
  Pos prefill_chunk = 512;  ///< 0: the whole prompt
  double temperature = 0;
  double top_p = 1;
  std::uint64_t seed = 42;
  CacheOptions cache;
  std::string cache_file;  ///< cached prefixes are loaded from it and saved to it; empty: none
  int threads = 1;
  bool together = false;
  bool ignore_end = false;
  bool profile = false;
  bool quiet = false;
};

/// Fills `options` and returns true. Where there is nothing to run, prints the help or the error, sets the exit code to
/// 0 or 2, and returns false.
bool parse(int argc, char** argv, Options& options, int& exit_code);

}  // namespace ggml_engine
