// What the command line says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvc/core/types.hpp"

namespace generate {

struct Options {
  std::string model;  // both empty: the embedded ones
  std::string tokenizer;
  std::vector<std::string> prompts;
  kvc::Pos steps = 256;  // positions: tokens of the prompt and generated ones; 0: as many as the model was made for
  double temperature = 0.8;
  double top_p = 0.9;
  std::uint64_t seed = 42;
  std::string policy = "all";
  std::string element = "f32";
  kvc::Pos block_tokens = 16;
  kvc::Pos chunk = 0;  // 0: the whole prompt at once
  int threads = 1;
  std::string json;  // empty: none
  bool quiet = false;
};

/// Fills `options`, and returns whether to go on. Where there is nothing to run (--help, an error), has said so and set
/// the exit code: 0, or 2.
bool parse(int argc, char** argv, Options& options, int& exit_code);

}  // namespace generate
