// Prefix sharing: tokens, salts, tenants, pins, admission, and what stats() says about it. Bookkeeping only: where a
// model would compute rows, nothing does.
#include <cstdio>
#include <numeric>
#include <span>
#include <vector>

#include "../usage.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/eviction/cost_aware.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {

using Cache = kvc::KvCache<float, kvc::PrefixShared<>>;
using Tokens = std::vector<kvc::Token>;

/// A system prompt of 40 tokens and a question.
Tokens prompt_with(const Tokens& question) {
  Tokens prompt(40);
  std::iota(prompt.begin(), prompt.end(), 1);
  prompt.insert(prompt.end(), question.begin(), question.end());
  return prompt;
}

/// Opens a sequence on what is cached of the prompt, and computes the rest.
kvc::SeqId serve(Cache& cache, const Tokens& prompt, const kvc::Salt& salt) {
  const kvc::Opened opened = cache.open(prompt, {.salt = salt});
  const auto rest = std::span(prompt).subspan(static_cast<std::size_t>(opened.cached));
  auto step = cache.extend(opened.seq, rest);  // the tokens, not their number: without them nothing can be found later
  // ... cache.write(layer, step, k, v), once per layer
  cache.commit(std::move(step));
  std::printf("%2d of %zu tokens found\n", opened.cached, prompt.size());
  return opened.seq;
}

void share() {
  Cache cache({.layers = 2, .kv_heads = 2, .key_dim = 64}, {.blocks = 64, .block_tokens = 16});
  const kvc::Salt alice(kvc::SaltKind::tenant, "alice"), bob(kvc::SaltKind::tenant, "bob");

  const kvc::SeqId first = serve(cache, prompt_with({100, 101}), alice);
  const kvc::SeqId second = serve(cache, prompt_with({200, 201, 202}), alice);  // the same system prompt
  const kvc::SeqId third = serve(cache, prompt_with({100, 101}), bob);          // another tenant: nothing is shared

  const kvc::Stats stats = cache.stats();
  std::printf("hit rate %.2f; %ld blocks hold %ld tokens\n", stats.hit_rate(),
              static_cast<long>(stats.blocks_referenced), static_cast<long>(stats.tokens_stored));
  for (const kvc::SeqId seq : {first, second, third}) {
    cache.close(seq);  // full blocks stay cached until their room is needed
  }
  std::printf("after closing: %ld blocks cached, %ld free\n", static_cast<long>(cache.stats().blocks_cached),
              static_cast<long>(cache.stats().blocks_free));
}

void limit_tenants() {
  // Cached blocks that no sequence references: at most 4 for each tenant.
  Cache cache({.layers = 2, .kv_heads = 2, .key_dim = 64}, {.blocks = 64, .block_tokens = 16, .tenant_quota = 4});
  kvc::Salt salt(kvc::SaltKind::tenant, "alice");
  salt.add(kvc::SaltKind::lora, "summaries-v2");  // an adapter changes the rows, so it belongs to the salt
  for (kvc::Token request = 0; request < 5; ++request) {
    Tokens prompt(48, request);
    cache.close(serve(cache, prompt, salt));
  }
  std::printf("5 prompts of 3 blocks each: %ld blocks cached\n", static_cast<long>(cache.stats().blocks_cached));
}

void choose_an_eviction_policy() {
  using Eviction = kvc::CostAware;
  kvc::KvCache<float, kvc::PrefixShared<Eviction>> cache(
      {.layers = 2, .kv_heads = 2, .key_dim = 64},
      {.blocks = 64, .block_tokens = 16, .eviction = {.slope = 0.01}});  // a block costs 1 % more for each before it
  std::printf("evicts by %s\n", Eviction::name.data());
}

void admit() {
  Cache cache({.layers = 2, .kv_heads = 2, .key_dim = 64}, {.blocks = 8, .block_tokens = 16, .watermark = 1});
  const Tokens prompt = prompt_with({100, 101});
  const kvc::SeqId seq = serve(cache, prompt, {});
  cache.close(seq);
  const auto pin = cache.try_pin(std::span(prompt).first(40));  // two full blocks: evicted by nothing until unpin
  std::printf("pinned: %d tokens; a new prompt would find %d\n", pin->tokens, cache.match_length(prompt_with({200})));

  const Tokens large(200, 7);
  const Tokens medium(100, 7);
  const auto say = [](kvc::Admission a) {
    return a == kvc::Admission::now ? "now" : a == kvc::Admission::later ? "later" : "never";
  };
  std::printf("200 tokens: %s; 100 tokens: %s; the shared prompt and 16 tokens of answer: %s\n",
              say(cache.admission(large)), say(cache.admission(medium)), say(cache.admission(prompt, 16)));
  cache.unpin(pin->pin);
  std::printf("after unpin, 100 tokens: %s\n", say(cache.admission(medium)));
}

}  // namespace

int main(int argc, char** argv) {
  return run_example(argc, argv, "Prefix sharing: tokens, salts, tenants, pins and admission.", [] {
    share();
    limit_tenants();
    choose_an_eviction_policy();
    admit();
  });
}
