// The costs of bookkeeping: match, open, append, commit, fork, close and evict, in nanoseconds, by cached blocks and
// prompt length. No keys or values are involved: a policy is integers.
//
// Where there is a lower bound it is measured by turns with the operation, in the same loop, and the counter `vs_bound`
// is the ratio of the two medians: machines are shared, and their speed varies.
//
//   match, open         bound: chained XXH3 of each block and an open-addressing table of hashes, which compares no
//                       token and so is not exact; the counter `vs_memcmp` is beside comparing the prompt's tokens with
//                       a copy
//   step                a token more for each sequence of a batch, its tables, commit
//   fork                bound: copying the block table and counting the references
//   commit, evict, ...  ns per block
#include <benchmark/benchmark.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "kvc/batch.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/eviction/reuse_hazard.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/policy/synchronized.hpp"
#include "machine.hpp"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#if __has_include(<xxhash.h>)
#define XXH_INLINE_ALL
#include <xxhash.h>
#define KVC_HAVE_XXHASH
#endif

namespace {
using namespace kvc;
using Clock = std::chrono::steady_clock;
constexpr Pos block_tokens = 16;

std::vector<Token> random_tokens(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Token> tokens(count);
  for (Token& token : tokens) {
    token = static_cast<Token>(random() % 128'000);
  }
  return tokens;
}

double median(std::vector<double>& values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Times of operations that are measured by turns.
class Turns {
 public:
  template <class F>
  double time(std::size_t which, F&& f) {
    const auto start = Clock::now();
    f();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    times_.resize(std::max(times_.size(), which + 1));
    times_[which].push_back(seconds);
    return seconds;
  }
  /// 0 if it was not timed: Google Benchmark begins with a run of one iteration.
  [[nodiscard]] double seconds(std::size_t which) {
    return which < times_.size() && !times_[which].empty() ? median(times_[which]) : 0.0;
  }

 private:
  std::vector<std::vector<double>> times_;
};

/// Bytes that the program has allocated, where the C library counts them; else 0.
double allocated_bytes() {
#ifdef __GLIBC__
  const struct mallinfo2 info = mallinfo2();
  return static_cast<double>(info.uordblks) + static_cast<double>(info.hblkhd);
#else
  return 0;
#endif
}

/// Makes a prompt's blocks cached.
template <class P>
void cache_prompt(P& policy, const std::vector<Token>& prompt) {
  const Opened opened = *policy.try_open(prompt);
  const auto rest = std::span(prompt).subspan(static_cast<std::size_t>(opened.cached));
  (void)policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest);
  policy.commit(opened.seq);
  policy.close(opened.seq);
}

#ifdef KVC_HAVE_XXHASH
/// The way of others: a prefix is the hash of its last block, chained, and found by that alone.
class HashOnly {
 public:
  explicit HashOnly(std::size_t blocks) : buckets_(std::bit_ceil(2 * blocks)) {}

  void insert(std::span<const Token> prompt) {
    walk(prompt, [&](std::uint64_t hash) {
      std::size_t i = hash & (buckets_.size() - 1);
      while (buckets_[i].value != 0 && buckets_[i].hash != hash) {
        i = (i + 1) & (buckets_.size() - 1);
      }
      buckets_[i] = {hash, ++values_};
      return true;
    });
  }
  /// Blocks found; their values are written to `found`.
  std::size_t match(std::span<const Token> prompt, std::vector<std::int32_t>& found) const {
    found.clear();
    walk(prompt, [&](std::uint64_t hash) {
      std::size_t i = hash & (buckets_.size() - 1);
      while (buckets_[i].value != 0 && buckets_[i].hash != hash) {
        i = (i + 1) & (buckets_.size() - 1);
      }
      if (buckets_[i].value == 0) {
        return false;
      }
      found.push_back(buckets_[i].value);
      return true;
    });
    return found.size();
  }

 private:
  struct Bucket {
    std::uint64_t hash = 0;
    std::int32_t value = 0;
  };
  template <class F>
  static void walk(std::span<const Token> prompt, F&& f) {
    std::uint64_t hash = 0;
    for (std::size_t i = 0; i + block_tokens <= prompt.size(); i += block_tokens) {
      hash = XXH3_64bits_withSeed(&prompt[i], block_tokens * sizeof(Token), hash);
      if (!f(hash)) {
        return;
      }
    }
  }
  std::vector<Bucket> buckets_;
  std::int32_t values_ = 0;
};
#endif

/// Prompts that fill a pool, and the pool.
template <class P>
struct Filled {
  std::vector<std::vector<Token>> prompts;
  P policy;

  Filled(Index blocks, Pos prompt_tokens) : policy({.blocks = blocks, .block_tokens = block_tokens}) {
    const Index count = std::max<Index>(1, blocks / (prompt_tokens / block_tokens));
    for (Index i = 0; i < count; ++i) {
      prompts.push_back(random_tokens(static_cast<std::size_t>(prompt_tokens), static_cast<std::uint64_t>(i) + 1));
      cache_prompt(policy, prompts.back());
    }
  }
};

/// A prompt that is all cached: what match_length, or try_open and close, cost per prompt.
template <bool open>
void match(benchmark::State& state) {
  const Index blocks = state.range(0);
  const auto tokens = static_cast<Pos>(state.range(1));
  Filled<PrefixShared<>> filled(blocks, tokens);
  const std::size_t bytes = static_cast<std::size_t>(tokens) * sizeof(Token);
  const auto copies = filled.prompts;
#ifdef KVC_HAVE_XXHASH
  HashOnly hash_only(static_cast<std::size_t>(blocks));
  for (const auto& prompt : filled.prompts) {
    hash_only.insert(prompt);
  }
#endif
  std::vector<std::int32_t> found;
  found.reserve(static_cast<std::size_t>(blocks));
  Turns turns;
  std::size_t next = 0;
  for (auto _ : state) {
    const std::vector<Token>& prompt = filled.prompts[next];
    Pos cached = 0;
    state.SetIterationTime(turns.time(0, [&] {
      if constexpr (open) {
        const Opened opened = *filled.policy.try_open(prompt);
        cached = opened.cached;
        filled.policy.close(opened.seq);
      } else {
        cached = filled.policy.match_length(prompt);
      }
    }));
    if (cached != tokens - 1) {
      state.SkipWithError("the prompt was not found");
      break;
    }
    turns.time(1, [&] { benchmark::DoNotOptimize(std::memcmp(prompt.data(), copies[next].data(), bytes)); });
#ifdef KVC_HAVE_XXHASH
    turns.time(2, [&] { benchmark::DoNotOptimize(hash_only.match(prompt, found)); });
    if (static_cast<Pos>(found.size()) != tokens / block_tokens) {
      state.SkipWithError("the bound did not find the prompt");
      break;
    }
#endif
    next = (next + 1) % filled.prompts.size();
  }
  const double seconds = turns.seconds(0);
  state.counters["ns_per_block"] = 1e9 * seconds / (tokens / block_tokens);
  state.counters["vs_memcmp"] = seconds / turns.seconds(1);
#ifdef KVC_HAVE_XXHASH
  state.counters["bound_us"] = 1e6 * turns.seconds(2);
  state.counters["vs_bound"] = seconds / turns.seconds(2);
#endif
}

/// One token, extend and commit, to each of 64 sequences by turns, as continuous batching does. Of 16 rounds the first
/// takes a block for each sequence, and the last fills it (which caches it, where prefixes are shared).
template <class P>
void append(benchmark::State& state) {
  constexpr std::size_t sequences = 64;
  const Pos most = 1024;
  P policy({.blocks = 2 * sequences * most / block_tokens, .block_tokens = block_tokens});
  std::vector<SeqId> open;
  for (std::size_t i = 0; i < sequences; ++i) {
    open.push_back(policy.try_open()->seq);
  }
  std::vector<Token> tokens = random_tokens(sequences, 1);
  Turns turns;
  Pos length = 0;
  for (auto _ : state) {
    if (length == most) {
      for (const SeqId seq : open) {
        policy.truncate(seq, 0);
      }
      if constexpr (kvc::ClearsCache<P>) {
        policy.clear();  // so that none has to be evicted: that is measured below
      }
      length = 0;
      tokens = random_tokens(sequences, static_cast<std::uint64_t>(tokens.front()));
    }
    const std::size_t kind = length % block_tokens == 0 ? 1 : length % block_tokens == block_tokens - 1 ? 2 : 0;
    state.SetIterationTime(turns.time(kind, [&] {
      for (std::size_t i = 0; i < sequences; ++i) {
        benchmark::DoNotOptimize(policy.try_extend(open[i], 1, std::span(&tokens[i], 1)));
        policy.commit(open[i]);
      }
    }));
    ++length;
  }
  state.counters["ns_inside_block"] = 1e9 * turns.seconds(0) / sequences;
  state.counters["ns_takes_block"] = 1e9 * turns.seconds(1) / sequences;
  state.counters["ns_fills_block"] = 1e9 * turns.seconds(2) / sequences;
}

/// Blocks that become cached: extend by a prompt of new tokens, commit, close, in a pool that is full of others, so
/// that each block evicts one.
template <class E>
void commit_and_evict(benchmark::State& state) {
  const Index blocks = state.range(0);
  const Pos tokens = 4096;
  const double before = allocated_bytes();
  PrefixShared<E> policy({.blocks = blocks, .block_tokens = block_tokens});
  const double bytes = allocated_bytes() - before;
  const std::size_t prompts = static_cast<std::size_t>(2 * blocks * block_tokens / tokens);
  std::vector<Token> prompt = random_tokens(static_cast<std::size_t>(tokens), 1);
  for (std::size_t i = 0; i < prompts; ++i) {
    prompt[0] = static_cast<Token>(i);  // another first block is another prefix
    cache_prompt(policy, prompt);
  }
  Turns turns;
  Token next = static_cast<Token>(prompts);
  for (auto _ : state) {
    prompt[0] = next++;
    Opened opened{};
    double seconds = turns.time(0, [&] { opened = *policy.try_open(prompt); });
    seconds += turns.time(1, [&] { benchmark::DoNotOptimize(policy.try_extend(opened.seq, tokens, prompt)); });
    seconds += turns.time(2, [&] { policy.commit(opened.seq); });
    seconds += turns.time(3, [&] { policy.close(opened.seq); });
    state.SetIterationTime(seconds);
  }
  const double per_block = 1e9 / (tokens / block_tokens);
  state.counters["bytes_per_block"] = bytes / static_cast<double>(blocks);
  state.counters["open_ns"] = 1e9 * turns.seconds(0);
  state.counters["evict_ns_per_block"] = per_block * turns.seconds(1);
  state.counters["commit_ns_per_block"] = per_block * turns.seconds(2);
  state.counters["close_ns_per_block"] = per_block * turns.seconds(3);
}

/// A fork of a sequence of n blocks, beside copying a table of n blocks and counting n references.
template <class P>
void fork(benchmark::State& state) {
  const Index blocks = state.range(0);
  const auto tokens = static_cast<Pos>(blocks * block_tokens);
  P policy({.blocks = blocks + 1, .block_tokens = block_tokens});
  const std::vector<Token> prompt = random_tokens(static_cast<std::size_t>(tokens), 1);
  const SeqId seq = policy.try_open()->seq;
  (void)policy.try_extend(seq, tokens, prompt);
  policy.commit(seq);

  const auto table = policy.block_table(seq);
  std::vector<std::int32_t> references(static_cast<std::size_t>(policy.blocks()), 1);
  std::vector<BlockId> copy;
  copy.reserve(table.size());
  Turns turns;
  policy.close(policy.try_fork(seq, tokens)->seq);  // so that neither allocates
  for (auto _ : state) {
    SeqId forked;
    state.SetIterationTime(turns.time(0, [&] { forked = policy.try_fork(seq, tokens)->seq; }));
    turns.time(1, [&] { policy.close(forked); });
    turns.time(2, [&] {
      copy.assign(table.begin(), table.end());
      for (const BlockId block : copy) {
        ++references[static_cast<std::size_t>(block)];
      }
      benchmark::ClobberMemory();
    });
    copy.clear();
  }
  state.counters["bound_us"] = 1e6 * turns.seconds(2);
  state.counters["vs_bound"] = turns.seconds(0) / turns.seconds(2);
  state.counters["close_us"] = 1e6 * turns.seconds(1);
}

/// The bookkeeping of one step of a server: a token more for each of `sequences`, which have 128 to 4096 tokens, the
/// tables of the batch, commit.
template <class P>
void step(benchmark::State& state) {
  const auto sequences = static_cast<std::size_t>(state.range(0));
  constexpr Pos longest = 4096, room = 1024;
  P policy({.blocks = static_cast<Index>(sequences) * (longest + room) / block_tokens, .block_tokens = block_tokens});
  std::vector<SeqId> seqs;
  std::vector<Pos> lengths;
  for (std::size_t i = 0; i < sequences; ++i) {
    const auto length = static_cast<Pos>(128 + i * 97 % sequences * (longest - 128) / sequences);
    const std::vector<Token> prompt = random_tokens(static_cast<std::size_t>(length), i);
    seqs.push_back(policy.try_open(prompt)->seq);
    (void)policy.try_extend(seqs.back(), length, prompt);
    policy.commit(seqs.back());
    lengths.push_back(length);
  }
  const std::vector<Pos> queries(sequences, 1);
  const std::vector<Token> tokens = random_tokens(room, 1);
  Turns turns;
  for (std::size_t done = 0; auto _ : state) {
    const std::span<const Token> token(&tokens[done % room], 1);
    state.SetIterationTime(turns.time(0, [&] {
      for (const SeqId seq : seqs) {
        (void)policy.try_extend(seq, 1, token);
      }
      benchmark::DoNotOptimize(make_batch(policy, std::span<const SeqId>(seqs), std::span<const Pos>(queries)));
      for (const SeqId seq : seqs) {
        policy.commit(seq);
      }
    }));
    if (++done % room == 0) {
      for (std::size_t i = 0; i < sequences; ++i) {
        policy.truncate(seqs[i], lengths[i]);
      }
    }
  }
  state.counters["step_us"] = 1e6 * turns.seconds(0);
}

/// Independent policies, each with a lock and a share of the pool of its own, chosen by the first block of a prompt.
/// Stands for a sharded front; Synchronized is measured beside it.
template <class P>
class Sharded {
 public:
  struct Seq {
    std::size_t shard;
    SeqId seq;
  };
  Sharded(const typename P::Config& config, std::size_t shards) {
    typename P::Config part = config;
    part.blocks = config.blocks / static_cast<Index>(shards);
    for (std::size_t i = 0; i < shards; ++i) {
      shards_.push_back(std::make_unique<Synchronized<P, std::mutex>>(part));
    }
  }
  Synchronized<P, std::mutex>& of(std::span<const Token> prompt) {
    return *shards_[hash_(0, prompt.first(block_tokens)) % shards_.size()];
  }

 private:
  ChainHash hash_;
  std::vector<std::unique_ptr<Synchronized<P, std::mutex>>> shards_;
};

/// Requests of several threads at once: how much of the prompt is cached (a router asks), open, compute what is
/// missing, close. Nine of ten prompts of 2048 tokens are among 64 that come again.
template <class Choose>
void requests(benchmark::State& state, Choose choose) {
  constexpr std::size_t tokens = 2048;
  std::mt19937_64 random(static_cast<std::uint64_t>(state.thread_index()) + 1);
  static const std::vector<std::vector<Token>> common = [] {
    std::vector<std::vector<Token>> prompts;
    for (std::uint64_t i = 0; i < 64; ++i) {
      prompts.push_back(random_tokens(tokens, i));
    }
    return prompts;
  }();
  std::vector<Token> own = random_tokens(tokens, random());
  for (auto _ : state) {
    const bool is_new = random() % 10 == 0;
    if (is_new) {
      own[0] = static_cast<Token>(random());
    }
    const std::vector<Token>& prompt = is_new ? own : common[random() % common.size()];
    auto& policy = choose(prompt);
    benchmark::DoNotOptimize(policy.match_length(prompt));
    const Opened opened = *policy.try_open(prompt);
    const auto rest = std::span(prompt).subspan(static_cast<std::size_t>(opened.cached));
    if (policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest)) {
      policy.commit(opened.seq);
    }
    policy.close(opened.seq);
  }
  state.counters["requests_per_s"] =
      benchmark::Counter(static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

template <class Mutex>
void requests_synchronized(benchmark::State& state) {
  static Synchronized<PrefixShared<>, Mutex> policy({.blocks = 32'768, .block_tokens = block_tokens});
  requests(state, [](const auto&) -> auto& { return policy; });
}
/// Routers that ask how much of a prompt is cached, and whether there is room for it; nobody writes.
template <class Mutex>
void readers(benchmark::State& state) {
  constexpr std::size_t tokens = 2048;
  static Synchronized<PrefixShared<>, Mutex> policy({.blocks = 32'768, .block_tokens = block_tokens});
  static const std::vector<Token> prompt = [] {
    std::vector<Token> all = random_tokens(tokens, 1);
    const Opened opened = *policy.try_open(all);
    (void)policy.try_extend(opened.seq, static_cast<Pos>(tokens), all);
    policy.commit(opened.seq);
    policy.close(opened.seq);
    return all;
  }();
  const auto asked = std::span<const Token>(prompt).first(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) {
    benchmark::DoNotOptimize(policy.match_length(asked));
    benchmark::DoNotOptimize(policy.admission(asked));
  }
  state.counters["asked_per_s"] =
      benchmark::Counter(2 * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
void requests_sharded(benchmark::State& state) {
  static Sharded<PrefixShared<>> policies({.blocks = 32'768, .block_tokens = block_tokens}, 8);
  requests(state, [](const auto& prompt) -> auto& { return policies.of(prompt); });
}

void register_all() {
  const auto add = [](const std::string& name, auto function, std::vector<std::int64_t> arguments) {
    benchmark::RegisterBenchmark(name.c_str(), function)
        ->Args(arguments)
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  };
  for (const Index blocks : {10'000, 262'144, 1'000'000, 10'000'000}) {
    add("match/cached:" + std::to_string(blocks) + "/prompt:131072", match<false>, {blocks, 131'072});
  }
  for (const Pos tokens : {1'024, 16'384}) {
    add("match/cached:262144/prompt:" + std::to_string(tokens), match<false>, {262'144, tokens});
  }
  for (const Index blocks : {10'000, 262'144}) {
    add("open_close/cached:" + std::to_string(blocks) + "/prompt:131072", match<true>, {blocks, 131'072});
  }
  add("append/paged", append<Paged>, {});
  add("append/prefix-shared", append<PrefixShared<>>, {});
  add("step/paged/sequences:256", step<Paged>, {256});
  add("step/prefix-shared/sequences:256", step<PrefixShared<>>, {256});
  add("fork/paged/blocks:8192", fork<Paged>, {8192});
  add("fork/prefix-shared/blocks:8192", fork<PrefixShared<>>, {8192});
  for (const Index blocks : {10'000, 100'000, 1'000'000}) {
    add("turnover/hazard/cached:" + std::to_string(blocks), commit_and_evict<ReuseHazard>, {blocks});
    add("turnover/lru/cached:" + std::to_string(blocks), commit_and_evict<Lru>, {blocks});
  }
  for (const int threads : {1, 2, 4}) {
    using Function = void (*)(benchmark::State&);
    const std::pair<const char*, Function> fronts[] = {
        {"requests/shared_adaptive", requests_synchronized<SharedAdaptiveMutex>},
        {"requests/adaptive", requests_synchronized<AdaptiveMutex>},
        {"requests/shared_mutex", requests_synchronized<std::shared_mutex>},
        {"requests/mutex", requests_synchronized<std::mutex>},
        {"requests/sharded:8", requests_sharded}};
    for (const auto& [name, function] : fronts) {
      benchmark::RegisterBenchmark(name, function)->Threads(threads)->UseRealTime()->Unit(benchmark::kMicrosecond);
    }
    const std::pair<const char*, Function> locks[] = {{"readers/shared_adaptive", readers<SharedAdaptiveMutex>},
                                                      {"readers/adaptive", readers<AdaptiveMutex>},
                                                      {"readers/shared_mutex", readers<std::shared_mutex>}};
    for (const auto& [name, function] : locks) {
      benchmark::RegisterBenchmark(name, function)
          ->ArgName("tokens")
          ->Arg(64)
          ->Arg(2048)
          ->Threads(threads)
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
}
}  // namespace

int main(int argc, char** argv) {
  register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 1;
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
