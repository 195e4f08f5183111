// Requests: prompts, and the number of tokens to generate.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/llama/tokenizer.hpp"
#include "model.hpp"

namespace disaggregated {

struct Request {
  std::vector<Token> prompt;  // begins with BOS
  Pos output_tokens = 1;      // at least 1
};

/// How to cut requests from a text.
struct Workload {
  int requests = 48;
  Pos least_prompt = 160;  ///< tokens, BOS and the shared ones included
  Pos most_prompt = 288;
  Pos least_output = 48;
  Pos most_output = 72;
  Pos shared = 0;  ///< tokens that all prompts begin with
  std::uint64_t seed = 1;
};

/// The text of the program: speeches by Shakespeare.
std::string_view own_text();

/// Prompts from random places of the text. Throws std::runtime_error if it is too short.
std::vector<Request> cut_requests(std::string_view text, const kvc::llama::Tokenizer& tokenizer,
                                  const Workload& workload);

/// Reads a file with one request a line: {"prompt": "text", "output_tokens": 32}. Throws std::runtime_error that names
/// the line if it is something else, or longer than `seq_len` positions.
std::vector<Request> read_requests(const std::string& path, const kvc::llama::Tokenizer& tokenizer, Index seq_len);

}  // namespace disaggregated
