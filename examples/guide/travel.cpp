// The cache travels: one sequence saved alone, and another that goes from one engine to another while it is computed.
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../usage.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/snapshot/snapshot.hpp"
#include "kvc/transfer/receiver.hpp"
#include "kvc/transfer/sender.hpp"
#include "kvc/transport/in_process.hpp"

namespace {

constexpr kvc::Shape shape{.layers = 4, .kv_heads = 2, .key_dim = 16};
constexpr kvc::Index row = 32;  // kv_heads * key_dim

/// Stands for a model: the keys and values of one layer.
template <class Cache>
void compute(Cache& cache, kvc::Index layer, const typename Cache::Append& step) {
  const std::vector<float> rows(static_cast<std::size_t>(step.size() * row), static_cast<float>(layer));
  cache.write(layer, step, {rows.data(), step.size(), row}, {rows.data(), step.size(), row});
}

std::vector<kvc::Token> prompt_of(std::size_t size) {
  std::vector<kvc::Token> prompt(size);
  std::iota(prompt.begin(), prompt.end(), 1);
  return prompt;
}

void save_one_sequence(const std::filesystem::path& file) {
  using Cache = kvc::KvCache<float, kvc::PrefixShared<>>;
  Cache cache(shape, {.blocks = 32, .block_tokens = 16});
  const std::vector<kvc::Token> prompt = prompt_of(50);
  const kvc::SeqId seq = cache.open(prompt).seq;
  auto step = cache.extend(seq, prompt);
  for (kvc::Index layer = 0; layer < shape.layers; ++layer) {
    compute(cache, layer, step);
  }
  cache.commit(std::move(step));
  kvc::snapshot::save(cache, std::span(&seq, 1), file);  // this one; save(cache, file) takes all, and what is cached
  cache.close(seq);

  kvc::KvCache<float, kvc::Paged> other(shape, {.blocks = 8, .block_tokens = 32});  // of any policy and block size
  const kvc::snapshot::Loaded loaded = kvc::snapshot::load(other, file);
  std::printf("loaded: %zu sequence of %d tokens\n", loaded.sequences.size(), other.length(loaded.sequences.at(0)));
}

void send_a_sequence() {
  using Prefill = kvc::KvCache<float, kvc::PrefixShared<>>;
  using Decode = kvc::KvCache<float, kvc::Paged>;
  kvc::transport::InProcess hub({.peers = 2});
  kvc::transport::InProcess::Endpoint to_decode(hub, 0), to_prefill(hub, 1);  // one for each engine

  Prefill cache(shape, {.blocks = 32, .block_tokens = 16});
  kvc::transfer::Sender sender(cache, to_decode);
  Decode other(shape, {.blocks = 32, .block_tokens = 16});
  kvc::transfer::Receiver receiver(other, to_prefill);  // usually in another thread or process

  const std::vector<kvc::Token> prompt = prompt_of(50);
  const kvc::SeqId seq = cache.open(prompt).seq;
  auto step = cache.extend(seq, prompt);
  const kvc::transfer::Id id = sender.offer({.to = 1, .seq = seq, .tokens = prompt, .request = 7});
  for (kvc::Index layer = 0; layer < shape.layers; ++layer) {
    compute(cache, layer, step);                 // cache.write(layer, step, k, v)
    sender.ready(id, layer, step.range().last);  // its rows travel while the next layer is computed
    receiver.poll();                             // each engine polls, between two steps
    sender.poll();
  }
  sender.finish(id);
  while (sender.transfers() > 0) {
    receiver.poll();
    sender.poll();
  }

  while (auto sent = sender.next()) {
    cache.commit(std::move(step));  // the rows stay here as well, for later prompts
    cache.close(sent->seq);
  }
  while (auto arrived = receiver.next()) {
    if (arrived->outcome == kvc::transfer::Outcome::complete) {
      std::printf("request %d arrived: %d tokens, %ld bytes\n", static_cast<int>(arrived->request), arrived->length,
                  static_cast<long>(arrived->bytes));
      other.close(arrived->seq);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run_example(
      argc, argv, "One sequence saved alone, and another that travels to another engine while it is computed.", [] {
        const std::filesystem::path file =
            std::filesystem::temp_directory_path() / ("kvc_guide_" + std::to_string(std::random_device{}()) + ".kvc");
        save_one_sequence(file);
        std::filesystem::remove(file);
        send_a_sequence();
      });
}
