#include "run.hpp"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cache.hpp"
#include "generation.hpp"
#include "kvc/core/error.hpp"
#include "model.hpp"
#include "options.hpp"
#include "read_file.hpp"
#include "text.hpp"

namespace ggml_engine {
namespace {

/// A mistake in the arguments, as opposed to a file that is wrong.
struct BadArgument : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The prompts of --prompt and --prompt-file as tokens. Throws BadArgument if one cannot be run.
std::vector<Request> read_prompts(const Options& o, const Model& model) {
  if (!model.vocabulary) {
    throw std::runtime_error(o.model + ": has a vocabulary of the kind \"" + model.vocabulary_kind +
                             "\"; generate reads those of SentencePiece, of the kind \"llama\"");
  }
  std::vector<std::string> texts = o.prompts;
  for (const std::string& path : o.prompt_files) {
    std::optional<std::string> text = read_file(path);
    if (!text) {
      throw BadArgument("--prompt-file: \"" + path + "\" cannot be read");
    }
    texts.push_back(*std::move(text));
  }
  if (texts.empty()) {
    throw BadArgument("--prompt or --prompt-file is needed: a text to continue");
  }
  std::vector<Request> requests;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::string which = "prompt " + std::to_string(i + 1);
    Request request;
    try {
      request.prompt = model.vocabulary->encode(texts[i]);
    } catch (const std::invalid_argument& error) {
      throw BadArgument(which + ": " + error.what());
    }
    if (request.prompt.empty()) {
      throw BadArgument(which + " is empty, and the model has no token that begins a text");
    }
    const Index needed = std::ssize(request.prompt) + o.new_tokens;
    if (needed > model.positions) {
      throw BadArgument(which + " has " + std::to_string(request.prompt.size()) + " tokens; with --new-tokens " +
                        std::to_string(o.new_tokens) + " that is more than the " + std::to_string(model.positions) +
                        " positions of the model");
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

std::string seconds(double value, int digits) { return text::fixed(value, digits, " s"); }
std::string mebibytes(Index bytes) { return text::fixed(static_cast<double>(bytes) / (1024 * 1024), 1, " MiB"); }

void introduce(const Options& o, const Model& model, const Cache& cache) {
  std::cerr << model.name << ": " << model.layers.size() << " layers, " << model.heads << " heads on " << model.kv_heads
            << " key/value heads of " << model.key_dim << ", vocabulary " << model.vocab_size()
            << "\ncache: " << o.cache.policy << ", " << o.cache.element << ", " << mebibytes(cache.pool_bytes()) << "; "
            << o.threads << (o.threads == 1 ? " thread\n\n" : " threads\n\n");
}

void report(const Options& o, const Generation& generation, std::span<const Request> requests, Index held_bytes) {
  std::size_t prompt_tokens = 0;
  Index cached = 0;
  double prefill = 0;
  for (const Request& r : requests) {
    prompt_tokens += r.prompt.size();
    cached += r.cached;
    prefill += r.prefill_seconds;
  }
  std::cerr << "\nprompts: " << prompt_tokens << " tokens, " << cached
            << " of them found in the cache; the others and the first token of each: " << seconds(prefill, 3) << '\n';
  if (generation.decoded() > 0) {
    std::cerr << "decode: " << generation.decoded() << " tokens, "
              << text::fixed(static_cast<double>(generation.decoded()) / generation.decode_seconds(), 1, "/s") << '\n';
  }
  std::cerr << "keys and values at the end: " << mebibytes(held_bytes) << '\n';
  if (o.profile) {
    const Profile& p = generation.profile();
    std::cerr << "profile: " << seconds(p.total, 3) << " in passes; attention (kvc) " << seconds(p.attention, 3) << ", "
              << text::fixed(100 * p.attention / p.total, 1, " %") << "; the rest is ggml's\n";
  }
}

/// Runs the requests one after another. The text streams. Returns the bytes that the last one held at its end.
Index run_one_by_one(Generation& generation, Cache& cache, std::span<Request> requests) {
  Index held_bytes = 0;
  for (Request& r : requests) {
    std::size_t printed = 0;
    const auto print = [&] {
      std::cout << std::string_view(r.text).substr(printed) << std::flush;
      printed = r.text.size();
    };
    Request* const running[] = {&r};
    generation.start(r);
    print();
    while (!r.done) {
      generation.step(running);
      print();
    }
    std::cout << '\n' << std::flush;
    held_bytes = cache.held_bytes();
    cache.close(r.seq);
  }
  return held_bytes;
}

/// Runs the requests in the same passes: each pass computes one token of all that are not done. Returns the bytes that
/// all held at the end.
Index run_together(Generation& generation, Cache& cache, std::span<Request> requests) {
  std::vector<Request*> running;
  for (Request& r : requests) {
    generation.start(r);
    running.push_back(&r);
  }
  for (;;) {
    std::erase_if(running, [](const Request* r) { return r->done; });
    if (running.empty()) {
      break;
    }
    generation.step(running);
  }
  const Index held_bytes = cache.held_bytes();
  for (const Request& r : requests) {
    std::cout << r.text << '\n';
    cache.close(r.seq);
  }
  return held_bytes;
}

/// A cache that `o` describes, with what the cache file has, if there is one. It is larger than `o` says where earlier
/// runs had longer prompts.
std::unique_ptr<Cache> make_cache_with(const std::string& cache_file, const Model& model, CacheOptions o) {
  for (;; o.sequences *= 2) {
    std::unique_ptr<Cache> cache = make_cache(model, o);
    if (cache_file.empty() || !std::filesystem::exists(cache_file)) {
      return cache;
    }
    try {
      cache->load(cache_file);
      return cache;
    } catch (const kvc::CapacityError&) {
      // At worst, each token in the file takes a block of its own, and a copy of that has room as well.
      const auto bytes = static_cast<Index>(std::filesystem::file_size(cache_file));
      if (cache->pool_bytes() / (4 * o.block_tokens) > bytes) {
        throw;
      }
    }
  }
}

void generate(const Options& options) {
  show_warnings_only();
  const Model model = Model::load(options.model);
  std::vector<Request> requests = read_prompts(options, model);
  CacheOptions o = options.cache;
  o.sequences = options.together ? static_cast<Pos>(requests.size()) : 1;
  o.pass_tokens = options.prefill_chunk;
  for (const Request& r : requests) {
    o.max_tokens = std::max(o.max_tokens, static_cast<Pos>(r.prompt.size()) + options.new_tokens);
  }
  if (!options.cache_file.empty()) {
    o.salt = file_checksum(options.model);
  }
  const std::unique_ptr<Cache> cache = make_cache_with(options.cache_file, model, o);
  Generation generation(options, model, *cache);
  if (!options.quiet) {
    introduce(options, model, *cache);
  }
  const Index held_bytes =
      options.together ? run_together(generation, *cache, requests) : run_one_by_one(generation, *cache, requests);
  if (!std::cout.flush()) {
    throw std::runtime_error("could not write all output");
  }
  if (!options.cache_file.empty()) {
    cache->save(options.cache_file);
  }
  if (!options.quiet) {
    report(options, generation, requests, held_bytes);
  }
}

}  // namespace

int run(int argc, char** argv) {
  Options options;
  int exit_code = 0;
  if (!parse(argc, argv, options, exit_code)) {
    return exit_code;
  }
  try {
    generate(options);
    return 0;
  } catch (const BadArgument& error) {
    std::cerr << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cout.flush();
    std::cerr << "generate: " << error.what() << '\n';
    return 1;
  }
}

}  // namespace ggml_engine
