// AnyCache: a cache of any policy, layout and element type behind one interface, so that tests can pair any two caches
// without a template for each pair. It knows its rows: each is a function of a value, as in oracle_model.hpp.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "catch.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/synchronized.hpp"
#include "kvc/snapshot/snapshot.hpp"
#include "oracle_model.hpp"
#include "policies.hpp"

namespace kvc_test {

using Bytes = std::vector<std::byte>;
using Values = std::vector<Value>;
using Tokens = std::vector<Token>;

inline constexpr kvc::Shape snapshot_shape{.layers = 2, .kv_heads = 3, .key_dim = 5, .value_dim = 3};

/// The values of rows of these tokens after `before`.
inline Values values_of(const Tokens& tokens, Value before = 0) {
  Values values;
  for (const Token token : tokens) {
    values.push_back(before = next_value(before, token));
  }
  return values;
}

/// One element of a row: a small integer, which all 16-bit types hold exactly.
inline float number_of(Value value, Index layer, Index column) {
  return static_cast<float>(next_value(value, static_cast<Token>(layer * 1000 + column)) >> 56) - 128.0F;
}

struct AnyCache {
  virtual ~AnyCache() = default;
  virtual std::string name() const = 0;
  virtual std::string element() const = 0;
  virtual bool caches_prefixes() const = 0;
  virtual kvc::Pos block_tokens() const = 0;
  virtual std::optional<kvc::Opened> try_open(const Tokens& prompt, const kvc::Salt& salt) = 0;
  /// Writes the rows of these values; tokens may be omitted. False if there is no room.
  virtual bool append(SeqId seq, const Tokens& tokens, const Values& values) = 0;
  virtual std::optional<SeqId> try_fork(SeqId seq, Pos at) = 0;
  virtual void truncate(SeqId seq, Pos length) = 0;
  virtual void close(SeqId seq) = 0;
  virtual bool contains(SeqId seq) const = 0;
  virtual Pos length(SeqId seq) const = 0;
  virtual Pos match_length(const Tokens& prompt, const kvc::Salt& salt) const = 0;
  virtual std::vector<SeqId> sequences() const = 0;
  virtual kvc::Stats stats() const = 0;
  virtual void verify() const = 0;
  /// Rows as they are stored, by layer, key or value, head, position: the same whatever the policy and the layout.
  virtual Bytes rows(SeqId seq) const = 0;
  /// The expected rows.
  virtual Bytes rows_of(const Values& values) const = 0;
  virtual void save(std::span<const kvc::snapshot::SavedSequence> sequences, kvc::io::ByteSink& sink,
                    const kvc::snapshot::SaveOptions& options = {}) const = 0;
  virtual std::optional<kvc::snapshot::Loaded> try_load(kvc::io::ByteSource& source,
                                                        const kvc::snapshot::LoadOptions& options = {}) = 0;

  // In short.
  Bytes saved(const std::vector<SeqId>& sequences, const kvc::snapshot::SaveOptions& options = {}) const {
    std::vector<kvc::snapshot::SavedSequence> list;
    for (const SeqId seq : sequences) {
      list.push_back({seq, {}, {}});
    }
    kvc::io::MemorySink sink;
    save(list, sink, options);
    return sink.take();
  }
  std::optional<kvc::snapshot::Loaded> loaded(std::span<const std::byte> bytes,
                                              const kvc::snapshot::LoadOptions& options = {}) {
    kvc::io::MemorySource source(bytes, "some bytes");
    return try_load(source, options);
  }
  /// Opens a sequence and writes the rows that are not in place.
  SeqId serve(const Tokens& prompt, const kvc::Salt& salt = {}, Value before = 0) {
    const kvc::Opened opened = try_open(prompt, salt).value();
    const Values values = values_of(prompt, before);
    REQUIRE(append(opened.seq, {prompt.begin() + opened.cached, prompt.end()},
                   {values.begin() + opened.cached, values.end()}));
    return opened.seq;
  }
};

template <class T, class P, class L>
class CacheOf final : public AnyCache {
 public:
  using Cache = kvc::KvCache<T, P, L>;
  explicit CacheOf(const typename P::Config& config, const kvc::Shape& shape = snapshot_shape) : cache(shape, config) {}

