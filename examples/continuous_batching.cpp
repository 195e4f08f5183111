// Continuous batching over PrefixShared: requests enter and leave between any two steps of the model.
//
//   admission    asks whether a prompt fits now, later or never, before anything is taken from the pool
//   sharing      prompts that begin alike share the blocks of what they have in common
//   preemption   when a running request finds no block for its next token, the youngest one gives up its blocks and
//                waits; its full blocks stay cached, so most of it is still in place when it returns
//
// Bookkeeping only: no model runs, and the generated tokens are made up.
#include "usage.hpp"

#include <cstdio>
#include <deque>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {
using Cache = kvc::KvCache<float, kvc::PrefixShared<>>;

struct Request {
  int id;
  std::vector<kvc::Token> tokens;  // the prompt, then the generated ones
  std::size_t wanted;              // tokens in the end
  kvc::SeqId seq{};
  kvc::Pos computed = 0;
};

/// A system prompt of 40 tokens, the same for all, and 19 tokens of the user's.
Request make_request(int id) {
  std::vector<kvc::Token> prompt(59);
  std::iota(prompt.begin(), prompt.begin() + 40, 1);
  std::iota(prompt.begin() + 40, prompt.end(), 1000 * (id + 1));
  return {id, prompt, prompt.size() + 24};
}

std::span<const kvc::Token> not_computed(const Request& request) {
  return std::span(request.tokens).subspan(static_cast<std::size_t>(request.computed));
}

int serve_requests() {
  // 24 blocks of 8 tokens. Admission leaves two blocks for the tokens that running requests are about to generate.
  Cache cache({.layers = 2, .kv_heads = 2, .key_dim = 8}, {.blocks = 24, .block_tokens = 8, .watermark = 2});

  std::deque<Request> waiting;
  for (int id = 0; id < 8; ++id) {
    waiting.push_back(make_request(id));
  }
  waiting.push_back({8, std::vector<kvc::Token>(300, 7), 310});  // more than the pool

  int preemptions = 0;
  int told_to_wait = -1;
  std::vector<Request> running;
  for (int step = 0; !waiting.empty() || !running.empty(); ++step) {
    // Admission, of one request in a step: what it shares with the next one can be found once it is committed.
    if (!waiting.empty()) {
      Request& request = waiting.front();
      switch (cache.admission(request.tokens)) {
        case kvc::Admission::never:
          std::printf("step %3d: request %d is refused, %zu tokens never fit\n", step, request.id,
                      request.tokens.size());
          waiting.pop_front();
          break;
        case kvc::Admission::later:
          if (told_to_wait != request.id) {
            told_to_wait = request.id;
            std::printf("step %3d: request %d waits for room\n", step, request.id);
          }
          break;
        case kvc::Admission::now:
          const kvc::Opened opened = cache.open(request.tokens);
          request.seq = opened.seq;
          request.computed = opened.cached;  // at least one token is left to compute
          std::printf("step %3d: request %d is admitted, %d of %zu tokens in place\n", step, request.id, opened.cached,
                      request.tokens.size());
          running.push_back(std::move(request));
          waiting.pop_front();
      }
    }

    // Room for the next tokens of every request, the oldest first.
    std::vector<Cache::Append> appends;
    for (std::size_t i = 0; i < running.size();) {
      if (auto append = cache.try_extend(running[i].seq, not_computed(running[i]))) {
        appends.push_back(std::move(*append));
        ++i;
        continue;
      }
      Request preempted = std::move(running.back());  // the youngest; it has no append yet
      running.pop_back();
      std::printf("step %3d: request %d is preempted after %zu tokens\n", step, preempted.id, preempted.tokens.size());
      cache.close(preempted.seq);
      waiting.push_front(std::move(preempted));
      told_to_wait = -1;
      ++preemptions;
    }

    // The tables that a batched kernel reads; a model would run here.
    const kvc::BatchIndex index = kvc::make_batch(cache, appends);
    if (index.size() != static_cast<kvc::Index>(running.size())) {
      return 1;
    }

    std::vector<Request> stay;
    for (std::size_t i = 0; i < running.size(); ++i) {
      Request& request = running[i];
      request.computed = appends[i].range().last;
      cache.commit(std::move(appends[i]));
      request.tokens.push_back(request.computed);  // the "sampled" token
      if (request.tokens.size() < request.wanted) {
        stay.push_back(std::move(request));
      } else {
        std::printf("step %3d: request %d is complete\n", step, request.id);
        cache.close(request.seq);
      }
    }
    running = std::move(stay);
  }

  const kvc::Stats stats = cache.stats();
  std::printf("%d preemptions; of %ld prompt tokens %ld were in place (%.0f %%); blocks still referenced: %ld\n",
              preemptions, static_cast<long>(stats.prompt_tokens), static_cast<long>(stats.hit_tokens),
              100 * stats.hit_rate(), static_cast<long>(stats.blocks_referenced));
  return preemptions > 0 && stats.blocks_referenced == 0 ? 0 : 1;
}
}  // namespace

int main(int argc, char** argv) {
  return run_example(argc, argv, "Schedules eight requests on a pool for four of them: admission, sharing, preemption.",
                     serve_requests);
}
