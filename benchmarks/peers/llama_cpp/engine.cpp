// The engine on ggml (examples/applications/ggml) in the cases of compare.py: one case, one line of figures as JSON.
//
//   engine MODEL.gguf TOKENS ELEMENT THREADS context N M     a prompt of N tokens, then M tokens one by one
//   engine MODEL.gguf TOKENS ELEMENT THREADS together S N P M  S prompts of N tokens that share P; M tokens of each
//   engine MODEL.gguf TOKENS ELEMENT THREADS seen N P        a prompt of N tokens, P of which an earlier prompt had
//   engine MODEL.gguf TOKENS ELEMENT THREADS bytes S N       what a cache for S sequences of N tokens holds
//
// TOKENS is a file of token numbers as text. The tokens that follow a prompt are taken from it too, so that both
// engines compute the same. With --processor-time before MODEL.gguf, times are those that processors spent in this
// process, which with one thread is the time that it would take alone on the machine.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <exception>
#include <fstream>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml/cache.hpp"
#include "ggml/engine.hpp"
#include "ggml/model.hpp"
#include "kvc/core/error.hpp"

namespace {

using ggml_engine::Chunk;
using ggml_engine::Wanted;
using kvc::Index;
using kvc::Pos;
using kvc::Token;

constexpr Pos pass_tokens = 512;  // as llama.cpp's n_ubatch

bool processor_time = false;  // --processor-time

/// Seconds since some moment.
double now() {
  if (processor_time) {
    std::timespec t{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Arguments {
  std::string model, tokens, element;
  int threads = 1;
  std::string kind;
  std::vector<Pos> numbers;
};

Arguments parse(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--processor-time") == 0) {
    processor_time = true;
    --argc;
    ++argv;
  }
  if (argc < 7) {
    throw std::invalid_argument(
        "usage: engine [--processor-time] MODEL.gguf TOKENS ELEMENT THREADS "
        "context|together|seen|bytes N...");
  }
  Arguments a{argv[1], argv[2], argv[3], std::stoi(argv[4]), argv[5], {}};
  for (int i = 6; i < argc; ++i) {
    a.numbers.push_back(std::stoi(argv[i]));
  }
  const std::size_t wanted = a.kind == "together" ? 4 : 2;
  if (a.numbers.size() != wanted) {
    throw std::invalid_argument(a.kind + " takes " + std::to_string(wanted) + " numbers");
  }
  return a;
}

struct CacheSize {
  Pos sequences;
  Pos max_tokens;
  Pos block_tokens = 64;
  Pos pass_tokens = ::pass_tokens;  ///< that there is always room for
};

class Run {
 public:
  Run(const Arguments& a, const std::string& policy, const CacheSize& size)
      : model_(ggml_engine::Model::load(a.model)),
        cache_(ggml_engine::make_cache(model_, {.policy = policy,
                                                .element = a.element,
                                                .block_tokens = size.block_tokens,
                                                .sequences = size.sequences,
                                                .max_tokens = size.max_tokens,
                                                .pass_tokens = size.pass_tokens})),
        engine_(model_, *cache_, a.threads) {
    std::ifstream file(a.tokens);
    for (Token token; file >> token;) {
      tokens_.push_back(token);
    }
  }

  [[nodiscard]] ggml_engine::Cache& cache() { return *cache_; }
  /// Attention's share of the time of all passes since the last call of `forget`.
  [[nodiscard]] double attention_share() const {
    const ggml_engine::Profile& now = engine_.profile();
    return (now.attention - before_.attention) / (now.total - before_.total);
  }
  void forget() { before_ = engine_.profile(); }

  /// `count` tokens of the file from `first` on.
  [[nodiscard]] std::vector<Token> tokens(Pos first, Pos count) const {
    if (std::ssize(tokens_) < first + count) {
      throw std::runtime_error("TOKENS has " + std::to_string(tokens_.size()) + " tokens, fewer than are needed");
    }
    return {tokens_.begin() + first, tokens_.begin() + first + count};
  }

  /// Computes a prompt, with the logits of its last token. Returns its sequence.
  kvc::SeqId prefill(std::span<const Token> prompt) {
    const kvc::Opened opened = cache_->open(prompt);
    std::span<const Token> rest = prompt.subspan(static_cast<std::size_t>(opened.cached));
    while (!rest.empty()) {
      const std::size_t count = std::min<std::size_t>(rest.size(), pass_tokens);
      const Chunk chunk{opened.seq, rest.first(count)};
      const bool last = count == rest.size();
      (void)engine_.pass(std::span(&chunk, 1), last ? Wanted::last : Wanted::none);
      rest = rest.subspan(count);
    }
    return opened.seq;
  }

  /// Computes `count` tokens of each sequence, one per pass, and their logits. Returns tokens per second of all.
  double decode(std::span<const kvc::SeqId> sequences, Pos count) {
    const std::vector<Token> next = tokens(0, count);
    const double start = now();
    for (const Token& token : next) {
      std::vector<Chunk> chunks;
      for (const kvc::SeqId seq : sequences) {
        chunks.push_back({seq, std::span(&token, 1)});
      }
      (void)engine_.pass(chunks, Wanted::last);
    }
    return static_cast<double>(count * std::ssize(sequences)) / (now() - start);
  }

 private:
  ggml_engine::Model model_;
  std::unique_ptr<ggml_engine::Cache> cache_;
  ggml_engine::Engine engine_;
  std::vector<Token> tokens_;
  ggml_engine::Profile before_;
};

void context(const Arguments& a) {
  const Pos n = a.numbers[0], m = a.numbers[1];
  Run run(a, "paged", {.sequences = 2, .max_tokens = n + m});
  run.cache().close(run.prefill(run.tokens(0, 16)));  // warms up
  run.forget();
  const std::vector<Token> prompt = run.tokens(0, n);
  const double start = now();
  const kvc::SeqId seq = run.prefill(prompt);
  const double seconds = now() - start;
  const double prefill_share = run.attention_share();
  run.forget();
  const double decode = run.decode(std::span(&seq, 1), m);
  std::printf("{\"prefill\": %.1f, \"prefill_attention\": %.3f, \"decode\": %.2f, \"decode_attention\": %.3f}\n",
              n / seconds, prefill_share, decode, run.attention_share());
}

void together(const Arguments& a) {
  const Pos s = a.numbers[0], n = a.numbers[1], p = a.numbers[2], m = a.numbers[3];
  Run run(a, "prefix-shared", {.sequences = s, .max_tokens = n + m});
  std::vector<kvc::SeqId> sequences;
  for (Pos i = 0; i < s; ++i) {
    std::vector<Token> prompt = run.tokens(0, p);
    const std::vector<Token> own = run.tokens(p + i * (n - p), n - p);
    prompt.insert(prompt.end(), own.begin(), own.end());
    sequences.push_back(run.prefill(prompt));
  }
  const Index hits = run.cache().stats().hit_tokens;
  run.forget();
  const double decode = run.decode(sequences, m);
  std::printf("{\"decode\": %.2f, \"decode_attention\": %.3f, \"hit_tokens\": %ld}\n", decode, run.attention_share(),
              static_cast<long>(hits));
}

void seen(const Arguments& a) {
  const Pos n = a.numbers[0], p = a.numbers[1];
  Run run(a, "prefix-shared", {.sequences = 2, .max_tokens = n});
  const auto ttft = [&](Pos first_own) {
    std::vector<Token> prompt = run.tokens(0, p);
    const std::vector<Token> own = run.tokens(first_own, n - p);
    prompt.insert(prompt.end(), own.begin(), own.end());
    const double start = now();
    const kvc::SeqId seq = run.prefill(prompt);
    const double seconds = now() - start;
    run.cache().close(seq);
    return seconds;
  };
  const double first = ttft(p);
  const double second = ttft(p + n);
  std::printf("{\"ttft\": %.4f, \"ttft_seen\": %.4f, \"hit_tokens\": %ld}\n", first, second,
              static_cast<long>(run.cache().stats().hit_tokens));
}

void bytes(const Arguments& a) {
  const Pos s = a.numbers[0], n = a.numbers[1];
  Run run(a, "paged", {.sequences = s, .max_tokens = n, .block_tokens = 16, .pass_tokens = 1});
  Pos shortest = pass_tokens;
  for (Pos i = 0; i < s; ++i) {
    const kvc::SeqId seq = run.cache().open({}).seq;
    Pos most = pass_tokens;
    for (Pos done = 0; done < n;) {  // positions without rows: nothing is computed
      const std::vector<Token> tokens(static_cast<std::size_t>(std::min(most, n - done)));
      const Chunk chunk{seq, tokens};
      try {
        run.cache().begin(std::span(&chunk, 1));
      } catch (const kvc::CapacityError&) {  // the last prompts find less room, as in Generation::start
        most /= 2;
        shortest = std::min(shortest, most);
        if (most == 0) {
          throw;
        }
        continue;
      }
      run.cache().commit();
      done += static_cast<Pos>(tokens.size());
    }
  }
  std::printf("{\"held\": %ld, \"allocated\": %ld, \"shortest_pass\": %d}\n",
              static_cast<long>(run.cache().held_bytes()), static_cast<long>(run.cache().pool_bytes()), shortest);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments a = parse(argc, argv);
    ggml_engine::show_warnings_only();
    if (a.kind == "context") {
      context(a);
    } else if (a.kind == "together") {
      together(a);
    } else if (a.kind == "seen") {
      seen(a);
    } else if (a.kind == "bytes") {
      bytes(a);
    } else {
      throw std::invalid_argument("no case " + a.kind + ": there are context, together, seen and bytes");
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "engine: %s\n", error.what());
    return 1;
  }
}
