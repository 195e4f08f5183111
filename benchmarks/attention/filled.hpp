// Caches of random rows, larger than the last-level cache of the machine.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "measure.hpp"

namespace kvc_bench {

using kvc::Index;
using kvc::Pos;

inline std::vector<float> random_numbers(Index count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(count));
  std::ranges::generate(numbers, [&] { return normal(random); });
  return numbers;
}

/// The order of the blocks that sequences get from a pool: a random one, or the one that earlier requests left.
enum class BlockOrder { random, served };

/// Sequences of one length: the first `shared` of their tokens are the same in all. Or, if `lengths` are given, one
/// sequence of each length, none of which shares anything.
struct Batch {
  Pos length = 0;
  Index sequences = 1;
  Pos shared = 0;
  std::vector<Pos> lengths = {};
  BlockOrder order = BlockOrder::random;

  static Batch of_lengths(std::vector<Pos> lengths) {
    const auto count = static_cast<Index>(lengths.size());
    return {.sequences = count, .lengths = std::move(lengths)};
  }
  [[nodiscard]] Pos length_of(Index sequence) const {
    return lengths.empty() ? length : lengths[static_cast<std::size_t>(sequence)];
  }
  /// Positions that lie in memory, each counted once.
  [[nodiscard]] Index distinct() const {
    return lengths.empty() ? shared + sequences * Index{length - shared}
                           : std::accumulate(lengths.begin(), lengths.end(), Index{0});
  }
  /// Blocks of `tokens` that the sequences take.
  [[nodiscard]] Index blocks(Pos tokens) const {
    Index count = -(shared / tokens * (sequences - 1));
    for (Index b = 0; b < sequences; ++b) {
      count += kvc::ceil_div(Index{length_of(b)}, Index{tokens});
    }
    return count;
  }
};

/// A cache with so many layers that a call on the next layer finds nothing of it in the processor's caches, if calls go
/// through the layers in turn. All layers have the same random rows.
template <class T, class P, class L = kvc::HeadMajor>
class Filled {
 public:
  Filled(const Heads& heads, const Batch& batch, Pos block_tokens, std::size_t bytes)
      : cache_(model(heads, batch, bytes), config(batch, block_tokens)) {
    fill(heads);
    if constexpr (std::is_same_v<P, kvc::Contiguous>) {
      open(batch);
    } else if (batch.order == BlockOrder::random) {
      shuffle_blocks();
      open(batch);
      require_scattered();
    } else {
      serve(batch.length);
      open(batch);
    }
  }

  [[nodiscard]] const kvc::KvCache<T, P, L>& cache() const { return cache_; }
  /// The sequences, in the order of the batch.
  [[nodiscard]] const std::vector<kvc::SeqId>& sequences() const { return sequences_; }
  [[nodiscard]] kvc::KvCache<T, P, L>& cache() { return cache_; }
  [[nodiscard]] Index layers() const { return cache_.shape().layers; }
  /// Bytes of one position in one layer.
  [[nodiscard]] double position_bytes() const {
    return static_cast<double>(cache_.bytes_per_token()) / static_cast<double>(layers());
  }
  using View = typename kvc::KvCache<T, P, L>::View;
  /// The views of all sequences in the layer that has its turn in call i.
  [[nodiscard]] std::vector<View> views(std::size_t i) const {
    std::vector<View> views;
    for (const kvc::SeqId seq : sequences_) {
      views.push_back(cache_.view(static_cast<Index>(i) % layers(), seq));
    }
    return views;
  }

 private:
  static kvc::LayerGroups model(const Heads& heads, const Batch& batch, std::size_t bytes) {
    using Element = kvc::Element<T>;
    const Index row = (Element::row_size(heads.key_dim) + (heads.latent ? 0 : Element::row_size(heads.value_dim))) *
                      static_cast<Index>(sizeof(kvc::StorageOf<T>));
    const Index layer = batch.distinct() * heads.kv * row;
    kvc::LayerGroups layers;
    layers.add({.kv_heads = heads.kv, .key_dim = heads.key_dim, .value_dim = heads.value_dim, .latent = heads.latent},
               std::max(Index{1}, kvc::ceil_div(static_cast<Index>(bytes), layer)));
    return layers;
  }

  static typename P::Config config(const Batch& batch, Pos block_tokens) {
    if constexpr (std::is_same_v<P, kvc::Contiguous>) {
      return {.sequences = batch.sequences, .max_tokens = batch.length};
    } else {
      return {.blocks = batch.blocks(block_tokens), .block_tokens = block_tokens};
    }
  }

