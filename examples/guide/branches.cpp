// One sequence becomes several, or goes back: speculative decoding, parallel samples, beam search. Bookkeeping only.
#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

#include "../usage.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

namespace {

using Cache = kvc::KvCache<float, kvc::Paged>;
constexpr kvc::Shape shape{.layers = 2, .kv_heads = 2, .key_dim = 64};

kvc::SeqId prompt_of(Cache& cache, kvc::Pos tokens) {
  const kvc::SeqId seq = cache.open();
  cache.commit(cache.extend(seq, tokens));
  return seq;
}

/// The draft model guesses four tokens, the target model accepts two of them.
void speculate(Cache& cache) {
  const kvc::SeqId seq = prompt_of(cache, 20);
  auto guesses = cache.extend(seq, 4);  // one prefill of the target model checks all four
  const kvc::Pos accepted = 2;
  const kvc::Pos length = guesses.range().first + accepted;
  cache.commit(std::move(guesses));
  cache.truncate(seq, length);
  std::printf("speculation: %d tokens\n", cache.length(seq));

  {
    auto step = cache.extend(seq, 4);
    // An exception, a cancelled request: the destructor of an uncommitted step takes it back.
  }
  std::printf("not committed: %d tokens\n", cache.length(seq));
  cache.close(seq);
}

/// n answers to one prompt share its blocks.
void sample(Cache& cache) {
  const kvc::SeqId seq = prompt_of(cache, 40);
  std::vector<kvc::SeqId> answers = {seq, cache.fork(seq), cache.fork(seq), cache.fork(seq)};
  for (const kvc::SeqId answer : answers) {
    cache.commit(cache.extend(answer, 10));
  }
  const kvc::Stats stats = cache.stats();
  std::printf("4 samples of 40 + 10 tokens: %ld slots in use, %ld rows copied on write\n",
              static_cast<long>(stats.tokens_stored), static_cast<long>(stats.copied_tokens));
  for (const kvc::SeqId answer : answers) {
    cache.close(answer);
  }
}

/// Each step keeps the best `width` continuations. Where two of them continue one beam, it is forked; a beam that
/// nothing continues is closed.
void search(Cache& cache) {
  struct Beam {
    kvc::SeqId seq;
    double score;
  };
  const std::size_t width = 3;
  std::vector<Beam> beams = {{prompt_of(cache, 20), 0.0}};
  for (int step = 0; step < 8; ++step) {
    std::vector<Beam> next;
    for (const Beam& beam : beams) {
      for (int token = 0; token < 2; ++token) {  // the likeliest tokens of this beam; a model would say so
        next.push_back({beam.seq, beam.score - (token == 0 ? 0.1 : 0.7)});
      }
    }
    std::stable_sort(next.begin(), next.end(), [](const Beam& a, const Beam& b) { return a.score > b.score; });
    next.resize(std::min(next.size(), width));

    std::vector<kvc::SeqId> taken;
    for (Beam& beam : next) {  // the first continuation takes the sequence, others fork it before it grows
      const bool again = std::find(taken.begin(), taken.end(), beam.seq) != taken.end();
      taken.push_back(beam.seq);
      beam.seq = again ? cache.fork(beam.seq) : beam.seq;
    }
    for (const Beam& old : beams) {
      if (std::find(taken.begin(), taken.end(), old.seq) == taken.end()) {
        cache.close(old.seq);
      }
    }
    for (const Beam& beam : next) {
      cache.commit(cache.extend(beam.seq, 1));
    }
    beams = std::move(next);
  }
  const kvc::Stats stats = cache.stats();
  std::printf("%zu beams of %d tokens in %ld blocks\n", beams.size(), cache.length(beams[0].seq),
              static_cast<long>(stats.blocks_referenced));
  for (const Beam& beam : beams) {
    cache.close(beam.seq);
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run_example(argc, argv, "Branches of a sequence: speculation, parallel samples and beam search.", [] {
    Cache cache(shape, {.blocks = 64, .block_tokens = 16});
    speculate(cache);
    sample(cache);
    search(cache);
    return cache.stats().blocks_referenced == 0 ? 0 : 1;
  });
}
