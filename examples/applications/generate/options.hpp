// The options of the command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvc/core/types.hpp"

namespace generate {

struct Options {
  std::string model;  ///< both empty: the embedded ones
  std::string tokenizer;
  std::vector<std::string> prompts;
  kvc::Pos steps = 256;          ///< positions, of the prompt and generated ones; 0: as many as the model has
  bool steps_given = false;      ///< on the command line; the default gives way to a model with fewer positions
  bool truncate_prompt = false;  ///< to `steps` tokens; otherwise a longer prompt is an error
  double temperature = 0.8;
  double top_p = 0.9;
  std::uint64_t seed = 42;
  std::string policy = "all";
  std::string element = "f32";
  kvc::Pos block_tokens = 16;
  kvc::Pos chunk = 0;  ///< 0: the whole prompt at once
  int threads = 1;
  std::string json;  ///< empty: none
  bool quiet = false;
};

/// Fills `options` and returns true. Where there is nothing to run, prints the help or the error, sets the exit code to
/// 0 or 2, and returns false.
bool parse(int argc, char** argv, Options& options, int& exit_code);

}  // namespace generate
