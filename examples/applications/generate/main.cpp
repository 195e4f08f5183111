// generate: a trained model writes text, through the KV cache of each policy.
//
//   generate                                        the embedded model, two prompts that begin alike
//   generate --prompt "ROMEO:" --policy paged       a prompt of yours
//   generate --model m.bin --tokenizer m.tok ...    any llama2.c checkpoint
//   generate --model m.gguf --prompt "..."          Llama, Qwen 3 or Gemma 3, run by ggml: applications/ggml
//
// The text streams to stdout while the first policy computes it. The other policies compute it again and have to agree,
// since attention gives the same bits over every policy.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "embedded.hpp"
#include "ggml/arguments.hpp"
#include "kvc/core/error.hpp"
#include "kvc/llama/checkpoint.hpp"
#include "kvc/llama/tokenizer.hpp"
#include "options.hpp"
#include "output_file.hpp"
#include "prompt_runner.hpp"
#include "report.hpp"
#include "status_line.hpp"
#include "text.hpp"

#if defined(KVC_HAVE_GGML)
#include "ggml/run.hpp"
#endif

namespace generate {
namespace {

/// Of the two default prompts, the part that they share.
constexpr std::string_view scene =
    "KING RICHARD II:\n"
    "The night is long, and still no letter comes.\n"
    "My lords, I would not sleep until we know\n"
    "What friends are left to us, and who hath held\n"
    "The northern gate against our enemies.\n"
    "Speak plainly, both of you: what have you heard?\n"
    "\n";

/// Turns tokens into text as it is printed.
class Text {
 public:
  explicit Text(const kvc::llama::Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  /// The bytes that this token adds.
  std::string_view add(Token token) {
    const std::string_view bytes = tokenizer_->decode(previous_, token);
    previous_ = token;
    const std::size_t before = text_.size();
    text_ += text::printable(bytes);
    return std::string_view(text_).substr(before);
  }
  [[nodiscard]] const std::string& all() const { return text_; }

 private:
  const kvc::llama::Tokenizer* tokenizer_;
  Token previous_ = kvc::llama::Tokenizer::bos;
  std::string text_;
};

struct Model {
  kvc::llama::Model llama;
  kvc::llama::Tokenizer tokenizer;
};

Model load(const Options& options) {
  kvc::llama::Model llama = options.model.empty() ? kvc::llama::load_checkpoint(embedded_model(), "embedded model")
                                                  : kvc::llama::load_checkpoint(options.model);
  const Index vocab_size = llama.config.vocab_size;
  return {std::move(llama), options.tokenizer.empty()
                                ? kvc::llama::Tokenizer::load(embedded_tokenizer(), vocab_size, "embedded tokenizer")
                                : kvc::llama::Tokenizer::load(options.tokenizer, vocab_size)};
}

void introduce(const Options& o, const kvc::llama::Config& c, Pos steps) {
  std::cerr << (o.model.empty() ? "embedded model" : o.model) << ": dim " << c.dim << ", " << c.layers << " layers, "
            << c.heads << " heads on " << c.kv_heads << " key/value heads, vocabulary " << c.vocab_size << ", "
            << c.seq_len << " positions\ncache: " << o.element << ", blocks of " << o.block_tokens << " tokens; "
            << steps << " steps, temperature " << o.temperature << ", top-p " << o.top_p << ", seed " << o.seed << ", "
            << o.threads << (o.threads == 1 ? " thread\n" : " threads\n");
}

/// Runs one prompt in every runner, prints its text once, and checks that all agree.
PromptReport run_prompt(const std::string& prompt, std::span<const Token> tokens,
                        std::span<const std::unique_ptr<PromptRunner>> runners, const Settings& settings,
                        const std::vector<std::string>& policies, const kvc::llama::Tokenizer& tokenizer, bool quiet) {
  PromptReport report;
  report.prompt = prompt;
  Text text(tokenizer);
  for (std::size_t i = 0; i < runners.size(); ++i) {
    StatusLine progress(!quiet);
    const bool streams = i == 0;
    Index printed = 0;
    const auto on_token = [&](Token token) {
      ++printed;
      if (streams) {
        progress.clear();
        std::cout << text.add(token) << std::flush;
      } else {
        progress.show(policies[i] + ": decode", printed, settings.steps);
      }
    };
    const auto on_prefill = [&](Pos done, Pos all) { progress.show(policies[i] + ": prefill", done, all); };
    report.policies.push_back(runners[i]->run(tokens, on_token, on_prefill));
    if (report.policies.back().tokens != report.policies.front().tokens) {
      throw std::runtime_error(policies[i] + " generated another text than " + policies[0] + ": this is a bug");
    }
  }
  report.text = text.all();
  return report;
}

/// Holds prompt number `index` against the steps, and says so if it is longer. True if it can be run: it fits, or has
/// been truncated.
bool fit_prompt(std::vector<Token>& tokens, std::size_t index, Pos steps, Index positions, bool truncate) {
  if (tokens.size() <= static_cast<std::size_t>(steps)) {
    return true;
  }
  std::cerr << "--prompt: prompt " << index + 1 << " has " << tokens.size() << " tokens (its BOS included), more than ";
  if (steps == positions) {
    std::cerr << "the " << positions << " positions of the model";
  } else {
    std::cerr << "--steps " << steps;
  }
  if (!truncate) {
    std::cerr << "; --truncate-prompt keeps the first " << steps << '\n';
    return false;
  }
  std::cerr << "; only the first " << steps << " are used\n";
  tokens.resize(static_cast<std::size_t>(steps));
  return true;
}

int run(const Options& options) {
  if (options.threads > 1 && !have_threads) {
    std::cerr << "--threads: " << options.threads << " is not allowed, it must be 1: built without OpenMP and oneTBB\n";
    return 2;
  }
  const Model model = load(options);
  const kvc::llama::Config& config = model.llama.config;

  std::vector<std::string> prompts = options.prompts;
  if (prompts.empty()) {
    prompts = options.model.empty()
                  ? std::vector{std::string(scene) + "QUEEN:\n", std::string(scene) + "DUKE OF YORK:\n"}
                  : std::vector{std::string()};
  }
  if (options.steps > config.seq_len && options.steps_given) {
    std::cerr << "--steps: " << options.steps << " is not allowed, the model has " << config.seq_len << " positions\n";
    return 2;
  }
  Settings settings;
  settings.model = &model.llama;
  settings.steps =
      options.steps == 0 || options.steps > config.seq_len ? static_cast<Pos>(config.seq_len) : options.steps;

  std::vector<std::vector<Token>> tokens;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    try {
      tokens.push_back(model.tokenizer.encode(prompts[i]));
    } catch (const std::invalid_argument& error) {
      std::cerr << "--prompt: " << error.what() << '\n';
      return 2;
    }
    if (!fit_prompt(tokens.back(), i, settings.steps, config.seq_len, options.truncate_prompt)) {
      return 2;
    }
  }

