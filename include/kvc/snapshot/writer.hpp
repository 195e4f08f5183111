// Writer: keys and values of a cache, into any sink, layer by layer.
//
//   Writer writer(cache, sequences, sink);    everything but the rows is written
//   writer.layer(0) ... writer.layer(layers - 1);     in any order, each once
//   writer.finish();
//
// So a layer can be sent while the next one is computed: with SaveOptions::reserved, rows of an extension under way
// go with the others, as soon as they are written. Rows are gathered from where they lie and not copied first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/snapshot/collect.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/sections.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

struct SaveOptions {
  bool cached_prefixes = true;  ///< also what the policy has cached for later prompts, if it does that
  bool reserved = false;        ///< also the positions of an extension under way; otherwise the committed ones
};

/// The sequences, the cache and the sink must outlive it; what is saved must not change until `finish`, but for rows of
/// layers that are still to come.
template <class Cache>
class Writer {
 public:
  using Policy = typename Cache::PolicyType;
  using Layout = typename Cache::LayoutType;

  /// Throws std::invalid_argument if a sequence is not open, or tokens are more than positions or contradict those of a
  /// sequence that shares the rows; otherwise what the sink throws.
  Writer(const Cache& cache, std::span<const SavedSequence> sequences, io::ByteSink& sink,
         const SaveOptions& options = {})
      : cache_(&cache), contents_(describe()), slots_(collect(sequences, options)), out_(sink) {
    written_.resize(static_cast<std::size_t>(cache.shape().layers), false);
    detail::write_contents(out_, contents_);
  }

  [[nodiscard]] const Contents& contents() const noexcept { return contents_; }

  /// Writes the rows of one layer. Throws std::invalid_argument if there is no such layer, or it was written before.
  void layer(Index layer) {
    require_between(layer, Index{0}, cache_->shape().layers - 1, "layer");
    require(!written_[static_cast<std::size_t>(layer)], "layer", layer, "one that was not written yet");
    out_.begin(section::layer, contents_.layer_bytes(), static_cast<std::uint64_t>(layer));
    const auto* const pool = cache_->data();
    for (const layout::SlotSpan& slots : slots_) {
      layout::for_each_row_span(cache_->layout(), layer, layout::row_order<Layout>(), std::span(&slots, 1),
                                [&](Index at, Index count) {
                                  out_.add(std::as_bytes(std::span(pool + at, static_cast<std::size_t>(count))));
                                });
    }
    out_.finish();
    written_[static_cast<std::size_t>(layer)] = true;
  }

  /// Writes the end: without it a snapshot is none. Throws std::invalid_argument if a layer was not written.
  void finish() {
    for (std::size_t i = 0; i < written_.size(); ++i) {
      require(written_[i], "layer", i, "written before finish");
    }
    out_.end();
  }

 private:
  using T = typename Cache::Element;

  [[nodiscard]] Contents describe() const {
    Contents contents;
    contents.shape = cache_->shape();
    const auto row_bytes = [](Index dim) {
      return Element<T>::row_size(dim) * static_cast<Index>(sizeof(StorageOf<T>));
    };
    contents.key_row_bytes = row_bytes(contents.shape.key_dim);
    contents.value_row_bytes = row_bytes(contents.shape.value_dim);
    contents.block_tokens = cache_->policy().block_tokens();
    contents.element = Element<T>::name;
    contents.layout = layout::to_text(layout::row_order<Layout>());
    contents.policy = Policy::name;
    return contents;
  }

  [[nodiscard]] std::vector<layout::SlotSpan> collect(std::span<const SavedSequence> sequences,
                                                      const SaveOptions& options) {
    detail::Collector collector(contents_);
    const Policy& policy = cache_->policy();
    if constexpr (KeepsPrefixes<Policy>) {
      if (options.cached_prefixes) {
        policy.for_each_cached([&](const BlockStored& stored) { collector.add_cached(stored); });
      }
    }
    for (const SavedSequence& saved : sequences) {
      require(policy.contains(saved.seq), "seq", saved.seq, "an open sequence");
      const Pos length = options.reserved ? policy.reserved(saved.seq) : policy.length(saved.seq);
      require(saved.tokens.size() <= static_cast<std::size_t>(length), "tokens.size()", saved.tokens.size(),
              "at most the length of the sequence");
      std::vector<SlotRun> runs;
      policy.for_each_run(saved.seq, {0, length}, [&](const SlotRun& run) { runs.push_back(run); });
      std::vector<Token> tokens(saved.tokens.begin(), saved.tokens.end());
      Salt salt = saved.salt;
      if constexpr (KnowsTokens<Policy>) {
        tokens = policy.known_tokens(saved.seq);
        tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(length)));
        salt = Salt::from_bytes(policy.salt_bytes(saved.seq)).value();
      }
      collector.add_sequence(salt, std::move(runs), std::move(tokens));
    }
    collector.add_ends();
    return collector.finish();
  }

  const Cache* cache_;
  Contents contents_;
  std::vector<layout::SlotSpan> slots_;
  detail::SectionWriter out_;
  std::vector<bool> written_;
};

}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
