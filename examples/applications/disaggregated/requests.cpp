#include "requests.hpp"

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>

namespace disaggregated {
namespace {

Pos between(std::mt19937_64& random, Pos least, Pos most) {
  return least + static_cast<Pos>(random() % static_cast<std::uint64_t>(most - least + 1));
}

}  // namespace

std::vector<Request> cut_requests(std::string_view text, const kvc::llama::Tokenizer& tokenizer,
                                  const Workload& workload) {
  const std::vector<Token> tokens = tokenizer.encode(text);  // BOS first
  if (tokens.size() <= static_cast<std::size_t>(workload.most_prompt)) {
    throw std::runtime_error("the text has " + std::to_string(tokens.size()) +
                             " tokens, which is too short for prompts of " + std::to_string(workload.most_prompt));
  }
  std::mt19937_64 random(workload.seed);
  std::vector<Request> requests(static_cast<std::size_t>(workload.requests));
  for (Request& request : requests) {
    const Pos length = between(random, workload.least_prompt, workload.most_prompt);
    const Pos shared = std::max<Pos>(1, std::min<Pos>(workload.shared, length - 1));
    request.output_tokens = between(random, workload.least_output, workload.most_output);
    request.prompt.assign(tokens.begin(), tokens.begin() + shared);
    const auto from = tokens.begin() + between(random, 1, static_cast<Pos>(tokens.size()) - (length - shared));
    request.prompt.insert(request.prompt.end(), from, from + (length - shared));
  }
  return requests;
}

std::vector<Request> read_requests(const std::string& path, const kvc::llama::Tokenizer& tokenizer, Index seq_len) {
  std::ifstream file(path);
  if (!file) {
    throw std::runtime_error("--requests: cannot read \"" + path + "\"");
  }
  std::vector<Request> requests;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const std::string where = "--requests: " + path + ", line " + std::to_string(number) + ": ";
    if (line.empty()) {
      continue;
    }
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object() || !json.value("prompt", nlohmann::json()).is_string() ||
        !json.value("output_tokens", nlohmann::json()).is_number_integer()) {
      throw std::runtime_error(where + "expected {\"prompt\": \"text\", \"output_tokens\": 32}");
    }
    const auto output = json["output_tokens"].get<std::int64_t>();
    std::vector<Token> prompt = tokenizer.encode(json["prompt"].get<std::string>());
    if (output < 1 || output >= seq_len || static_cast<Index>(prompt.size()) + output > seq_len) {
      throw std::runtime_error(where + "a prompt of " + std::to_string(prompt.size()) + " tokens and " +
                               std::to_string(output) + " more are not between 1 and " + std::to_string(seq_len) +
                               " positions");
    }
    requests.push_back({std::move(prompt), static_cast<Pos>(output)});
  }
  if (!file.eof()) {  // such as a folder
    throw std::runtime_error("--requests: cannot read \"" + path + "\"");
  }
  if (requests.empty()) {
    throw std::runtime_error("--requests: " + path + " has no requests");
  }
  return requests;
}

}  // namespace disaggregated
