// A conversation that outlives the pool and the process. Its blocks are written to host memory and to files as they are
// computed. When others have taken its room, the next turn finds it in host memory; after a restart, in the files.
#include "usage.hpp"

#include <Eigen/Core>
#include <chrono>
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
#include "kvc/tier/file_store.hpp"
#include "kvc/tier/host_store.hpp"
#include "kvc/tier/tiers.hpp"

namespace {
using Cache = kvc::KvCache<Eigen::bfloat16, kvc::PrefixShared<kvc::ReuseHazard, kvc::ChainHash, kvc::EventCallback>>;
using Tiers = kvc::tier::Tiers<Cache>;
using Tokens = std::vector<kvc::Token>;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr kvc::Shape shape{.layers = 4, .kv_heads = 2, .key_dim = 64};
constexpr auto a_while = std::chrono::seconds(30);

Tokens counting(kvc::Token first, int count) {
  Tokens tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Serves one request: brings what slower tiers have of the prompt, computes the rest, and closes the sequence. A model
/// would run here; these rows are made up. Returns how many tokens were in place.
kvc::Pos serve(Cache& cache, Tiers& tiers, const Tokens& prompt, const char* what) {
  const kvc::Pos in_pool = cache.match_length(prompt);
  const kvc::tier::Found found = tiers.prefetch(prompt);
  (void)tiers.wait(found.load, std::chrono::steady_clock::now() + a_while);  // an engine serves others meanwhile
  const kvc::tier::Opened opened = tiers.open(prompt);
  auto step = cache.extend(opened.seq, std::span(prompt).subspan(static_cast<std::size_t>(opened.cached)));
  for (kvc::Index layer = 0; layer < shape.layers; ++layer) {
    const Matrix rows = Matrix::Constant(step.size(), shape.kv_heads * shape.key_dim, static_cast<float>(layer));
    cache.write(layer, step, rows, rows);
  }
  std::printf("  %-24s %3zu tokens: %3d in the pool, %3d more from a slower tier, %3d computed\n", what, prompt.size(),
              in_pool, opened.cached - in_pool, step.size());
  cache.commit(std::move(step));
  cache.close(opened.seq);
  (void)tiers.poll();  // between steps: begins to write what is new
  return opened.cached;
}

/// One life of the service. `folder` is where its files are.
template <class F>
void process(const std::filesystem::path& folder, F&& requests) {
  Cache cache(shape, {.blocks = 32, .block_tokens = 16});  // 512 tokens
  kvc::tier::HostStore<> host({.bytes = 64 << 20, .reports_evictions = true});
  kvc::tier::FileStore files({.folder = folder, .bytes = 256 << 20});
  Tiers tiers(cache, {.model = "made up, version 1"}, host, files);
  requests(cache, tiers);
  (void)tiers.flush(std::chrono::steady_clock::now() + a_while);
  std::printf("  the files have taken %lld blocks\n", static_cast<long long>(tiers.stats(1).stored));
}

int example() {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("kvc-tiers-" + std::to_string(std::random_device{}()));
  const Tokens first_turn = counting(0, 320);
  Tokens second_turn = first_turn;
  second_turn.insert(second_turn.end(), {9001, 9002, 9003, 9004, 9005});
  kvc::Pos again = 0, restarted = 0;

  std::printf("A process\n");
  process(folder, [&](Cache& cache, Tiers& tiers) {
    (void)serve(cache, tiers, first_turn, "a conversation");
    (void)serve(cache, tiers, counting(2000, 500), "another one");
    again = serve(cache, tiers, second_turn, "the next turn");
  });
  std::printf("It was restarted\n");
  process(folder, [&](Cache& cache, Tiers& tiers) { restarted = serve(cache, tiers, second_turn, "the same turn"); });

  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  return again >= 304 && restarted >= 304 ? 0 : 1;
}
}  // namespace

int main(int argc, char** argv) {
  return run_example(argc, argv,
                     "Serves a conversation whose blocks are kept in host memory and in files, when the pool has\n"
                     "evicted them and after a restart. Writes to a folder in the system's folder for temporary files.",
                     example);
}
