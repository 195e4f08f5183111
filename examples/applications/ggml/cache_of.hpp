// CacheOf: a KvCache of one policy and one element type, behind the interface Cache. All calls of kvc are here.
#pragma once

#include <algorithm>
#include <concepts>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cache.hpp"
#include "kvc/attention/extern.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/cache.hpp"
#include "kvc/core/error.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/snapshot/snapshot.hpp"

namespace ggml_engine {

/// A KvCache as a Cache.
template <class T, class Policy>
class CacheOf final : public Cache {
 public:
  CacheOf(const Model& model, const CacheOptions& options)
      : model_(&model), cache_(model.layer_groups(), pool_for(model.layer_groups(), options)) {
    if (!options.salt.empty()) {
      salt_.add(kvc::SaltKind::custom, options.salt);
    }
    for (const Layer& layer : model.layers) {
      attention_.push_back({.scale = model.attention_scale, .window = layer.window});
    }
  }

  [[nodiscard]] kvc::Opened open(std::span<const Token> prompt) override {
    kvc::OpenOptions options;
    options.salt = salt_;
    return cache_.open(prompt, options);
  }
  void close(kvc::SeqId seq) override { cache_.close(seq); }
  [[nodiscard]] Pos length(kvc::SeqId seq) const override { return cache_.length(seq); }

  void begin(std::span<const Chunk> chunks) override {
    std::vector<Append> steps;
    std::vector<kvc::PosRange> ranges;
    for (const Chunk& chunk : chunks) {  // what throws here takes back the steps before it
      steps.push_back(cache_.extend(chunk.seq, chunk.tokens));
      ranges.push_back(steps.back().range());
    }
    steps_ = std::move(steps);
    ranges_ = std::move(ranges);
  }

  void attend(Index layer, const float* q, const float* k, const float* v, float* out,
              const kvc::Spmd::Team& team) override {
    const Model& m = *model_;
    views_.clear();
    Index row = 0;
    for (const Append& step : steps_) {
      cache_.write(layer, step, rows(k, row, step.size(), m.kv_heads * m.key_dim),
                   rows(v, row, step.size(), m.kv_heads * m.value_dim));
      views_.push_back(cache_.view(layer, step.seq()));
      row += step.size();
    }
    kvc::prefill(views_, std::span<const kvc::PosRange>(ranges_), kvc::MatrixArg<float>(q, row, m.heads * m.key_dim),
                 kvc::AttentionOutput(out, row, m.heads * m.value_dim), attention_[static_cast<std::size_t>(layer)],
                 team);
  }

  void commit() override {
    for (Append& step : steps_) {
      cache_.commit(std::move(step));
    }
    steps_.clear();
  }
  void rollback() noexcept override { steps_.clear(); }

  void save(const std::string& path) const override { kvc::snapshot::save(cache_, path); }
  std::vector<kvc::SeqId> load(const std::string& path) override { return kvc::snapshot::load(cache_, path).sequences; }

  [[nodiscard]] kvc::Stats stats() const override { return cache_.stats(); }
  [[nodiscard]] Index pool_bytes() const override { return cache_.pool_bytes(); }
  [[nodiscard]] Index held_bytes() const override {
    Index bytes = 0;
    for (std::size_t g = 0; g < cache_.layers().groups().size(); ++g) {
      bytes +=
          cache_.policy().stats(static_cast<Index>(g)).tokens_reserved * kvc::row_bytes<T>(cache_.layers().groups()[g]);
    }
    return bytes;
  }

 private:
  using Kv = kvc::KvCache<T, Policy>;
  using Append = typename Kv::Append;

  static kvc::MatrixArg<float> rows(const float* data, Index first, Index count, Index columns) {
    return {data + first * columns, count, columns};
  }

  /// Room for `sequences` sequences of max_tokens each, and for one pass: in layers with a window for what they keep,
  /// and the rows of one pass beyond a token for each sequence.
  static typename Policy::Config pool_for(const kvc::LayerGroups& layers, const CacheOptions& o) {
    const Pos pass = o.pass_tokens == 0 ? o.max_tokens : std::min(o.pass_tokens, o.max_tokens);
    if constexpr (std::same_as<Policy, kvc::Contiguous>) {
      return {.sequences = o.sequences, .max_tokens = o.max_tokens, .pass_tokens = pass};
    } else {
      const Kv one_block(layers, {.blocks = 1, .block_tokens = o.block_tokens});  // knows the sizes of blocks
      constexpr bool keeps_prefixes = !std::same_as<Policy, kvc::Paged>;
      Index blocks = 0;
      for (std::size_t g = 0; g < layers.groups().size(); ++g) {
        const Pos block_tokens = one_block.policy().block_tokens(static_cast<Index>(g));
        const Pos window = layers.groups()[g].retained.window;
        const bool keeps_all = window == 0 || window + pass >= o.max_tokens;
        // `window` rows, those before the next one and this, may begin and end within blocks.
        const Index kept = keeps_all ? kvc::ceil_div<Index>(o.max_tokens, block_tokens)
                                     : kvc::ceil_div<Index>(window - 1, block_tokens) + 1;
        blocks += (kept + (keeps_prefixes ? 1 : 0)) * o.sequences;  // for the copy of a block that is shared in part
        blocks += keeps_all ? 0 : kvc::ceil_div<Index>(pass - 1, block_tokens);
      }
      return {.blocks = blocks * (keeps_prefixes ? 2 : 1), .block_tokens = o.block_tokens};
    }
  }

  const Model* model_;
  Kv cache_;
  kvc::Salt salt_;
  std::vector<kvc::AttentionOptions> attention_;  // [layers]
  std::vector<Append> steps_;                     // of the pass under way, behind the cache that they are of
  std::vector<kvc::PosRange> ranges_;
  std::vector<typename Kv::View> views_;
};

/// A cache of the element type T. It is compiled once for each type, in a file that engine.cmake writes.
template <class T>
std::unique_ptr<Cache> make_cache_of(const Model& model, const CacheOptions& options) {
  if (options.policy == kvc::Contiguous::name) {
    return std::make_unique<CacheOf<T, kvc::Contiguous>>(model, options);
  }
  if (options.policy == kvc::Paged::name) {
    return std::make_unique<CacheOf<T, kvc::Paged>>(model, options);
  }
  kvc::require(options.policy == kvc::PrefixShared<>::name, "policy", options.policy,
               "one of contiguous, paged, prefix-shared");
  return std::make_unique<CacheOf<T, kvc::PrefixShared<>>>(model, options);
}

}  // namespace ggml_engine
