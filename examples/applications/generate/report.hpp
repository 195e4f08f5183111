// The reports of a run: tables for people, JSON for programs.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "kvc/llama/llama.hpp"
#include "options.hpp"
#include "prompt_runner.hpp"

namespace generate {

/// One prompt, under each policy.
struct PromptReport {
  std::string prompt;
  std::string text;  ///< prompt and continuation, as printed
  std::vector<Measurement> policies;
};

/// One row per policy.
void print_table(std::ostream& out, const std::vector<Measurement>& policies);

/// Everything, as one JSON object. Text that is not UTF-8 gets replacement characters.
std::string to_json(const Options& options, const kvc::llama::Config& model, Pos steps,
                    const std::vector<PromptReport>& prompts);

}  // namespace generate
