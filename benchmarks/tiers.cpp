// Slower tiers beside what their parts can do, in the same run.
//
//   host     demote to and promote from a HostStore, beside memcpy of the same blocks between two pools
//   file     writes and reads of a FileStore, beside pwrite and pread of as many bytes, from as many threads, to files
//            of the same folder: KVC_TIERS_FOLDER, or a temporary one. The page cache is warm, but in `cold`, where
//            both drop it before each round. `io_uring`: several requests of each record at once; `direct`: around the
//            page cache
//   redis    writes and reads of a RedisStore on loopback, beside redis-benchmark with values of the same size
//   index    lookup of a prompt of 128k tokens in a directory of a million records, with its keys and without; and how
//            long the directory takes to open
//
// Counters: `of_plain` is the bandwidth beside the plain calls, as a ratio of medians of times that are measured by
// turns; `bytes_per_second` is of payload. Blocks have 16 tokens of a model with 8 billion parameters: 32 layers, 8
// heads of 128 elements of 16 bits for keys and values, 2 MiB.
#if __has_include(<xxhash.h>) && defined(KVC_HAVE_SODIUM)

#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kvc/memory/space.hpp"
#include "kvc/tier/file_store.hpp"
#include "kvc/tier/host_store.hpp"
#include "kvc/tier/key_chain.hpp"
#if defined(KVC_HAVE_HIREDIS)
#include "kvc/tier/redis_store.hpp"
#endif

namespace {
using namespace kvc;
using namespace kvc::tier;
using Clock = std::chrono::steady_clock;
constexpr std::size_t block_tokens = 16;
constexpr std::size_t block_2m = std::size_t{2} << 20;
constexpr std::size_t pool_bytes = std::size_t{192} << 20;
constexpr std::size_t depth = 4;

/// Memory that is there, in large pages.
class Pool {
 public:
  explicit Pool(std::size_t bytes) : buffer_(HostSpace{}, bytes) {
    for (std::size_t i = 0; i < bytes; ++i) {
      buffer_.data()[i] = static_cast<std::byte>(i * 31 + i / 4096);
    }
  }
  [[nodiscard]] std::span<std::byte> block(std::size_t number, std::size_t bytes) {
    return {buffer_.data() + number * bytes, bytes};
  }

 private:
  Buffer<HostSpace> buffer_;
};

/// Blocks of one prompt.
struct Prompt {
  Prompt(std::size_t blocks, Token first, std::uint32_t parts = 1) : tokens(blocks * block_tokens) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = first + static_cast<Token>(i * 7);
    }
    KeyChain chain("benchmark");
    for (std::size_t i = 0; i < blocks; ++i) {
      all.push_back(chain.next(std::span(tokens).subspan(i * block_tokens, block_tokens), parts));
      keys.push_back(all.back().key);
    }
  }
  std::vector<Token> tokens;
  std::vector<RecordInfo> all;
  std::vector<BlockKey> keys;
};

double seconds(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }
double median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + std::ssize(times) / 2, times.end());
  return times[times.size() / 2];
}

/// Runs both by turns, and reports.
template <class A, class B>
void compare_runs(benchmark::State& state, std::size_t bytes, A&& ours, B&& plain) {
  std::vector<double> our_times, plain_times;
  for (auto _ : state) {
    const double time = ours();
    plain_times.push_back(plain());
    our_times.push_back(time);
    state.SetIterationTime(time);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(bytes));
  state.counters["of_plain"] = median(plain_times) / median(our_times);
  state.counters["plain_GB/s"] = static_cast<double>(bytes) / median(plain_times) * 1e-9;
}

/// Ends all operations; the benchmark fails if one is not done. Polls each millisecond, as an engine does between short
/// steps: a thread that waits for each completion would take the processor from those that work.
template <class S>
void finish(benchmark::State& state, S& store, std::chrono::microseconds pause = std::chrono::microseconds(1000)) {
  for (;;) {
    while (const auto ended = store.poll()) {
      if (ended->outcome != StoreOutcome::done) {
        state.SkipWithError("an operation is not done");
      }
    }
    if (store.under_way() == 0) {
      return;
    }
    if (pause.count() > 0) {
      std::this_thread::sleep_for(pause);
    } else {
      (void)store.wait(TimePoint::max());
    }
  }
}
template <class S>
void write_all(benchmark::State& state, S& store, const Prompt& prompt, Pool& from, std::size_t bytes) {
  for (std::size_t i = 0; i < prompt.all.size(); ++i) {
    const io::ConstByteSpan span = from.block(i, bytes);
    (void)store.write(prompt.all[i], std::span(&span, 1));
  }
  finish(state, store);
}
template <class S>
void read_all(benchmark::State& state, S& store, const Prompt& prompt, Pool& to, std::size_t bytes) {
  for (std::size_t i = 0; i < prompt.all.size(); ++i) {
    const io::ByteSpan span = to.block(i, bytes);
    (void)store.read(prompt.all[i], std::span(&span, 1));
  }
  finish(state, store);
}

