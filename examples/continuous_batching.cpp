// Continuous batching over PrefixShared: requests with a common system prompt share its blocks, admission waits for
// room, and a request that runs out of room is preempted and comes back. Bookkeeping only: where a model would run,
// nothing does.
#include <cstdio>
#include <deque>
#include <numeric>
#include <optional>
#include <vector>

#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {
struct Request {
  int id;
  std::vector<kvc::Token> tokens;  // prompt, then what was generated
  std::size_t wanted;              // tokens in the end
  std::optional<kvc::SeqId> seq{};
  kvc::Pos computed = 0;
};
}  // namespace

int main() {
  using Cache = kvc::KvCache<float, kvc::PrefixShared<>>;
  Cache cache({.layers = 2, .kv_heads = 2, .key_dim = 8}, {.blocks = 24, .block_tokens = 8});

  std::deque<Request> waiting;
  for (int id = 0; id < 6; ++id) {
    std::vector<kvc::Token> prompt(40);  // the system prompt: 40 tokens, the same for all
    std::iota(prompt.begin(), prompt.end(), 1);
    prompt.insert(prompt.end(), {1000 + id, 2000 + id, 3000 + id});
    waiting.push_back({id, prompt, prompt.size() + 30});
  }

  std::vector<Request> running;
  for (int step = 0; !waiting.empty() || !running.empty(); ++step) {
    if (!waiting.empty() && running.size() < 4) {
      Request request = std::move(waiting.front());
      waiting.pop_front();
      const kvc::Opened opened = cache.open(request.tokens);
      request.seq = opened.seq;
      request.computed = opened.cached;  // at least one token is left to compute
      std::printf("step %2d: request %d enters, %d of %zu tokens in place\n", step, request.id, opened.cached,
                  request.tokens.size());
      running.push_back(std::move(request));
    }

    std::vector<Cache::Append> appends;
    std::vector<Request> stay;
    for (Request& request : running) {
      const auto pending =
          std::span<const kvc::Token>(request.tokens).subspan(static_cast<std::size_t>(request.computed));
      if (auto append = cache.try_extend(*request.seq, pending)) {
        appends.push_back(std::move(*append));
        stay.push_back(std::move(request));
      } else {
        std::printf("step %2d: request %d leaves, no room\n", step, request.id);
        cache.close(*request.seq);  // its full blocks stay cached: coming back is cheap as long as they do
        request.seq.reset();
        waiting.push_back(std::move(request));
      }
    }
    running = std::move(stay);

    const kvc::BatchIndex index =
        kvc::make_batch(cache, appends);  // what a batched kernel needs; a model would run here
    if (index.size() != static_cast<kvc::Index>(running.size())) {
      return 1;
    }

    stay.clear();
    for (std::size_t i = 0; i < running.size(); ++i) {
      Request& request = running[i];
      request.computed = appends[i].range().last;
      cache.commit(std::move(appends[i]));
      request.tokens.push_back(request.computed);  // the "sampled" token
      if (request.tokens.size() > request.wanted) {
        cache.close(*request.seq);
      } else {
        stay.push_back(std::move(request));
      }
    }
    running = std::move(stay);
  }

  const kvc::Stats stats = cache.stats();
  std::printf("prompt tokens %ld, of them in place %ld (%.0f %%); evictions %ld; blocks still held %ld\n",
              static_cast<long>(stats.prompt_tokens), static_cast<long>(stats.hit_tokens), 100 * stats.hit_rate(),
              static_cast<long>(stats.evictions), static_cast<long>(stats.blocks_referenced));
  return stats.blocks_referenced == 0 ? 0 : 1;
}
