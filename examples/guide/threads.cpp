// Threads: one writer at a time for a plain cache; Synchronized<Policy> for several.
#include "../usage.hpp"

#include <cstdio>
#include <future>
#include <span>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/policy/synchronized.hpp"

int serve_from_threads() {
  using Cache = kvc::KvCache<float, kvc::Synchronized<kvc::PrefixShared<>>>;
  Cache cache({.layers = 2, .kv_heads = 2, .key_dim = 16}, {.blocks = 256, .block_tokens = 16});

  // Each thread opens, extends, writes, commits and closes sequences of its own.
  const auto serve = [&cache](kvc::Token first) {
    for (kvc::Token request = 0; request < 50; ++request) {
      std::vector<kvc::Token> prompt(32, 1);  // the same for all
      prompt.insert(prompt.end(), {first, request, 0});
      const kvc::Opened opened = cache.open(prompt);
      auto step = cache.extend(opened.seq, std::span(prompt).subspan(static_cast<std::size_t>(opened.cached)));
      const std::vector<float> rows(static_cast<std::size_t>(step.size()) * 32);
      for (kvc::Index layer = 0; layer < 2; ++layer) {
        cache.write(layer, step, {rows.data(), step.size(), 32}, {rows.data(), step.size(), 32});
      }
      cache.commit(std::move(step));
      cache.close(opened.seq);
    }
  };
  std::vector<std::future<void>> threads;
  for (const kvc::Token first : {100, 200, 300, 400}) {
    threads.push_back(std::async(std::launch::async, serve, first));
  }
  for (std::future<void>& thread : threads) {
    thread.get();  // throws what the thread threw, such as CapacityError
  }
  cache.verify();
  std::printf("200 requests of 35 tokens from 4 threads; found in place: %s\n",
              cache.stats().hit_tokens >= 32 * 190 ? "nearly all that they share" : "less");
  return cache.stats().sequences == 0 ? 0 : 1;
}

int main(int argc, char** argv) {
  return run_example(argc, argv, "Four threads serve requests from one cache behind a lock.", serve_from_threads);
}
