// PlainWriter: saves a cache whose layers are all alike, layer by layer: version 1 of the format. The sink gathers the
// rows from the pool; they are not copied first.
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
#include "kvc/snapshot/describe.hpp"
#include "kvc/snapshot/options.hpp"
#include "kvc/snapshot/sections.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

namespace detail {

/// Writes a snapshot of version 1: a cache whose layers are all alike. The contract is that of Writer.
template <class Cache>
class PlainWriter {
 public:
  using Policy = typename Cache::PolicyType;
  using Layout = typename Cache::LayoutType;

  PlainWriter(const Cache& cache, std::span<const SavedSequence> sequences, io::ByteSink& sink,
              const SaveOptions& options = {})
      : cache_(&cache), slots_(collect(sequences, options)), out_(sink) {
    written_.resize(static_cast<std::size_t>(cache.shape().layers), false);
    write_contents(out_, snapshot::describe(cache), contents_);
  }

  [[nodiscard]] const Contents& contents() const noexcept { return contents_; }

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

  void finish() {
    for (std::size_t i = 0; i < written_.size(); ++i) {
      require(written_[i], "layer", i, "written before finish");
    }
    out_.end();
  }

 private:
  [[nodiscard]] std::vector<layout::SlotSpan> collect(std::span<const SavedSequence> sequences,
                                                      const SaveOptions& options) {
    set_description(contents_, snapshot::describe(*cache_));
    Collector collector(contents_);
    const Policy& policy = cache_->policy();
    if constexpr (KeepsPrefixes<Policy>) {
      if (options.cached_prefixes) {
        policy.for_each_cached([&](const BlockStored& stored) { collector.add_cached(stored); });
      }
    }
    for (const SavedSequence& saved : sequences) {
      History history = detail::history_of(policy, saved, options);
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
  SectionWriter out_;
  std::vector<bool> written_;
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
