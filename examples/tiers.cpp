// A session that outlives the pool and the process. Its blocks are written to host memory and to files as they are
// computed. When others have taken its room, the next turn finds it in host memory; after a restart, in the files. With
// --redis HOST:PORT they are written to that server, too, and another process, without these files, finds it there.
#include "usage.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <Eigen/Core>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/tier/file_store.hpp"
#include "kvc/tier/host_store.hpp"
#include "kvc/tier/tiers.hpp"
#if defined(KVC_HAVE_HIREDIS)
#include "kvc/tier/redis_store.hpp"
#endif

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
    (void)serve(cache, tiers, first_turn, "a session");
    (void)serve(cache, tiers, counting(2000, 500), "another one");
    again = serve(cache, tiers, second_turn, "the next turn");
  });
  std::printf("It was restarted\n");
  process(folder, [&](Cache& cache, Tiers& tiers) { restarted = serve(cache, tiers, second_turn, "the same turn"); });

  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  return again >= 304 && restarted >= 304 ? 0 : 1;
}

#if defined(KVC_HAVE_HIREDIS)
/// The first turn in one process, the second in another, which have nothing in common but the server.
int over_redis(const kvc::tier::RedisServer& server) {
  // New tokens in every run: the server may still have those of the last one.
  const Tokens first_turn = counting(static_cast<kvc::Token>(std::random_device{}() >> 2), 320);
  Tokens second_turn = first_turn;
  second_turn.insert(second_turn.end(), {9001, 9002, 9003, 9004, 9005});
  const auto in_a_process = [&](const Tokens& prompt, const char* what) {
    (void)std::fflush(stdout);
    const pid_t child = ::fork();
    if (child == 0) {
      std::printf("Process %ld\n", static_cast<long>(::getpid()));
      Cache cache(shape, {.blocks = 32, .block_tokens = 16});
      kvc::tier::RedisStore::Config config;
      config.servers = {server};
      kvc::tier::RedisStore redis(config);
      Tiers tiers(cache, {.model = "made up, version 1"}, redis);
      const kvc::Pos found = serve(cache, tiers, prompt, what);
      (void)tiers.flush(std::chrono::steady_clock::now() + a_while);
      std::printf("  the server has taken %lld blocks\n", static_cast<long long>(tiers.stats(0).stored));
      (void)std::fflush(stdout);
      ::_exit(found >= 304 ? 0 : 1);
    }
    int status = 1;
    (void)::waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  };
  const bool first = in_a_process(first_turn, "a session");
  const bool second = in_a_process(second_turn, "its next turn");
  return !first && second ? 0 : 1;
}
#endif

/// HOST:PORT. Returns the exit code.
int over_redis(std::string_view address) {
#if defined(KVC_HAVE_HIREDIS)
  const std::size_t colon = address.rfind(':');
  kvc::tier::RedisServer server;
  if (colon != std::string_view::npos && colon > 0) {
    server.host = std::string(address.substr(0, colon));
    const std::string_view port = address.substr(colon + 1);
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), server.port);
    if (error == std::errc{} && end == port.data() + port.size()) {
      return over_redis(server);
    }
  }
  std::fprintf(stderr, "--redis is \"%s\", must be HOST:PORT\n", std::string(address).c_str());
#else
  std::fprintf(stderr, "--redis %s: this program was built without hiredis (Debian: libhiredis-dev)\n",
               std::string(address).c_str());
#endif
  return 2;
}
}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == "--redis") {
    return over_redis(argv[2]);
  }
  return run_example(
      argc, argv,
      "Serves a session whose blocks are kept in host memory and in files, when the pool has\n"
      "evicted them and after a restart. Writes to a folder in the system's folder for temporary files.\n"
      "With --redis HOST:PORT, two processes serve it, and the second finds the first one's blocks on that\n"
      "server. Otherwise:",
      example);
}
