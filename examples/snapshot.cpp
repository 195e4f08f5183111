// Sequences that survive a restart: a cache is saved, the "process" ends, and another cache loads the file. The open
// sequence goes on where it was, and a new request finds the system prompt in place.
#include "usage.hpp"

#include <Eigen/Core>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/snapshot/snapshot.hpp"

namespace {
using Cache = kvc::KvCache<Eigen::bfloat16, kvc::PrefixShared<>>;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr kvc::Shape shape{.layers = 4, .kv_heads = 2, .key_dim = 64};

/// Computes the tokens of a prompt that are not in place. A model would run here; these rows are made up.
kvc::SeqId serve(Cache& cache, const std::vector<kvc::Token>& prompt) {
  const kvc::Opened opened = cache.open(prompt);
  auto step = cache.extend(opened.seq, std::span(prompt).subspan(static_cast<std::size_t>(opened.cached)));
  for (kvc::Index layer = 0; layer < shape.layers; ++layer) {
    const Matrix rows = Matrix::Constant(step.size(), shape.kv_heads * shape.key_dim, static_cast<float>(layer));
    cache.write(layer, step, rows, rows);
  }
  std::printf("  a prompt of %zu tokens: %d in place, %d computed\n", prompt.size(), opened.cached, step.size());
  cache.commit(std::move(step));
  return opened.seq;
}

std::vector<kvc::Token> system_prompt_and(std::vector<kvc::Token> question) {
  std::vector<kvc::Token> tokens(96);
  std::iota(tokens.begin(), tokens.end(), 1);
  tokens.insert(tokens.end(), question.begin(), question.end());
  return tokens;
}

int save_and_load() {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("kvc_example_" + std::to_string(std::random_device{}()) + ".kvc");
  const std::vector<kvc::Token> sequence = system_prompt_and({500, 501, 502});
  {
    std::printf("before:\n");
    Cache cache(shape, {.blocks = 64, .block_tokens = 16});
    serve(cache, sequence);                                    // stays open
    cache.close(serve(cache, system_prompt_and({600, 601})));  // complete; its full blocks stay cached
    kvc::snapshot::save(cache, file);                          // all open sequences and all cached blocks
    std::printf("  saved: %ld bytes\n", static_cast<long>(std::filesystem::file_size(file)));
  }

  std::printf("after the restart:\n");
  Cache cache(shape, {.blocks = 128, .block_tokens = 16});
  const kvc::snapshot::Loaded loaded = kvc::snapshot::load(cache, file);
  std::filesystem::remove(file);
  const kvc::SeqId seq = loaded.sequences.at(0);
  const bool same = loaded.contents.tokens_of(0) == sequence;
  std::printf("  the sequence goes on at position %d, its tokens %s\n", cache.length(seq),
              same ? "are known" : "are lost");
  cache.commit(cache.extend(seq, std::vector<kvc::Token>{503}));
  serve(cache, system_prompt_and({700, 701, 702, 703}));
  const bool hit = cache.stats().hit_tokens == 96;
  return same && hit ? 0 : 1;
}
}  // namespace

int main(int argc, char** argv) {
  return run_example(argc, argv,
                     "Saves a cache with an open sequence to a temporary file, and loads it into a larger cache.",
                     save_and_load);
}