  /// Writes the pool as it lies, which is much faster than to encode each row: the layers of a block one after the
  /// other, of each the rows of its keys, then those of its values, in whatever order the layout has them.
  void fill(const Heads& heads) {
    constexpr Index rows = 1024;
    using Element = kvc::Element<T>;
    using Storage = kvc::StorageOf<T>;
    const auto encoded = [&](Index dim, unsigned seed) {
      const std::vector<float> numbers = random_numbers(rows * dim, seed);
      std::vector<Storage> to(static_cast<std::size_t>(rows * Element::row_size(dim)));
      for (Index r = 0; r < rows; ++r) {
        Element::encode(numbers.data() + r * dim, dim, to.data() + r * Element::row_size(dim));
      }
      return to;
    };
    const std::vector<Storage> keys = encoded(heads.key_dim, 1), values = encoded(heads.value_dim, 2);
    const Index slots = heads.kv * Index{cache_.policy().block_tokens()};
    Storage* to = cache_.data();
    const auto put = [&](const std::vector<Storage>& from, Index row) {
      for (Index r = 0; r < slots; r += rows) {
        to = std::copy_n(from.data(), std::min(rows, slots - r) * row, to);
      }
    };
    for (Index i = 0; i < cache_.policy().blocks() * layers(); ++i) {
      put(keys, Element::row_size(heads.key_dim));
      if (!heads.latent) {
        put(values, Element::row_size(heads.value_dim));
      }
    }
    if (to != cache_.data() + cache_.layout().size()) {
      throw std::logic_error("the pool has another layout than benchmarks/attention fills");
    }
  }

  /// Every block is taken by a sequence of its own; these are closed in random order, which the free list then has.
  void shuffle_blocks() {
    std::vector<kvc::SeqId> fillers;
    for (Index i = 0; i < cache_.policy().blocks(); ++i) {
      fillers.push_back(cache_.open());
      cache_.commit(cache_.extend_without_tokens(fillers.back(), cache_.policy().block_tokens()));
    }
    std::ranges::shuffle(fillers, std::mt19937(3));
    for (const kvc::SeqId seq : fillers) {
      cache_.close(seq);
    }
  }

  /// Requests come and go, up to 32 at a time, as many as fit: a prompt takes its blocks at once, its answer one after
  /// the other, by turns with those of the others. Prompts are twice as long as answers in the mean, and neither is
  /// longer than the pool allows. Afterwards all are closed.
  void serve(Pos most) {
    struct Request {
      kvc::SeqId seq;
      Pos left;  // tokens of the answer
    };
    std::mt19937 random(5);
    std::exponential_distribution<double> exponential;
    const auto tokens = [&](double mean) {
      return 1 + std::min(static_cast<Pos>(mean * exponential(random)), most / 4);
    };
    const double mean = static_cast<double>(cache_.policy().blocks() * cache_.policy().block_tokens()) / 48;
    std::vector<Request> running;
    for (int begun = 0; begun < 400 || !running.empty();) {
      if (begun < 400 && running.size() < 32) {
        const kvc::SeqId seq = cache_.open();
        if (auto prompt = cache_.try_extend_without_tokens(seq, tokens(2 * mean))) {
          cache_.commit(std::move(*prompt));
          running.push_back({seq, tokens(mean)});
          ++begun;
        } else {
          cache_.close(seq);
        }
      }
      for (Request& request : running) {
        auto token = cache_.try_extend_without_tokens(request.seq, 1);
        if (token) {
          cache_.commit(std::move(*token));
        }
        request.left = token ? request.left - 1 : 0;  // where there is no room, the answer ends
      }
      std::erase_if(running, [&](const Request& request) {
        if (request.left <= 0) {
          cache_.close(request.seq);
        }
        return request.left <= 0;
      });
    }
  }

  void open(const Batch& batch) {
    for (Index b = 0; b < batch.sequences; ++b) {
      if (batch.shared == 0) {
        sequences_.push_back(cache_.open());
        cache_.commit(cache_.extend_without_tokens(sequences_.back(), batch.length_of(b)));
      } else {
        std::vector<kvc::Token> tokens(static_cast<std::size_t>(batch.length));
        std::iota(tokens.begin(), tokens.end(), 0);
        for (auto i = static_cast<std::size_t>(batch.shared); i < tokens.size(); ++i) {
          tokens[i] += static_cast<kvc::Token>((b + 1) * batch.length);
        }
        const kvc::Opened opened = cache_.open(tokens);
        sequences_.push_back(opened.seq);
        cache_.commit(cache_.extend(
            opened.seq, std::span<const kvc::Token>(tokens).subspan(static_cast<std::size_t>(opened.cached))));
      }
    }
  }

  void require_scattered() const {
    Index blocks = 0, adjacent = 0;
    for (const View& view : views(0)) {
      const kvc::StorageOf<T>* expected = nullptr;
      view.for_each_run(0, {0, view.length()}, [&](const kvc::KvRun<T>& run) {
        blocks += kvc::ceil_div(run.rows, Index{cache_.policy().block_tokens()});
        adjacent += run.k == expected || run.rows > cache_.policy().block_tokens() ? 1 : 0;
        expected = run.k + cache_.layout().block_size();
      });
    }
    if (adjacent > blocks / 16) {
      throw std::logic_error(std::to_string(adjacent) + " of " + std::to_string(blocks) +
                             " blocks are adjacent in memory: they were to be in random order");
    }
  }

  kvc::KvCache<T, P, L> cache_;
  std::vector<kvc::SeqId> sequences_;
};

}  // namespace kvc_bench