  settings.prompts = static_cast<Index>(prompts.size());
  settings.block_tokens = options.block_tokens;
  settings.chunk = options.chunk;
  settings.threads = Threads(options.threads);
  settings.sampler = {options.temperature, options.top_p, options.seed};

  std::optional<kvc_bench::OutputFile> json;
  if (!options.json.empty()) {
    json.emplace("--json", options.json);
  }

  const std::vector<std::string> policies = options.policy == "all"
                                                ? std::vector<std::string>{"contiguous", "paged", "prefix-shared"}
                                                : std::vector{options.policy};
  std::vector<std::unique_ptr<PromptRunner>> runners;
  for (const std::string& policy : policies) {
    runners.push_back(make_runner(options.element, policy, settings));
  }

  if (!options.quiet) {
    introduce(options, config, settings.steps);
  }
  const bool watched = isatty(STDOUT_FILENO) == 1;
  std::vector<PromptReport> reports;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    if (!options.quiet) {
      std::cerr << "\nprompt " << i + 1 << " of " << prompts.size() << ":\n";
    }
    if (i > 0) {
      std::cout << '\n' << std::flush;
    }
    reports.push_back(run_prompt(prompts[i], tokens[i], runners, settings, policies, model.tokenizer, options.quiet));
    if (!options.quiet) {
      std::cerr << "\n\n";  // the text may end without a newline
      print_table(std::cerr, reports.back().policies);
    }
  }
  if (options.quiet && watched) {
    std::cerr << '\n';
  }
  if (json) {
    json->write(to_json(options, config, settings.steps, reports));
    json->finish();
  }
  if (!std::cout.flush()) {
    std::cerr << "generate: could not write all output\n";
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace generate

int main(int argc, char** argv) {
  if (ggml_engine::names_gguf_file(argc, argv)) {
#if defined(KVC_HAVE_GGML)
    return ggml_engine::run(argc, argv);
#else
    std::cerr << "--model: a GGUF file needs ggml, which was not found when this program was configured: run "
                 "tools/get-ggml, which builds it and says how to configure with it\n";
    return 2;
#endif
  }
  generate::Options options;
  int exit_code = 0;
  if (!generate::parse(argc, argv, options, exit_code)) {
    return exit_code;
  }
  try {
    return generate::run(options);
  } catch (const std::exception& error) {
    std::cout.flush();
    std::cerr << "generate: " << error.what() << '\n';
    return 1;
  }
}
