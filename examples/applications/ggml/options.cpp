#include "options.hpp"

#include <CLI/CLI.hpp>
#include <iostream>
#include <limits>

#include "common_options.hpp"
#include "validators.hpp"

namespace ggml_engine {

using namespace common_options;
using namespace validators;

bool parse(int argc, char** argv, Options& o, int& exit_code) {
  CLI::App app(
      "Continues prompts with a model in a GGUF file: Llama, Qwen 3 or Gemma 3, run by ggml, with keys, values and\n"
      "attention by kvc. The text goes to stdout, everything else to stderr.",
      "generate --model FILE.gguf");
  app.footer(
      "Prompts run one after another in the same cache, where prefix-shared finds what they have in common, or all\n"
      "together with --together. Without --model, or with another file, see generate --help.\n\n"
      "Exit code: 0 all is well; 1 a file that cannot be read, or no room; 2 a bad option, or a prompt that is too "
      "long.");
  const auto add_whole = [&app](const char* name, auto& into, int least, const char* text) {
    app.add_option(name, into, text)->type_name("N")->transform(whole(least))->capture_default_str();
  };

  app.add_option("--model", o.model, "A GGUF file")->type_name("FILE")->check(validators::file_name())->required();
  add_texts(app, "--prompt", o.prompts, "Text to continue; may be given again and again");
  add_texts(app, "--prompt-file", o.prompt_files, "File with a text to continue; may be given again and again", "FILE");
  add_whole("--new-tokens", o.new_tokens, 1, "Tokens to generate after each prompt, unless the model ends the text");
  app.add_flag("--ignore-end", o.ignore_end, "Generate all --new-tokens, whether or not the model ends the text");
  add_sampling(app, o.temperature, o.top_p, o.seed);
  app.add_option("--policy", o.cache.policy, "contiguous, paged or prefix-shared")
      ->type_name("NAME")
      ->check(one_of({"contiguous", "paged", "prefix-shared"}))
      ->capture_default_str();
  add_element(app, o.cache.element);
  add_block_tokens(app, o.cache.block_tokens, "Least tokens in a block of paged and prefix-shared");
  app.add_option("--cache-file", o.cache_file,
                 "With prefix-shared: load cached prefixes from this snapshot if it exists, and save them to it at the "
                 "end")
      ->type_name("FILE")
      ->check(validators::file_name());
  add_whole("--prefill-chunk", o.prefill_chunk, 0, "Tokens of a prompt to compute at a time; 0: all at once");
  add_threads(app, o.threads, 512);
  app.add_flag("--together", o.together, "Decode all prompts together: one pass computes the next token of each");
  app.add_flag("--profile", o.profile, "Print how much of the time attention took");
  app.add_flag("--quiet", o.quiet, "Print only the text, to stdout");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    exit_code = app.exit(error, std::cout, std::cerr) == 0 ? 0 : 2;
    return false;
  }
  if (!o.cache_file.empty() && o.cache.policy != "prefix-shared") {
    std::cerr << "--cache-file: needs --policy prefix-shared, not " << o.cache.policy << ", which keeps no prefixes\n";
    exit_code = 2;
    return false;
  }
  return true;
}

}  // namespace ggml_engine
