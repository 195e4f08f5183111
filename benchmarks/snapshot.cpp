// Saving and loading a cache: bandwidth beside that of memcpy of the same bytes, in the same run.
//
//   memory    to and from a buffer that is there: beside memcpy between two buffers that are there
//   file      to and from a file in a memory file system (/dev/shm, or the folder that KVC_SNAPSHOT_FOLDER names):
//             beside memcpy to and from a mapped file there, which is new each time as a snapshot is. Both include
//             the time in which the system finds pages for a file, or maps them.
//
// Counters: `of_memcpy` is the bandwidth beside its memcpy, `of_warm_memcpy` beside memcpy between two buffers that are
// there, both as ratios of medians of times that are measured by turns; `bytes_per_second` is of rows.
//
// The cache is 32 layers of 8 heads of 128 elements of 16 bits, in blocks of 16 tokens: 64 KiB of a block in a layer.
#if __has_include(<xxhash.h>)

#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/snapshot/snapshot.hpp"

namespace {
using namespace kvc;
using Clock = std::chrono::steady_clock;
constexpr Shape shape{.layers = 32, .kv_heads = 8, .key_dim = 128};
constexpr Pos tokens = 4096;  // 512 MiB of rows

template <class P>
typename P::Config pool(Pos block_tokens) {
  if constexpr (std::same_as<P, Contiguous>) {
    return {.sequences = 1, .max_tokens = tokens};
  } else {
    return {.blocks = tokens / block_tokens, .block_tokens = block_tokens};
  }
}

/// Memory that is there, in large pages.
class Warm {
 public:
  explicit Warm(std::size_t bytes) : buffer_(HostSpace{}, bytes) { std::memset(buffer_.data(), 1, bytes); }
  [[nodiscard]] std::byte* data() noexcept { return buffer_.data(); }
  [[nodiscard]] std::size_t size() const noexcept { return buffer_.size(); }

 private:
  Buffer<HostSpace> buffer_;
};

/// Writes to memory that is there.
class WarmSink final : public io::ByteSink {
 public:
  explicit WarmSink(Warm& to) : to_(&to) {}
  void write(std::span<const std::span<const std::byte>> spans) override {
    for (const auto span : spans) {
      std::memcpy(to_->data() + size_, span.data(), span.size());
      size_ += span.size();
    }
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  Warm* to_;
  std::size_t size_ = 0;
};

class Times {
 public:
  template <class F>
  double add(F&& f) {
    const auto start = Clock::now();
    f();
    seconds_.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    return seconds_.back();
  }
  [[nodiscard]] double median() {
    const auto middle = seconds_.begin() + std::ssize(seconds_) / 2;
    std::nth_element(seconds_.begin(), middle, seconds_.end());
    return *middle;
  }

 private:
  std::vector<double> seconds_;
};

std::string folder() {
  const char* given = std::getenv("KVC_SNAPSHOT_FOLDER");
  return given != nullptr ? given : "/dev/shm";
}

/// The rows, as one mapped file that was not there before.
void copy_to_new_file(const std::string& path, const std::byte* from, std::size_t bytes) {
  const io::detail::FileHandle file(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  void* to = ::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0
                 ? MAP_FAILED
                 : ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file.get(), 0);
  if (to == MAP_FAILED) {
    std::abort();
  }
  std::memcpy(to, from, bytes);
  (void)::munmap(to, bytes);
}
void copy_from_file(const std::string& path, std::byte* to, std::size_t bytes) {
  const io::detail::FileHandle file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  void* from = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, file.get(), 0);
  if (from == MAP_FAILED) {
    std::abort();
  }
  std::memcpy(to, from, bytes);
  (void)::munmap(from, bytes);
}

enum class Where { memory, file };

template <class From, class To>
void snapshot(benchmark::State& state, Where where, bool loads, Pos block_tokens, Pos to_block_tokens) {
  using Source = KvCache<Eigen::bfloat16, From>;
  using Target = KvCache<Eigen::bfloat16, To>;
  Source from(shape, pool<From>(block_tokens));
  Target to(shape, pool<To>(to_block_tokens));
  const SeqId seq = from.open();
  from.commit(from.extend(seq, tokens));
  const auto bytes = static_cast<std::size_t>(from.bytes_per_token() * tokens);
  std::memset(static_cast<void*>(from.data()), 1, bytes);
  std::memset(static_cast<void*>(to.data()), 1, bytes);
  Warm other(bytes + (std::size_t{1} << 20));
  const auto* const rows = reinterpret_cast<const std::byte*>(from.data());
  const std::string path = folder() + "/kvc_benchmark_" + std::to_string(::getpid());
  const std::string plain = path + ".plain";
  const auto save = [&]() -> std::size_t {
    if (where == Where::file) {
      snapshot::save(from, path);
      return 0;
    }
    WarmSink sink(other);
    snapshot::save(from, sink);
    return sink.size();
  };
  const std::size_t saved = save();
  copy_to_new_file(plain, rows, bytes);
  Times own;
  Times copy;
  Times warm;
  Warm second(bytes);
  for (auto _ : state) {
    state.SetIterationTime(own.add([&] {
      if (!loads) {
        (void)save();
      } else if (where == Where::file) {
        const snapshot::Loaded loaded = snapshot::load(to, path);
        to.close(loaded.sequences[0]);
      } else {
        io::MemorySource source({other.data(), saved});
        const snapshot::Loaded loaded = snapshot::load(to, source);
        to.close(loaded.sequences[0]);
      }
    }));
    warm.add([&] { std::memcpy(second.data(), rows, bytes); });
    benchmark::DoNotOptimize(second.data());
    if (where == Where::memory) {
      copy = warm;
    } else if (loads) {
      copy.add([&] { copy_from_file(plain, second.data(), bytes); });
    } else {
      (void)::unlink(plain.c_str());
      copy.add([&] { copy_to_new_file(plain, rows, bytes); });
    }
  }
  (void)::unlink(path.c_str());
  (void)::unlink(plain.c_str());
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
  state.counters["of_memcpy"] = copy.median() / own.median();
  state.counters["of_warm_memcpy"] = warm.median() / own.median();
}

void snapshots() {
  const auto add = [](const char* name, auto function, Where where, bool loads, Pos block_tokens, Pos to_block_tokens) {
    benchmark::RegisterBenchmark(
        name, [=](benchmark::State& state) { function(state, where, loads, block_tokens, to_block_tokens); })
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond)
        ->Iterations(9);
  };
  constexpr auto paged = [](auto&&... args) { snapshot<Paged, Paged>(args...); };
  constexpr auto contiguous = [](auto&&... args) { snapshot<Contiguous, Contiguous>(args...); };
  constexpr auto to_paged = [](auto&&... args) { snapshot<Contiguous, Paged>(args...); };
  for (const bool loads : {false, true}) {
    const std::string what = loads ? "load" : "save";
    for (const Where where : {Where::memory, Where::file}) {
      const std::string place = where == Where::file ? "/file" : "/memory";
      add((what + "/paged16" + place).c_str(), paged, where, loads, 16, 16);
      add((what + "/contiguous" + place).c_str(), contiguous, where, loads, 16, 16);
      if (loads) {
        add((what + "/paged16_as_paged32" + place).c_str(), paged, where, loads, 16, 32);
        add((what + "/contiguous_as_paged16" + place).c_str(), to_paged, where, loads, 16, 16);
      }
    }
  }
}
}  // namespace

int main(int argc, char** argv) {
  snapshots();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

#else

#include <cstdio>

int main() {
  std::puts("benchmarks/snapshot needs xxhash.h (Debian: libxxhash-dev)");
  return 0;
}

#endif