  std::string name() const override {
    return std::string(P::name) + " of " + std::to_string(block_tokens()) + ", " + std::string(L::name) + ", " +
           element();
  }
  std::string element() const override { return std::string(kvc::Element<T>::name); }
  bool caches_prefixes() const override { return kvc::KeepsPrefixes<P>; }
  kvc::Pos block_tokens() const override { return cache.policy().block_tokens(); }
  std::optional<kvc::Opened> try_open(const Tokens& prompt, const kvc::Salt& salt) override {
    kvc::OpenOptions options;
    options.salt = salt;
    return cache.try_open(prompt, options);
  }
  bool append(SeqId seq, const Tokens& tokens, const Values& values) override {
    auto step = tokens.empty() ? cache.try_extend_without_tokens(seq, values.size()) : cache.try_extend(seq, tokens);
    if (!step) {
      return false;
    }
    for (Index layer = 0; layer < cache.shape().layers; ++layer) {
      cache.write(layer, *step, matrix(values, layer, true), matrix(values, layer, false));
    }
    cache.commit(std::move(*step));
    return true;
  }
  std::optional<SeqId> try_fork(SeqId seq, Pos at) override { return cache.try_fork(seq, at); }
  void truncate(SeqId seq, Pos length) override { cache.truncate(seq, length); }
  void close(SeqId seq) override { cache.close(seq); }
  bool contains(SeqId seq) const override { return cache.contains(seq); }
  Pos length(SeqId seq) const override { return cache.length(seq); }
  Pos match_length(const Tokens& prompt, const kvc::Salt& salt) const override {
    if constexpr (kvc::KeepsPrefixes<P>) {
      kvc::OpenOptions options;
      options.salt = salt;
      return cache.match_length(prompt, options);
    }
    return 0;
  }
  std::vector<SeqId> sequences() const override { return cache.sequences(); }
  kvc::Stats stats() const override { return cache.stats(); }
  void verify() const override { cache.verify(); }
  Bytes rows(SeqId seq) const override {
    Bytes all;
    const auto append = [&](const kvc::StorageOf<T>* from, Index units) {
      const auto bytes = std::as_bytes(std::span(from, static_cast<std::size_t>(units)));
      all.insert(all.end(), bytes.begin(), bytes.end());
    };
    for (Index layer = 0; layer < cache.shape().layers; ++layer) {
      for (const bool keys : {true, false}) {
        const Index dim = keys ? cache.shape().key_dim : cache.shape().value_dim;
        const Index size = kvc::Element<T>::row_size(dim);
        for (Index head = 0; head < cache.shape().kv_heads; ++head) {
          cache.view(layer, seq).for_each_run(head, {0, cache.length(seq)}, [&](const kvc::KvRun<T>& run) {
            const Index codes = run.has_scale_planes() ? kvc::code_size<T>(dim) : size;
            for (Index i = 0; i < run.rows; ++i) {
              append(keys ? run.k + i * run.k_stride : run.v + i * run.v_stride, codes);
              if (codes < size) {
                append(keys ? run.k_scales + i * run.k_scale_stride : run.v_scales + i * run.v_scale_stride,
                       size - codes);
              }
            }
          });
        }
      }
    }
    return all;
  }
  Bytes rows_of(const Values& values) const override {
    Bytes all;
    for (Index layer = 0; layer < cache.shape().layers; ++layer) {
      for (const bool keys : {true, false}) {
        const Index dim = keys ? cache.shape().key_dim : cache.shape().value_dim;
        std::vector<kvc::StorageOf<T>> row(static_cast<std::size_t>(kvc::Element<T>::row_size(dim)));
        const Matrix numbers = matrix(values, layer, keys);
        for (Index head = 0; head < cache.shape().kv_heads; ++head) {
          for (Index i = 0; i < numbers.rows(); ++i) {
            kvc::Element<T>::encode(numbers.data() + i * numbers.cols() + head * dim, dim, row.data());
            const auto bytes = std::as_bytes(std::span(row));
            all.insert(all.end(), bytes.begin(), bytes.end());
          }
        }
      }
    }
    return all;
  }
  void save(std::span<const kvc::snapshot::SavedSequence> sequences, kvc::io::ByteSink& sink,
            const kvc::snapshot::SaveOptions& options) const override {
    kvc::snapshot::save(cache, sequences, sink, options);
  }
  std::optional<kvc::snapshot::Loaded> try_load(kvc::io::ByteSource& source,
                                                const kvc::snapshot::LoadOptions& options) override {
    return kvc::snapshot::try_load(cache, source, options);
  }

  Cache cache;

 private:
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Matrix matrix(const Values& values, Index layer, bool keys) const {
    const Index columns = cache.shape().kv_heads * (keys ? cache.shape().key_dim : cache.shape().value_dim);
    Matrix m(static_cast<Index>(values.size()), columns);
    for (Index i = 0; i < m.rows(); ++i) {
      for (Index c = 0; c < columns; ++c) {
        m(i, c) = number_of(values[static_cast<std::size_t>(i)], layer, keys ? c : c + 500);
      }
    }
    return m;
  }
};

// Templates that many files use are compiled once, in any_cache.cpp.
using Prefixes = kvc::PrefixShared<kvc::Lru, SeededHash>;
extern template class CacheOf<float, kvc::Contiguous, kvc::HeadMajor>;
extern template class CacheOf<float, kvc::Contiguous, kvc::TokenMajor>;
extern template class CacheOf<float, kvc::Paged, kvc::HeadMajor>;
extern template class CacheOf<float, kvc::Paged, kvc::TokenMajor>;
extern template class CacheOf<float, Prefixes, kvc::HeadMajor>;
extern template class CacheOf<float, Prefixes, kvc::TokenMajor>;

/// A cache of about `tokens` slots, with the policy of a case of policies.hpp.
template <class T, class Case, class L>
std::unique_ptr<AnyCache> make_cache(Pos tokens = 256) {
  return std::make_unique<CacheOf<T, typename Case::Policy, L>>(Case::config(tokens, 12, 64));
}

/// The visible state of a cache, which a failed load must not change.
struct Seen {
  std::vector<Index> counts;
  std::vector<SeqId> sequences;
  std::vector<Bytes> rows;
  explicit Seen(const AnyCache& cache) : sequences(cache.sequences()) {
    const kvc::Stats s = cache.stats();
    counts = {s.blocks_free,   s.blocks_cached,   s.blocks_referenced, s.sequences, s.pins,
              s.tokens_stored, s.tokens_reserved, s.evictions,         s.merges,    s.hit_tokens};
    for (const SeqId seq : sequences) {
      rows.push_back(cache.rows(seq));
    }
  }
  friend bool operator==(const Seen&, const Seen&) = default;
};

}  // namespace kvc_test
