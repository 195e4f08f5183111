// Sequences that go from one cache to another within a process: bandwidth beside that of memcpy of the same bytes by as
// many threads, in the same run. One thread sends, another receives; it is the receiver that copies.
//
//   transfer/...      one sequence of 4096 tokens, from the offer until the sender knows that it is complete
//   shared_prefix/N   of whose tokens the receiver has N in blocks that it keeps: those are not sent
//
// Counters: `of_memcpy` is the bandwidth beside memcpy between two buffers that are there, by one thread, as the ratio
// of medians of times that are measured by turns; `sent` is MiB of rows that were sent.
//
// The cache is 32 layers of 8 heads of 128 elements of 16 bits, in blocks of 16 tokens: 64 KiB of a block in a layer.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/transfer/receiver.hpp"
#include "kvc/transfer/sender.hpp"
#include "kvc/transport/in_process.hpp"

namespace {
using namespace kvc;
using Clock = std::chrono::steady_clock;
using Endpoint = transport::InProcess::Endpoint;
constexpr Shape shape{.layers = 32, .kv_heads = 8, .key_dim = 128};
constexpr Pos tokens = 4096;  // 512 MiB of rows

template <class P>
typename P::Config pool(Pos block_tokens) {
  if constexpr (std::same_as<P, Contiguous>) {
    return {.sequences = 1, .max_tokens = tokens};
  } else {
    return {.blocks = tokens / block_tokens + 1, .block_tokens = block_tokens};
  }
}

double median(std::vector<double> seconds) {
  const auto middle = seconds.begin() + std::ssize(seconds) / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

/// A thread that takes sequences to a cache and closes them.
template <class Cache>
class ReceiverThread {
 public:
  ReceiverThread(transport::InProcess& hub, Cache& cache) : endpoint_(hub, 1), receiver_(cache, endpoint_) {
    thread_ = std::jthread([this, &cache](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        receiver_.poll();
        while (const auto got = receiver_.next()) {
          if (got->outcome != transfer::Outcome::complete) {
            std::abort();
          }
          cache.close(got->seq);
        }
        (void)endpoint_.wait(Clock::now() + std::chrono::milliseconds(10));
      }
    });
  }

 private:
  Endpoint endpoint_;
  transfer::Receiver<Cache, Endpoint> receiver_;
  std::jthread thread_;
};

template <class From, class To>
void transfer(benchmark::State& state, Pos block_tokens, Pos to_block_tokens, Index message_bytes, Pos shared) {
  using Source = KvCache<Eigen::bfloat16, From>;
  using Target = KvCache<Eigen::bfloat16, To>;
  Source from(shape, pool<From>(block_tokens));
  Target to(shape, pool<To>(to_block_tokens));
  std::vector<Token> prompt(tokens);
  std::iota(prompt.begin(), prompt.end(), 1);
  const SeqId seq = from.open();
  from.commit(from.extend(seq, prompt));
  const auto bytes = static_cast<std::size_t>(from.bytes_per_token() * tokens);
  std::memset(static_cast<void*>(from.data()), 1, bytes);
  std::memset(static_cast<void*>(to.data()), 1, bytes);
  const std::vector<std::byte> source(bytes, std::byte{1});
  std::vector<std::byte> target(bytes, std::byte{2});
  std::vector<double> own;
  std::vector<double> copy;
  std::uint64_t sent_bytes = 0;
  transport::InProcess hub({});
  Endpoint endpoint(hub, 0);
  transfer::Sender sender(from, endpoint, {.message_bytes = message_bytes});
  ReceiverThread<Target> receiver(hub, to);
  const auto send = [&](std::span<const Token> known_tokens) {
    transfer::Offer offer;
    offer.to = 1;
    offer.seq = seq;
    offer.tokens = known_tokens;
    sender.finish(sender.offer(offer));
    (void)transport::wait_for(endpoint, transport::no_deadline, [&] {
      sender.poll();
      return sender.transfers() == 0;
    });
    const transfer::Sent sent = sender.next().value();
    transfer::require_complete(sent);
    sent_bytes = sent.bytes;
  };
  for (auto _ : state) {
    if (shared > 0) {  // what is cached there is to begin like this one, up to `shared`
      static Token next = 10'000'000;
      std::iota(prompt.begin() + shared, prompt.end(), next);
      next += 5000;
    }
    auto start = Clock::now();
    send(shared > 0 ? std::span<const Token>(prompt) : std::span<const Token>());
    own.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    state.SetIterationTime(own.back());
    start = Clock::now();
    std::memcpy(target.data(), source.data(), bytes);
    benchmark::DoNotOptimize(target.data());
    copy.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
  state.counters["of_memcpy"] = median(copy) / median(own);
  state.counters["median_ms"] = 1e3 * median(own);
  state.counters["sent"] = static_cast<double>(sent_bytes) / (1 << 20);
}

template <class From, class To>
void add(const std::string& name, Pos block_tokens, Pos to_block_tokens, Index message_bytes = Index{2} << 20,
         Pos shared = 0) {
  benchmark::RegisterBenchmark(
      name.c_str(),
      [=](benchmark::State& state) { transfer<From, To>(state, block_tokens, to_block_tokens, message_bytes, shared); })
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond)
      ->Iterations(9);
}
}  // namespace

int main(int argc, char** argv) {
  for (const Index kib : {256, 2048, 16384}) {
    add<Paged, Paged>("transfer/paged16/message_kib:" + std::to_string(kib), 16, 16, kib << 10);
  }
  add<Paged, Paged>("transfer/paged16_as_paged32", 16, 32);
  add<Paged, Paged>("transfer/paged16_as_paged64", 16, 64);
  add<Paged, Paged>("transfer/paged64_as_paged16", 64, 16);
  add<Paged, Paged>("transfer/paged32_as_paged128", 32, 128);
  add<Paged, Contiguous>("transfer/paged16_as_contiguous", 16, 16);
  add<Contiguous, Paged>("transfer/contiguous_as_paged16", 16, 16);
  for (const Pos shared : {1024, 2048, 3072}) {
    add<Paged, PrefixShared<>>("shared_prefix/" + std::to_string(shared), 16, 16, Index{2} << 20, shared);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
