// Writer: saves keys and values of a cache to any sink, layer by layer.
//
//   snapshot::Writer writer(cache, sequences, sink);    writes everything but the rows
//   writer.layer(0) ... writer.layer(layers - 1);       in any order, each once
//   writer.finish();
//
// So a layer can be sent while the next one is computed: with SaveOptions::reserved, the rows of an uncommitted
// extension are saved too, layer by layer as they are written. The sink gathers the rows from the pool; they are not
// copied first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvc/cache/one_group.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/snapshot/collect.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/describe.hpp"
#include "kvc/snapshot/sections.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

/// Options of saving: what goes into the snapshot beside the committed positions of the sequences.
struct SaveOptions {
  /// The blocks that the policy has cached for later prompts, if it caches any.
  bool cached_prefixes = true;
  bool reserved = false;  ///< the positions of an uncommitted extension
};

namespace detail {

/// The saved parts of a sequence beside its rows.
struct History {
  Pos length;
  Salt salt;
  std::vector<Token> tokens;  // known ones
};
/// Throws std::invalid_argument if the sequence is not open, or is shorter than its tokens.
template <class P>
[[nodiscard]] History history_of(const P& policy, const SavedSequence& saved, const SaveOptions& options) {
  require(policy.contains(saved.seq), "seq", saved.seq, "an open sequence");
  History history{options.reserved ? policy.reserved(saved.seq) : policy.length(saved.seq), saved.salt,
                  std::vector<Token>(saved.tokens.begin(), saved.tokens.end())};
  const auto length = static_cast<std::size_t>(history.length);
  require(saved.tokens.size() <= length, "tokens.size()", saved.tokens.size(), "at most the length of the sequence");
  if constexpr (KnowsTokens<P>) {
    history.tokens = policy.known_tokens(saved.seq);
    history.tokens.resize(std::min(history.tokens.size(), length));
    history.salt = Salt::from_bytes(policy.salt_bytes(saved.seq)).value();
  }
  return history;
}

}  // namespace detail

/// Writes one snapshot. Cache, sink and the tokens in `sequences` must outlive it. Until `finish` the saved sequences
/// must not change; rows of a layer may be written until `layer` saves them.
///
///   expression                                | does                     | throws                       | complexity
///   ------------------------------------------+--------------------------+------------------------------+-------------
///   Writer w(cache, sequences, sink, options) | writes all but the rows  | invalid_argument: a sequence | O(blocks +
///                                             |                          | is not open, or has other    | tokens)
///                                             |                          | tokens than a sequence that  |
///                                             |                          | shares its rows              |
///   w.layer(l)                                | writes the rows of layer | invalid_argument: l is no    | O(bytes)
///                                             | l                        | layer, or was written before |
///   w.finish()                                | writes the end, without  | invalid_argument: a layer    | O(1)
///                                             | which the bytes are no   | was not written              |
///                                             | snapshot                 |                              |
///   w.contents()                              | returns what was written |                              | O(1)
///                                             | so far                   |                              |
///
/// All of them also throw what the sink throws.
template <class Cache>
class Writer {
 public:
  using Policy = typename Cache::PolicyType;
  using Layout = typename Cache::LayoutType;

  /// Writes all but the rows. O(blocks + tokens). Throws std::invalid_argument if a sequence is not open, or has other
  /// tokens than one that shares its rows.
  Writer(const Cache& cache, std::span<const SavedSequence> sequences, io::ByteSink& sink,
         const SaveOptions& options = {})
      : cache_(&cache), slots_(collect(sequences, options)), out_(sink) {
    written_.resize(static_cast<std::size_t>(cache.shape().layers), false);
    detail::write_contents(out_, describe(cache), contents_);
  }

  /// The contents written so far.
  [[nodiscard]] const Contents& contents() const noexcept { return contents_; }

  /// Writes the rows of a layer. O(bytes). Throws std::invalid_argument if there is no such layer, or it was written
  /// before.
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

  /// Writes the end. Throws std::invalid_argument if a layer was not written.
  void finish() {
    for (std::size_t i = 0; i < written_.size(); ++i) {
      require(written_[i], "layer", i, "written before finish");
    }
    out_.end();
  }

 private:
  [[nodiscard]] std::vector<layout::SlotSpan> collect(std::span<const SavedSequence> sequences,
                                                      const SaveOptions& options) {
    require_one_group(*cache_, "snapshot::Writer");
    detail::set_description(contents_, describe(*cache_));
    detail::Collector collector(contents_);
    const Policy& policy = cache_->policy();
    if constexpr (KeepsPrefixes<Policy>) {
      if (options.cached_prefixes) {
        policy.for_each_cached([&](const BlockStored& stored) { collector.add_cached(stored); });
      }
    }
    for (const SavedSequence& saved : sequences) {
      detail::History history = detail::history_of(policy, saved, options);
      std::vector<SlotRun> runs;
      policy.for_each_run(saved.seq, {0, history.length}, [&](const SlotRun& run) { runs.push_back(run); });
      collector.add_sequence(history.salt, std::move(runs), std::move(history.tokens));
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
