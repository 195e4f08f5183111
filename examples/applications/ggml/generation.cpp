#include "generation.hpp"

#include <algorithm>
#include <chrono>

#include "kvc/core/error.hpp"
#include "status_line.hpp"
#include "text.hpp"

namespace ggml_engine {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

Generation::Generation(const Options& options, const Model& model, Cache& cache)
    : options_(&options),
      model_(&model),
      cache_(&cache),
      engine_(model, cache, options.threads),
      sampler_({options.temperature, options.top_p, options.seed}) {}

void Generation::start(Request& r) {
  const auto before = Clock::now();
  const kvc::Opened opened = cache_->open(r.prompt);
  r.seq = opened.seq;
  r.cached = opened.cached;
  std::span<const Token> rest = std::span<const Token>(r.prompt).subspan(static_cast<std::size_t>(opened.cached));
  std::size_t most = options_->prefill_chunk == 0 ? rest.size() : static_cast<std::size_t>(options_->prefill_chunk);
  StatusLine progress(!options_->quiet);
  while (!rest.empty()) {
    const Chunk chunk{r.seq, rest.first(std::min(rest.size(), most))};
    rest = rest.subspan(chunk.tokens.size());
    try {
      const Logits logits = engine_.pass(std::span(&chunk, 1), rest.empty() ? Wanted::last : Wanted::none);
      if (rest.empty()) {
        accept(r, logits.row(0));
      } else {
        progress.show("prefill", cache_->length(r.seq), std::ssize(r.prompt));
      }
    } catch (const kvc::CapacityError&) {
      if (chunk.tokens.size() == 1) {
        throw;
      }
      // Layers with a window keep all rows of a pass until it ends: fewer at a time may have room.
      most = chunk.tokens.size() / 2;
      rest = {chunk.tokens.data(), chunk.tokens.size() + rest.size()};
    }
  }
  r.prefill_seconds = seconds_since(before);
}

void Generation::step(std::span<Request* const> requests) {
  const auto before = Clock::now();
  std::vector<Chunk> chunks;
  for (const Request* r : requests) {
    chunks.push_back({r->seq, std::span(&r->generated.back(), 1)});
  }
  const Logits logits = engine_.pass(chunks, Wanted::last);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    accept(*requests[i], logits.row(static_cast<Index>(i)));
  }
  decode_seconds_ += seconds_since(before);
  decoded_ += std::ssize(requests);
}

void Generation::accept(Request& r, std::span<const float> logits) {
  const Token token = sampler_(logits);
  r.done = !options_->ignore_end && model_->vocabulary->ends_text(token);
  if (!r.done) {
    r.generated.push_back(token);
    r.text += text::printable(model_->vocabulary->decode(token));
    r.done = std::ssize(r.generated) >= options_->new_tokens;
  }
}

}  // namespace ggml_engine
