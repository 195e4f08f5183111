#include "options.hpp"

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string_view>

#include "common_options.hpp"
#include "validators.hpp"

namespace disaggregated {

using namespace common_options;
using namespace validators;

Launch launched() {
  Launch launch;
  for (const char* rank : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"}) {  // Open MPI, MPICH, others
    if (const char* value = std::getenv(rank)) {
      launch.by_launcher = true;
      launch.is_first = launch.is_first && std::string_view(value) == "0";
    }
  }
  return launch;
}

bool parse(int argc, char** argv, Options& options, int& exit_code) {
  CLI::App app(
      "Serves requests with a small Llama-family model on separate engines: some compute prompts, others decode. The "
      "KV\n"
      "cache of each sequence travels from one to the other, layer by layer while the next layer is computed.",
      "disaggregated");
  app.footer(
      "  disaggregated                      one prefill and two decode engines, as threads\n"
      "  mpirun -n 3 disaggregated          the same as processes (--oversubscribe on fewer than three cores)\n"
      "  disaggregated --check --gantt g.svg\n"
      "  disaggregated --check --window 64  a model with layer groups\n\n"
      "Exit code: 0 all is well; 1 a request that was not served, an output that differs, a file that cannot be read\n"
      "or written; 2 a bad option.");

  const auto range_of = [](const std::pair<int, int>& range) {
    return std::to_string(range.first) + " " + std::to_string(range.second);
  };
  const auto seconds = number<double>(
      "a number that is at least 0 and below 1000000", [](double t) { return std::isfinite(t) && t >= 0 && t < 1e6; },
      "0 to below 1000000");
  app.add_option("--transport", options.transport, "inprocess, mpi, or auto: mpi where mpirun has started the program")
      ->type_name("NAME")
      ->check(one_of({"auto", "inprocess", "mpi"}))
      ->capture_default_str();
  app.add_option("--prefill", options.prefill, "Prefill engines; the router shares the first one's thread")
      ->type_name("P")
      ->transform(whole(1, 64))
      ->capture_default_str();
  app.add_option("--decode", options.decode, "Decode engines; 0: two, or over MPI all ranks that are left")
      ->type_name("D")
      ->transform(whole(0, 64))
      ->capture_default_str();
  add_model(app, options.model, options.tokenizer);
  app.add_option("--requests", options.requests,
                 R"(One a line: {"prompt": "text", "output_tokens": 32} [prompts are cut from a text])")
      ->type_name("FILE")
      ->check(validators::file_name());
  app.add_option("--text", options.text, "Text that prompts are cut from [the one in the program]")
      ->type_name("FILE")
      ->check(validators::file_name());
  app.add_option("--count", options.count, "Requests to cut from the text")
      ->type_name("N")
      ->transform(whole(1, 100000))
      ->capture_default_str();
  app.add_option("--prompt-tokens", options.prompt_tokens,
                 "Least and most tokens of their prompts [" + range_of(options.prompt_tokens) + "]")
      ->type_name("LEAST MOST")
      ->transform(whole(1))
      ->capture_default_str();
  app.add_option("--output-tokens", options.output_tokens,
                 "Least and most tokens of their outputs [" + range_of(options.output_tokens) + "]")
      ->type_name("LEAST MOST")
      ->transform(whole(1))
      ->capture_default_str();
  app.add_option("--shared", options.shared, "Tokens that all prompts begin with")
      ->type_name("N")
      ->transform(whole(0))
      ->capture_default_str();
  add_seed(app, options.seed, "Seed of the places where prompts are cut, and of their lengths");
  app.add_option("--interval", options.interval_ms, "Milliseconds between requests; 0: all are there at the start")
      ->type_name("MS")
      ->check(seconds)
      ->capture_default_str();
  app.add_option("--batch", options.batch, "Sequences that an engine decodes together")
      ->type_name("N")
      ->transform(whole(1, 1024))
      ->capture_default_str();
  add_block_tokens(app, options.block_tokens, "Tokens in a block");
  app.add_option("--window", options.window,
                 "Positions that all layers see but every fourth one: the cache then holds two layer groups, and rows\n"
                 "before the windows are dropped and not sent. The model was trained without. 0: no window")
      ->type_name("N")
      ->transform(whole(0))
      ->capture_default_str();
  app.add_option("--prefill-blocks", options.prefill_blocks, "Blocks of a prefill engine; 0: for a batch of any length")
      ->type_name("N")
      ->transform(whole(0))
      ->capture_default_str();
  app.add_option("--decode-blocks", options.decode_blocks, "Blocks of a decode engine; 0: twice that")
      ->type_name("N")
      ->transform(whole(0))
      ->capture_default_str();
  app.add_option("--timeout", options.timeout_s, "Seconds after which a silent engine counts as lost")
      ->type_name("S")
      ->check(seconds)
      ->capture_default_str();
  app.add_flag("--check", options.check,
               "Also do the work on one engine with one thread, phase after phase; compare every token, and the time");
  app.add_option("--gantt", options.gantt, "Draw a Gantt chart of the engines as an SVG file, with gnuplot")
      ->type_name("FILE")
      ->check(validators::file_name());
  add_json(app, options.json);
  app.add_flag("--quiet", options.quiet, "Print no line for each request");
  app.add_option("--die-rank", options.die_rank, "")->group("");
  app.add_option("--die-after", options.die_after, "")->group("");

  std::ostringstream unheard;  // the first process speaks for all
  const bool speaks = launched().is_first;
  try {
    app.parse(argc, argv);
    for (const auto& [name, range] :
         {std::pair("--prompt-tokens", options.prompt_tokens), std::pair("--output-tokens", options.output_tokens)}) {
      if (range.first > range.second) {
        throw CLI::ValidationError(name,
                                   "\"" + range_of(range) + "\" is not allowed, the least must be at most the most");
      }
    }
    return true;
  } catch (const CLI::ParseError& error) {
    std::ostream& out = speaks ? static_cast<std::ostream&>(std::cout) : unheard;
    std::ostream& err = speaks ? static_cast<std::ostream&>(std::cerr) : unheard;
    exit_code = app.exit(error, out, err) == 0 ? 0 : 2;
    return false;
  }
}

}  // namespace disaggregated
