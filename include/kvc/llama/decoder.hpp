// Dec and Dec_kv: a Llama-family decoder over any cache.
//
//   dec_kv   fills the cache: runs tokens through the network for their keys and values
//   dec      the same network; also returns logits, for the next token or for every position
//
// Both take positions that were reserved with `extend`, write all their layers, and leave `commit` to the caller. All
// rows of a call go through the network as one matrix: the positions of a prompt (prefill), one token each of many
// sequences (decode), or a mix.
//
//   auto [seq, cached] = cache.open(prompt);
//   auto step = cache.extend(seq, prompt.subspan(cached));
//   Matrix logits = dec(model, cache, step, prompt.subspan(cached));
//   cache.commit(std::move(step));
//
// The result of a row depends on its own tokens alone: the bits of its logits are the same whatever the policy, layout,
// block size, chunks of the prefill, other rows of the batch, or number of threads.
//
// A caller that sends the cache elsewhere while it is computed passes `on_layer`, which is called for each layer as
// soon as its keys and values are in place.
//
//   n  rows: tokens of all steps        dim, heads, kv_heads, vocab_size  as in Config
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/attention/decode.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/cache.hpp"
#include "kvc/cache/one_group.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/llama/linear.hpp"
#include "kvc/llama/llama.hpp"
#include "kvc/llama/norm.hpp"
#include "kvc/llama/rope.hpp"
#include "kvc/llama/swiglu.hpp"
#include "kvc/parallel/executor.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {

/// The positions that `dec` returns logits for.
enum class Logits {
  last,  ///< the last of each step: what decoding needs
  all,   ///< every one: teacher forcing, scoring
};

/// The default hook for written layers: does nothing.
struct NoLayerHook {
  /// Does nothing.
  void operator()(Index /*layer*/) const noexcept {}
};

namespace detail {

/// Positions of one sequence, and the first of their rows in the matrices of a batch.
struct BatchPart {
  SeqId seq;
  PosRange positions;
  Index row;
};

/// The positions of a batch, sequence by sequence.
class BatchRows {
 public:
  void add(SeqId seq, PosRange positions) {
    parts_.push_back({seq, positions, rows()});
    for (Pos p = positions.first; p < positions.last; ++p) {
      positions_.push_back(p);
    }
  }
  [[nodiscard]] Index rows() const noexcept { return static_cast<Index>(positions_.size()); }
  [[nodiscard]] std::span<const BatchPart> parts() const noexcept { return parts_; }
  [[nodiscard]] std::span<const Pos> positions() const noexcept { return positions_; }

  /// Keeps only the last position of each sequence; moves their rows up in `x` and `h`, and drops the others.
  [[nodiscard]] BatchRows keep_last(Matrix& x, Matrix& h) const {
    BatchRows kept;
    for (const BatchPart& part : parts_) {
      const Index from = part.row + part.positions.size() - 1;
      x.row(kept.rows()) = x.row(from);
      h.row(kept.rows()) = h.row(from);
      kept.add(part.seq, {part.positions.last - 1, part.positions.last});
    }
    x.conservativeResize(kept.rows(), Eigen::NoChange);
    h.conservativeResize(kept.rows(), Eigen::NoChange);
    return kept;
  }

