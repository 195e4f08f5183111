#include "options.hpp"

#include <CLI/CLI.hpp>
#include <iostream>

#include "common_options.hpp"
#include "validators.hpp"

namespace generate {

using namespace common_options;
using namespace validators;

bool parse(int argc, char** argv, Options& options, int& exit_code) {
  CLI::App app(
      "Generates text with a small Llama-family model, with the KV cache of each policy, and shows what each one\n"
      "costs. The text goes to stdout, everything else to stderr.",
      "generate");
  app.footer(
      "Without arguments it continues two prompts that begin alike, with a model that is embedded in the program.\n"
      "Prompts run one after another in the same cache, and prefix-shared reuses what they have in common.\n"
      "GGUF files have options of their own: generate --model FILE.gguf --help.\n\n"
      "Exit code: 0 all is well; 1 a file that cannot be read, or no room; 2 a bad option, or a prompt that is too "
      "long.");

  add_model(app, options.model, options.tokenizer);
  add_texts(app, "--prompt", options.prompts,
            "Text to continue; may be given again and again [two that begin alike; with --model one\nwithout text]");
  app.add_option("--steps", options.steps,
                 "Tokens of prompt and continuation together; 0: as many as the model has positions")
      ->type_name("N")
      ->transform(whole(0))
      ->capture_default_str();
  app.add_flag("--truncate-prompt", options.truncate_prompt,
               "Keep only the first tokens, --steps, of a longer prompt, which is an error otherwise");
  add_sampling(app, options.temperature, options.top_p, options.seed);
  app.add_option("--policy", options.policy, "contiguous, paged, prefix-shared or all")
      ->type_name("NAME")
      ->check(one_of({"contiguous", "paged", "prefix-shared", "all"}))
      ->capture_default_str();
  add_element(app, options.element);
  add_block_tokens(app, options.block_tokens, "Tokens in a block of paged and prefix-shared");
  app.add_option("--chunk", options.chunk, "Tokens of the prompt to compute at a time; 0: all at once")
      ->type_name("N")
      ->transform(whole(0))
      ->capture_default_str();
  add_threads(app, options.threads, 4096);
  add_json(app, options.json);
  app.add_flag("--quiet", options.quiet, "Print only the text, to stdout");

  try {
    app.parse(argc, argv);
    options.steps_given = app.count("--steps") > 0;
    return true;
  } catch (const CLI::ParseError& error) {
    exit_code = app.exit(error, std::cout, std::cerr) == 0 ? 0 : 2;
    return false;
  }
}

}  // namespace generate