void host(benchmark::State& state, bool writes) {
  constexpr std::size_t blocks = pool_bytes / block_2m;
  Pool pool(pool_bytes), other(pool_bytes);
  HostStore<> store({.bytes = pool_bytes});
  const Prompt prompts[] = {Prompt(blocks, 1), Prompt(blocks, 2)};
  write_all(state, store, prompts[1], pool, block_2m);
  std::size_t round = 0;
  compare_runs(
      state, pool_bytes,
      [&] {
        const auto begin = Clock::now();
        if (writes) {
          write_all(state, store, prompts[round++ % 2], pool, block_2m);  // evicts the other prompt
        } else {
          read_all(state, store, prompts[1], pool, block_2m);
        }
        return seconds(begin);
      },
      [&] {
        const auto begin = Clock::now();
        for (std::size_t i = 0; i < blocks; ++i) {
          const auto from = writes ? pool.block(i, block_2m) : other.block(i, block_2m);
          const auto to = writes ? other.block(i, block_2m) : pool.block(i, block_2m);
          std::memcpy(to.data(), from.data(), from.size());
        }
        benchmark::ClobberMemory();
        return seconds(begin);
      });
}

/// A folder that is removed with the object.
struct Folder {
  Folder() {
    const char* root = std::getenv("KVC_TIERS_FOLDER");
    path = std::filesystem::path(root != nullptr ? root : std::filesystem::temp_directory_path().c_str()) /
           ("kvc_tiers_" + std::to_string(::getpid()));
    std::filesystem::create_directories(path);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::filesystem::path path;
};

/// Calls `each(i)` for i < count, from `depth` threads; throws what one of them threw.
template <class F>
void by_threads(std::size_t count, F&& each) {
  std::atomic<std::size_t> next = 0;
  std::vector<std::future<void>> threads;
  for (std::size_t t = 0; t < depth; ++t) {
    threads.push_back(std::async(std::launch::async, [&] {
      for (std::size_t i = 0; (i = next++) < count;) {
        each(i);
      }
    }));
  }
  for (std::future<void>& thread : threads) {
    thread.get();
  }
}

/// Writes what is dirty, and drops the pages of a folder's files.
void drop_pages(const std::filesystem::path& folder) {
  for (const auto& each : std::filesystem::recursive_directory_iterator(folder)) {
    if (each.is_regular_file()) {
      const int fd = ::open(each.path().c_str(), O_RDONLY);
      (void)::fsync(fd);
      (void)::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
      (void)::close(fd);
    }
  }
}

void file(benchmark::State& state, bool writes, bool is_cold, FileCalls calls = FileCalls::plain, bool direct = false) {
  const auto bytes = static_cast<std::size_t>(state.range(0));
  const std::size_t blocks = pool_bytes / bytes;
  Pool pool(pool_bytes);
  const Folder folder;
  FileStore store({.folder = folder.path / "store", .threads = depth, .calls = calls, .direct = direct});
  state.SetLabel(store.calls() + (direct ? ", around the page cache" : ""));
  const std::string plain = folder.path / "plain";
  const int fd = ::open(plain.c_str(), O_RDWR | O_CREAT, 0666);
  std::size_t round = 0;
  const auto fill = [&] { write_all(state, store, Prompt(blocks, static_cast<Token>(round)), pool, bytes); };
  if (!writes) {
    fill();
  }
  const auto plain_run = [&](bool writing) {
    by_threads(blocks, [&](std::size_t i) {
      const auto span = pool.block(i, bytes);
      const auto at = static_cast<off_t>(i * bytes);
      const ssize_t moved = writing ? ::pwrite(fd, span.data(), bytes, at) : ::pread(fd, span.data(), bytes, at);
      if (moved != static_cast<ssize_t>(bytes)) {
        state.SkipWithError("a plain call moved fewer bytes");
      }
    });
  };
  plain_run(true);
  compare_runs(
      state, pool_bytes,
      [&] {
        if (is_cold) {
          drop_pages(folder.path);
        }
        const Prompt prompt(blocks, static_cast<Token>(round));
        const auto begin = Clock::now();
        writes ? write_all(state, store, prompt, pool, bytes) : read_all(state, store, prompt, pool, bytes);
        const double time = seconds(begin);
        for (std::size_t i = 0; writes && i < blocks; ++i) {  // untimed, as the truncation of the plain file
          (void)store.erase(prompt.keys[i]);
        }
        finish(state, store);
        return time;
      },
      [&] {
        if (writes && ::ftruncate(fd, 0) != 0) {
          state.SkipWithError("the plain file cannot be truncated");
        }
        if (is_cold) {
          drop_pages(folder.path);
        }
        const auto begin = Clock::now();
        plain_run(writes);
        return seconds(begin);
      });
  (void)::close(fd);
}

/// The keys of a prompt of 128k tokens, found in a directory whose segments have a million records, of which only the
/// tables are there.
struct MillionRecords {
  static constexpr std::size_t records = 1000000;
  MillionRecords() : prompt(131072 / block_tokens, 1) {
    std::filesystem::create_directories(folder.path);
    std::uint64_t number = 0;
    for (std::uint64_t s = 0; number < records; ++s) {
      int error = 0;
      auto segment = tier::detail::Segment::create(folder.path / (std::to_string(s) + ".kvcseg"), 4096, s, error);
      if (!segment) {
        std::abort();
      }
      std::vector<tier::detail::SegmentEntry> table(4096);
      for (std::size_t i = 0; i < table.size() && number < records; ++i, ++number) {
        tier::detail::SegmentEntry& entry = table[i];
        if (number < prompt.keys.size()) {
          entry.key = prompt.all[number].key;
          entry.parent = prompt.all[number].parent;
        } else {  // the rest in chains of 100
          const std::uint64_t parent = number % 100 == 0 ? records + number : number - 1;
          entry.key = key_of(number);
          entry.parent = key_of(parent);
        }
        entry.offset = segment->data_begin() + i * 65536;
        entry.payload_bytes = 60000;
        entry.head_bytes = 240;
        entry.state = tier::detail::SegmentEntry::live;
        entry.checksum = entry.sum();
      }
      const io::ConstByteSpan bytes = std::as_bytes(std::span(table));
      if (segment->write_at(4096, std::span(&bytes, 1)) != 0 ||
          ::ftruncate(segment->fd(), static_cast<off_t>(segment->data_begin() + 4096 * 65536)) != 0) {
        std::abort();
      }
    }
  }
  static BlockKey key_of(std::uint64_t number) {
    BlockKey key;
    std::uint64_t state = number * 0x9e3779b97f4a7c15U + 1;
    for (std::size_t i = 0; i < 4; ++i) {
      state ^= state >> 31;
      state *= 0xbf58476d1ce4e5b9U;
      std::memcpy(key.bytes.data() + 8 * i, &state, 8);
    }
    return key;
  }
  Prompt prompt;
  Folder folder;
};

void index_open(benchmark::State& state) {
  const MillionRecords directory;
  for (auto _ : state) {
    const FileStore store({.folder = directory.folder.path});
    if (store.stats().records != MillionRecords::records) {
      state.SkipWithError("the store has another number of records");
    }
  }
  state.SetItemsProcessed(state.iterations() * std::int64_t{MillionRecords::records});
}
void index_lookup(benchmark::State& state, bool with_keys) {
  MillionRecords directory;
  FileStore store({.folder = directory.folder.path});
  std::vector<BlockKey> keys = directory.prompt.keys;
  std::vector<std::uint8_t> found(keys.size());
  for (auto _ : state) {
    if (with_keys) {
      KeyChain chain("benchmark");
      for (std::size_t i = 0; i < keys.size(); ++i) {
        keys[i] = chain.next(std::span(directory.prompt.tokens).subspan(i * block_tokens, block_tokens)).key;
      }
    }
    (void)store.lookup(keys, found);
    finish(state, store, {});
  }
  if (std::count(found.begin(), found.end(), 1) != std::ssize(found)) {
    state.SkipWithError("a key is not found");
  }
}

#if defined(KVC_HAVE_HIREDIS)
/// A server on loopback, or none.
struct Redis {
  explicit Redis(const std::string& folder) {
    pid = ::fork();
    if (pid == 0) {
      (void)::execlp("redis-server", "redis-server", "--port", "16399", "--bind", "127.0.0.1", "--save", "", "--dir",
                     folder.c_str(), "--logfile", "log", static_cast<char*>(nullptr));
      ::_exit(127);
    }
    for (int i = 0; i < 200; ++i) {
      tier::detail::RedisConnection connection("127.0.0.1", 16399, std::chrono::milliseconds(100));
      if (connection.connect()) {
        is_up = true;
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  ~Redis() {
    (void)::kill(pid, SIGKILL);
    (void)::waitpid(pid, nullptr, 0);
  }
  /// Requests per second by the word of redis-benchmark.
  static double of_benchmark(const char* command, std::size_t bytes, std::size_t pipeline) {
    const std::string line = "redis-benchmark -p 16399 -c 1 -n 100 --csv -t set,get -d " + std::to_string(bytes) +
                             " -P " + std::to_string(pipeline) + " 2>/dev/null";
    std::FILE* pipe = ::popen(line.c_str(), "r");
    char text[4096] = {};
    const std::size_t read = pipe != nullptr ? std::fread(text, 1, sizeof text - 1, pipe) : 0;
    if (pipe != nullptr) {
      (void)::pclose(pipe);
    }
    const char* quoted = read > 0 ? std::strstr(text, command[0] == 's' ? "\"SET\",\"" : "\"GET\",\"") : nullptr;
    return quoted != nullptr ? std::atof(quoted + 7) : 0;
  }
  pid_t pid;
  bool is_up = false;
};

void redis(benchmark::State& state, bool writes) {
  const auto bytes = static_cast<std::size_t>(state.range(0));
  const std::size_t blocks = (std::size_t{64} << 20) / bytes;
  const Folder folder;
  const Redis server(folder.path);
  if (!server.is_up) {
    state.SkipWithError("redis-server does not start (Debian: redis-server)");
    return;
  }
  Pool pool(pool_bytes);
  RedisStore store({.servers = {{"127.0.0.1", 16399}}, .pipeline = depth});
  const Prompt prompt(blocks, 1);
  write_all(state, store, prompt, pool, bytes);
  compare_runs(
      state, blocks * bytes,
      [&] {
        const auto begin = Clock::now();
        writes ? write_all(state, store, prompt, pool, bytes) : read_all(state, store, prompt, pool, bytes);
        return seconds(begin);
      },
      [&] { return static_cast<double>(blocks) / Redis::of_benchmark(writes ? "set" : "get", bytes, depth); });
}
BENCHMARK_CAPTURE(redis, write, true)->Arg(256 << 10)->Arg(2 << 20)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(redis, read, false)->Arg(256 << 10)->Arg(2 << 20)->UseManualTime()->Unit(benchmark::kMillisecond);
#endif

BENCHMARK_CAPTURE(host, demote, true)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(host, promote, false)->UseManualTime()->Unit(benchmark::kMillisecond);
/// All cases of one way to move the bytes of files.
void add_file_cases(const std::string& suffix, FileCalls calls, bool direct) {
  const auto add = [&](const char* name, bool writes, bool is_cold) {
    benchmark::RegisterBenchmark((std::string("file/") + name + suffix).c_str(),
                                 [=](benchmark::State& state) { file(state, writes, is_cold, calls, direct); })
        ->Arg(256 << 10)
        ->Arg(2 << 20)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  };
  add("write", true, false);
  add("read", false, false);
  add("read_cold", false, true);
}
[[maybe_unused]] const bool has_file_cases = [] {
  add_file_cases("", FileCalls::plain, false);
  add_file_cases("/io_uring", FileCalls::io_uring, false);
  add_file_cases("/direct", FileCalls::plain, true);
  add_file_cases("/io_uring_direct", FileCalls::io_uring, true);
  return true;
}();
BENCHMARK(index_open)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(index_lookup, without_keys, false)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(index_lookup, with_keys, true)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();

#else
#include <cstdio>

int main() {
  std::puts("skipped: this needs xxhash.h and libsodium (Debian: libxxhash-dev, libsodium-dev)");
  return 0;
}
#endif
