// disaggregated: prefill on one engine, decode on others, and the KV cache travels.
//
//   mpirun -n 3 disaggregated            one prefill engine and two decode engines, each a process
//   disaggregated                        the same as threads
//   disaggregated --check --gantt g.svg  compares with one engine that does it all, and draws who did what when
#ifdef KVC_HAVE_MPI
#include <mpi.h>
#endif

#include <algorithm>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "alone.hpp"
#include "embedded.hpp"
#include "gantt.hpp"
#include "gnuplot.hpp"
#include "kvc/llama/checkpoint.hpp"
#include "options.hpp"
#include "output_file.hpp"
#include "read_file.hpp"
#include "report.hpp"
#include "run.hpp"

namespace disaggregated {
namespace {

/// A bad combination of options: exit code 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Loaded {
  kvc::llama::Model model;
  std::vector<Request> requests;
};

std::string read_text(const std::string& path) {
  std::optional<std::string> text = read_file(path);
  if (!text || text->empty()) {
    throw std::runtime_error("--text: cannot read \"" + path + "\"");
  }
  return *std::move(text);
}

Loaded load(const Options& o) {
  Loaded loaded{o.model.empty() ? kvc::llama::load_checkpoint(embedded_model(), "embedded model")
                                : kvc::llama::load_checkpoint(o.model),
                {}};
  kvc::llama::Config& c = loaded.model.config;
  c.window = o.window;
  c.full_every = 4;
  const auto tokenizer = o.tokenizer.empty()
                             ? kvc::llama::Tokenizer::load(embedded_tokenizer(), c.vocab_size, "embedded tokenizer")
                             : kvc::llama::Tokenizer::load(o.tokenizer, c.vocab_size);
  if (!o.requests.empty()) {
    loaded.requests = read_requests(o.requests, tokenizer, c.seq_len);
    return loaded;
  }
  if (Index{o.prompt_tokens.second} + o.output_tokens.second > c.seq_len) {
    throw UsageError("--prompt-tokens and --output-tokens: " + std::to_string(o.prompt_tokens.second) + " and " +
                     std::to_string(o.output_tokens.second) + " are more than the " + std::to_string(c.seq_len) +
                     " positions of the model");
  }
  const std::string text = o.text.empty() ? std::string(own_text()) : read_text(o.text);
  loaded.requests = cut_requests(text, tokenizer,
                                 {.requests = o.count,
                                  .least_prompt = o.prompt_tokens.first,
                                  .most_prompt = o.prompt_tokens.second,
                                  .least_output = o.output_tokens.first,
                                  .most_output = o.output_tokens.second,
                                  .shared = o.shared,
                                  .seed = o.seed});
  return loaded;
}

RunConfig configure(const Options& o, const Loaded& loaded) {
  RunConfig config;
  config.prefill_engines = o.prefill;
  config.decode_engines = o.decode;
  config.die_rank = o.die_rank;
  config.die_after = o.die_after;
  const std::chrono::nanoseconds timeout(static_cast<std::int64_t>(o.timeout_s * 1e9));
  config.router.prefill_engines = o.prefill;
  config.router.interval = static_cast<Time>(o.interval_ms * 1e6);
  config.router.timeout = timeout;
  EngineConfig engine;
  engine.block_tokens = o.block_tokens;
  engine.batch = o.batch;
  engine.timeout = timeout;
  for (const Request& request : loaded.requests) {
    engine.reserve_tokens = std::max(engine.reserve_tokens, request.output_tokens);
  }
  // With a window, a sequence has blocks in two groups.
  const Index sequence_blocks =
      (o.window > 0 ? 2 : 1) * kvc::ceil_div<Index>(loaded.model.config.seq_len, o.block_tokens);
  const Index batch_blocks = o.batch * sequence_blocks;
  config.prefill = config.decode = engine;
  config.prefill.blocks = o.prefill_blocks == 0 ? batch_blocks : o.prefill_blocks;
  config.decode.blocks = o.decode_blocks == 0 ? 2 * batch_blocks : o.decode_blocks;
  return config;
}

/// Runs and reports. `over_mpi`: this process is one of `ranks`. `lost`: whether an engine was.
int run(Options options, bool over_mpi, int ranks, bool& lost) {
  if (options.decode == 0) {
    options.decode = over_mpi ? ranks - options.prefill : 2;
  }
  if (over_mpi && (options.decode < 1 || options.prefill + options.decode != ranks)) {
    throw UsageError("--prefill " + std::to_string(options.prefill) + " and --decode " +
                     std::to_string(std::max(0, options.decode)) + ": mpirun has started " + std::to_string(ranks) +
                     " processes, an engine each, and at least one must decode");
  }
  const bool first = !over_mpi || launched().is_first;
  std::optional<kvc_bench::OutputFile> json;
  std::optional<kvc_bench::OutputFile> gantt;
  if (first && !options.gantt.empty()) {
    kvc_bench::require_gnuplot("--gantt");
    gantt.emplace("--gantt", options.gantt);
  }
  if (first && !options.json.empty()) {
    json.emplace("--json", options.json);
  }
  const Loaded loaded = load(options);
  const RunConfig config = configure(options, loaded);

  Report report;
  report.options = &options;
  report.transport = over_mpi ? "MPI" : "threads of one process";
  const kvc::llama::Config& c = loaded.model.config;
  for (Index layer = 0; layer < c.layers; ++layer) {
    report.token_bytes += c.window_of(layer) == 0 ? 2 * c.kv_dim() * Index{sizeof(float)} : 0;
  }
  const auto alone = [&] {
    if (options.check) {
      EngineConfig one = config.decode;
      one.batch = options.batch * options.decode;  // as many sequences at once as all decode engines together
      report.alone = run_alone(loaded.model, loaded.requests, one);
    }
  };
  if (over_mpi) {
    std::optional<RunRecord> record = run_over_mpi(loaded.model, loaded.requests, config, alone);
    if (!record) {
      return 0;  // the first process reports
    }
    report.run = std::move(*record);
  } else {
    alone();
    report.run = run_in_process(loaded.model, loaded.requests, config);
  }

  lost = std::any_of(report.run.engines.begin(), report.run.engines.end(), [](const auto& e) { return e.lost; });
  print(std::cout, report);
  if (gantt) {
    draw_gantt(gantt->working_path(), report.run,
               std::to_string(loaded.requests.size()) + " requests on " + std::to_string(options.prefill) +
                   " prefill and " + std::to_string(options.decode) + " decode engines, over " + report.transport);
    gantt->finish();
  }
  if (json) {
    json->write(to_json(report));
    json->finish();
  }
  const bool clean = std::all_of(report.run.engines.begin(), report.run.engines.end(),
                                 [](const EngineRecord& e) { return e.lost || e.figures.clean; });
  const bool equal = !report.alone || report.equal_outputs() == static_cast<Index>(report.run.requests.size());
  return std::cout.flush() && report.run.is_complete() && clean && equal ? 0 : 1;
}

/// The exit code; errors are said by one process.
int run_and_say(const Options& options, bool over_mpi, int ranks, bool& lost) {
  int code = 1;
  std::string what;
  try {
    return run(options, over_mpi, ranks, lost);
  } catch (const UsageError& error) {
    code = 2;
    what = error.what();
  } catch (const std::exception& error) {
    what = error.what();
  }
  if (!over_mpi || launched().is_first) {
    std::cerr << "disaggregated: " << what << '\n';
  }
  return code;
}

}  // namespace
}  // namespace disaggregated

int main(int argc, char** argv) {
  using namespace disaggregated;
  Options options;
  int code = 0;
  bool lost = false;
  if (!parse(argc, argv, options, code)) {
    return code;
  }
  const bool over_mpi = options.transport == "mpi" || (options.transport == "auto" && launched().by_launcher);
#ifdef KVC_HAVE_MPI
  if (over_mpi) {
    int ranks = 1;
    MPI_Init(&argc, &argv);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    code = run_and_say(options, true, ranks, lost);
    if (lost) {
      MPI_Abort(MPI_COMM_WORLD, code);  // MPI_Finalize would wait for the dead
    }
    MPI_Finalize();
    return code;
  }
#else
  if (over_mpi) {
    if (launched().is_first) {
      std::cerr << "--transport: mpi is not allowed here, the program was built without MPI\n";
    }
    return 2;
  }
#endif
  return run_and_say(options, false, 1, lost);
}