 private:
  std::vector<BatchPart> parts_;
  std::vector<Pos> positions_;
};

/// Attention of all rows of a batch in one layer: q, out [n, heads * head_dim]. Adjacent parts with one query each
/// share a decode; a part with more queries is a prefill.
template <class Cache, Executor Ex>
void attend(const Cache& cache, Index layer, Pos window, std::span<const BatchPart> parts, MatrixRef<const float> q,
            MatrixRef<float> out, Ex& ex) {
  const AttentionOptions options{.window = window};
  while (!parts.empty()) {
    const BatchPart& part = parts.front();
    std::vector<typename Cache::View> views;
    while (views.size() < parts.size() && parts[views.size()].positions.size() == 1) {
      views.push_back(cache.view(layer, parts[views.size()].seq));
    }
    if (views.empty()) {
      const Index rows = part.positions.size();
      kvc::prefill(cache.view(layer, part.seq), part.positions, q.middle_rows(part.row, rows),
                   out.middle_rows(part.row, rows), options, ex);
      parts = parts.subspan(1);
    } else {
      const auto rows = static_cast<Index>(views.size());
      kvc::decode(std::span<const typename Cache::View>(views), q.middle_rows(part.row, rows),
                  out.middle_rows(part.row, rows), options, ex);
      parts = parts.subspan(views.size());
    }
  }
}

/// The results that a call of `forward` returns.
enum class Wanted { cache_only, last_logits, all_logits };

/// The default observer of the queries (after RoPE) and attention outputs [n, heads * head_dim] of each layer: does
/// nothing.
struct NoTap {
  void operator()(Index /*layer*/, const Matrix& /*q*/, const Matrix& /*out*/) const noexcept {}
};

template <class Cache, Executor Ex, class Tap = NoTap, class OnLayer = NoLayerHook>
Matrix forward(const Model& model, Cache& cache, std::span<const typename Cache::Append> steps,
               std::span<const Token> tokens, Wanted wanted, Ex& ex, Tap&& tap = {}, OnLayer&& on_layer = {}) {
  require_consistent(model);
  const Config& c = model.config;
  BatchRows batch;
  for (const auto& step : steps) {
    require(step.size() > 0, "step.size()", step.size(), "at least 1");
    require(step.range().last <= c.seq_len, "last position", step.range().last - 1,
            "below the model's sequence length, " + std::to_string(c.seq_len));
    batch.add(step.seq(), step.range());
  }
  if (c.window > 0) {
    require(cache.layers() == c.cache_layers().with_rewind(cache.layers().rewind()), "cache.layers()",
            "of another model", "config.cache_layers() of this one");
  } else {
    kvc::require_one_group(cache, "llama::dec");
    require(cache.shape() == c.cache_shape(), "cache.shape()", "of another model", "config.cache_shape() of this one");
  }
  require(static_cast<Index>(tokens.size()) == batch.rows(), "tokens.size()", tokens.size(),
          "the size of all steps together, " + std::to_string(batch.rows()));

  Matrix x(batch.rows(), c.dim);  // the residual stream
  for (Index row = 0; row < x.rows(); ++row) {
    const Token token = tokens[static_cast<std::size_t>(row)];
    require(token >= 0 && token < c.vocab_size, "token", token, "a token of the model's vocabulary");
    x.row(row) = model.embedding.row(token);
  }

  Matrix h(x.rows(), c.dim);
  for (Index l = 0; l < c.layers; ++l) {
    const Layer& w = model.layers[static_cast<std::size_t>(l)];

    // Keys and values of this layer.
    rms_norm(x, w.attention_norm, c.norm_epsilon, h);
    {
      Matrix k(x.rows(), c.kv_dim());
      Matrix v(x.rows(), c.kv_dim());
      llama::linear(h, w.wk, k, ex);
      llama::linear(h, w.wv, v, ex);
      rope(Interleaved{}, model.rope, batch.positions(), k, c.head_dim());
      for (std::size_t i = 0; i < steps.size(); ++i) {
        const Index first = batch.parts()[i].row;
        cache.write(l, steps[i], k.middleRows(first, steps[i].size()), v.middleRows(first, steps[i].size()));
      }
    }
    on_layer(l);

    // The rest of the last layer serves the logits only.
    if (l == c.layers - 1 && wanted == Wanted::cache_only) {
      return {};
    }
    if (l == c.layers - 1 && wanted == Wanted::last_logits) {
      batch = batch.keep_last(x, h);
    }

    // Attention over all positions up to each row's own.
    Matrix q(x.rows(), c.dim);
    Matrix out(x.rows(), c.dim);
    llama::linear(h, w.wq, q, ex);
    rope(Interleaved{}, model.rope, batch.positions(), q, c.head_dim());
    detail::attend(cache, l, c.window_of(l), batch.parts(), q, out, ex);
    tap(l, q, out);
    llama::linear(out, w.wo, h, ex);
    x += h;

    // The feed-forward network.
    Matrix gate(x.rows(), c.hidden_dim);
    Matrix up(x.rows(), c.hidden_dim);
    rms_norm(x, w.ffn_norm, c.norm_epsilon, h);
    llama::linear(h, w.w_gate, gate, ex);
    llama::linear(h, w.w_up, up, ex);
    swiglu(gate, up);
    llama::linear(gate, w.w_down, h, ex);
    x += h;
  }

  Matrix logits(x.rows(), c.vocab_size);
  rms_norm(x, model.final_norm, c.norm_epsilon, h);
  llama::linear(h, model.classifier(), logits, ex);
  return logits;
}

}  // namespace detail

/// Fills the positions of `step` with the keys and values of `tokens` [step.size()], in every layer. Skips what only
/// the logits need: the rest of the last layer, and the classifier.
///
///   on_layer(Index layer)  called in the order of the layers, for each as soon as its rows are written for all steps.
///                          It may use the cache, but must only read the sequences of these steps
///
/// Throws std::invalid_argument, before anything is written, if the model is not consistent (require_consistent), the
/// cache has other layers than the model (config.cache_layers()), the number of tokens is not that of the step, a token
/// is not in the vocabulary, or a position is not below config.seq_len.
template <class Cache, Executor Ex = Sequential, class OnLayer = NoLayerHook>
void dec_kv(const Model& model, Cache& cache, const typename Cache::Append& step, std::span<const Token> tokens,
            Ex&& ex = {}, OnLayer&& on_layer = {}) {
  (void)detail::forward(model, cache, std::span(&step, 1), tokens, detail::Wanted::cache_only, ex, detail::NoTap{},
                        on_layer);
}

/// Fills the positions of all steps as dec_kv does, and returns logits. Throws as dec_kv.
///
///   steps    of distinct sequences; adjacent steps of one token share an attention call
///   tokens   [n], those of the first step, then those of the second, …
///   returns  Logits::last  [steps.size(), vocab_size]      Logits::all  [n, vocab_size]
template <class Cache, Executor Ex = Sequential, class OnLayer = NoLayerHook>
[[nodiscard]] Matrix dec(const Model& model, Cache& cache, std::span<const typename Cache::Append> steps,
                         std::span<const Token> tokens, Logits logits = Logits::last, Ex&& ex = {},
                         OnLayer&& on_layer = {}) {
  return detail::forward(model, cache, steps, tokens,
                         logits == Logits::all ? detail::Wanted::all_logits : detail::Wanted::last_logits, ex,
                         detail::NoTap{}, on_layer);
}

/// The same for one sequence.
template <class Cache, Executor Ex = Sequential, class OnLayer = NoLayerHook>
[[nodiscard]] Matrix dec(const Model& model, Cache& cache, const typename Cache::Append& step,
                         std::span<const Token> tokens, Logits logits = Logits::last, Ex&& ex = {},
                         OnLayer&& on_layer = {}) {
  return llama::dec(model, cache, std::span(&step, 1), tokens, logits, ex, on_layer);
}

}  // namespace llama
}  // namespace v0
}  // namespace kvc
