// The options of the command line.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "kvc/core/types.hpp"

namespace disaggregated {

struct Options {
  std::string transport = "auto";
  int prefill = 1;
  int decode = 0;     // 0: 2, or over MPI all other ranks
  std::string model;  // both empty: the embedded ones
  std::string tokenizer;
  std::string requests;  // empty: cut from a text
  std::string text;      // empty: the program's own
  int count = 48;
  std::pair<int, int> prompt_tokens{160, 288};
  std::pair<int, int> output_tokens{48, 72};
  kvc::Pos shared = 0;
  std::uint64_t seed = 1;
  double interval_ms = 0;
  int batch = 8;
  kvc::Pos block_tokens = 16;
  kvc::Pos window = 0;     // 0: every layer sees all positions
  int prefill_blocks = 0;  // 0: room for as many sequences as are in a batch, of any length
  int decode_blocks = 0;   // 0: twice that
  double timeout_s = 10;
  bool check = false;
  std::string gantt;  // empty: none
  std::string json;
  bool quiet = false;
  int die_rank = -1;  // for tests: over MPI, this decode engine is killed ...
  int die_after = 0;  // ... after so many layers that it has decoded
};

/// Whether mpirun or another launcher has started this process, and whether it is the first one.
struct Launch {
  bool by_launcher = false;
  bool is_first = true;
};
Launch launched();

/// Fills `options` and returns true. Where there is nothing to run, prints the help or the error, sets the exit code to
/// 0 or 2, and returns false.
bool parse(int argc, char** argv, Options& options, int& exit_code);

}  // namespace disaggregated
