#include "engine.hpp"

#include <ggml-alloc.h>
#include <ggml-cpu.h>

#include <chrono>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "kvc/core/error.hpp"

namespace ggml_engine {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Adds the operations of a model to a context of ggml. Activations are [dim, rows] for ggml, which names the dimension
/// of adjacent numbers first: one row per token.
struct Builder {
  ggml_context* ctx;
  const Model& model;

  ggml_tensor* norm(ggml_tensor* x, ggml_tensor* weight) const {
    return weight == nullptr ? x : ggml_mul(ctx, ggml_rms_norm(ctx, x, model.norm_epsilon), weight);
  }
  /// Queries or keys of a layer, turned by RoPE: [key_dim, heads, rows]
  ggml_tensor* rotated(const Layer& layer, ggml_tensor* x, ggml_tensor* head_norm, Index heads,
                       ggml_tensor* positions) const {
    x = ggml_reshape_3d(ctx, x, model.key_dim, heads, x->ne[1]);
    return ggml_rope_ext(ctx, norm(x, head_norm), positions, layer.window == 0 ? model.rope_factors : nullptr,
                         static_cast<int>(model.rope_dims), model.rope_mode, static_cast<int>(model.positions),
                         layer.rope_base, layer.rope_scale, 0.0F, 1.0F, 32.0F, 1.0F);
  }
  ggml_tensor* feed_forward(const Layer& layer, ggml_tensor* x) const {
    ggml_tensor* gate = ggml_mul_mat(ctx, layer.gate, x);
    ggml_tensor* up = ggml_mul_mat(ctx, layer.up, x);
    return ggml_mul_mat(ctx, layer.down,
                        model.gelu ? ggml_geglu_split(ctx, gate, up) : ggml_swiglu_split(ctx, gate, up));
  }
  ggml_tensor* logits(ggml_tensor* x) const {
    x = ggml_mul_mat(ctx, model.output, norm(x, model.output_norm));
    if (model.logit_softcap > 0) {
      x = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, x, 1.0F / model.logit_softcap)), model.logit_softcap);
    }
    return x;
  }
};

}  // namespace

/// What the custom operator of a layer knows.
struct Engine::AttentionOfLayer {
  Engine* engine;
  Index layer;
};

/// The operations of one pass, and the tensors that go in and come out.
struct Engine::Graph {
  Context ctx;
  ggml_cgraph* operations = nullptr;
  ggml_tensor* tokens = nullptr;     // [rows]
  ggml_tensor* positions = nullptr;  // [rows]
  ggml_tensor* outputs = nullptr;    // [rows with logits], the numbers of these rows; null: no logits
  ggml_tensor* logits = nullptr;     // [vocab_size, rows with logits], or null

  [[nodiscard]] bool fits(Index rows, Index of_outputs) const noexcept {
    return tokens->ne[0] == rows && (outputs == nullptr ? 0 : outputs->ne[0]) == of_outputs;
  }
};

Engine::Engine(const Model& model, Cache& cache, int threads)
    : model_(&model), cache_(&cache), backend_(ggml_backend_cpu_init()) {
  kvc::require(threads >= 1, "threads", threads, "at least 1");
  if (backend_ == nullptr) {
    throw std::runtime_error("ggml could not start its CPU backend");
  }
  ggml_backend_cpu_set_n_threads(backend_.get(), threads);
  memory_.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend_.get())));
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    attention_.push_back({this, static_cast<Index>(i)});
  }
}

Engine::~Engine() = default;

/// The graph of one pass over `rows` tokens of any sequences. It does not depend on the lengths of these: what came
/// before is in the cache, and only the custom operator sees it.
Engine::Graph Engine::build_graph(Index rows, Index outputs) {
  const Model& m = *model_;
  const std::size_t most_operations = 64 + 48 * m.layers.size();
  Graph g;
  g.ctx.reset(ggml_init(
      {.mem_size = ggml_tensor_overhead() * most_operations + ggml_graph_overhead_custom(most_operations, false),
       .mem_buffer = nullptr,
       .no_alloc = true}));
  ggml_context* ctx = g.ctx.get();
  const auto input = [ctx](Index count) {
    ggml_tensor* tensor = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, count);
    ggml_set_input(tensor);
    return tensor;
  };
  g.operations = ggml_new_graph_custom(ctx, most_operations, false);
  g.tokens = input(rows);
  g.positions = input(rows);
  g.outputs = outputs == 0 ? nullptr : input(outputs);

  const Builder b{ctx, m};
  ggml_tensor* x = ggml_get_rows(ctx, m.embedding, g.tokens);
  if (m.embedding_scale != 1.0F) {
    x = ggml_scale(ctx, x, m.embedding_scale);
  }
  for (std::size_t i = 0; i < m.layers.size(); ++i) {
    const Layer& layer = m.layers[i];
    ggml_tensor* h = b.norm(x, layer.attention_norm);
    ggml_tensor* args[] = {b.rotated(layer, ggml_mul_mat(ctx, layer.q, h), layer.q_norm, m.heads, g.positions),
                           b.rotated(layer, ggml_mul_mat(ctx, layer.k, h), layer.k_norm, m.kv_heads, g.positions),
                           ggml_mul_mat(ctx, layer.v, h)};
    h = ggml_custom_4d(ctx, GGML_TYPE_F32, m.heads * m.value_dim, rows, 1, 1, args, 3, &Engine::attend,
                       GGML_N_TASKS_MAX, &attention_[i]);
    if (i + 1 == m.layers.size()) {  // behind the last attention, only rows with logits matter
      if (outputs == 0) {
        ggml_build_forward_expand(g.operations, h);
        return g;
      }
      h = ggml_get_rows(ctx, h, g.outputs);
      x = ggml_get_rows(ctx, x, g.outputs);
    }
    x = ggml_add(ctx, x, b.norm(ggml_mul_mat(ctx, layer.out, h), layer.attention_post_norm));
    x = ggml_add(ctx, x, b.norm(b.feed_forward(layer, b.norm(x, layer.ffn_norm)), layer.ffn_post_norm));
  }
  g.logits = b.logits(x);
  ggml_set_output(g.logits);
  ggml_build_forward_expand(g.operations, g.logits);
  return g;
}

/// Makes graph_ that of a pass, with memory. Passes of decode have the same extents again and again.
void Engine::prepare_graph(Index rows, Index outputs) {
  if (graph_ != nullptr && graph_->fits(rows, outputs)) {
    return;
  }
  graph_ = nullptr;  // its memory goes to the next one
  auto graph = std::make_unique<Graph>(build_graph(rows, outputs));
  if (!ggml_gallocr_alloc_graph(memory_.get(), graph->operations)) {
    throw std::bad_alloc();
  }
  graph_ = std::move(graph);
}

/// The custom operator: stores keys and values, and computes attention over all that the cache has of the sequences.
/// All threads of ggml come here; thread 0 calls kvc, and the others are its executor.
void Engine::attend(ggml_tensor* out, int ith, int nth, void* layer) {
  const auto& [engine, index] = *static_cast<const AttentionOfLayer*>(layer);
  engine->threads_.run(ith, nth, [engine = engine, index = index, out](const kvc::Spmd::Team& team) {
    const auto start = Clock::now();
    const auto data = [out](int i) { return static_cast<const float*>(out->src[i]->data); };
    try {
      if (!engine->error_) {
        engine->cache_->attend(index, data(0), data(1), data(2), static_cast<float*>(out->data), team);
      }
    } catch (...) {
      engine->error_ = std::current_exception();
    }
    engine->profile_.attention += seconds_since(start);
  });
}

Logits Engine::pass(std::span<const Chunk> chunks, Wanted wanted) {
  const auto start = Clock::now();
  std::vector<std::int32_t> tokens, positions, outputs;
  for (const Chunk& chunk : chunks) {
    kvc::require(!chunk.tokens.empty(), "chunk.tokens", "empty", "at least one token");
    Pos position = cache_->length(chunk.seq);
    for (const Token& token : chunk.tokens) {
      kvc::require(token >= 0 && token < model_->vocab_size(), "token", token, "a token of the vocabulary");
      if (wanted == Wanted::all || (wanted == Wanted::last && &token == &chunk.tokens.back())) {
        outputs.push_back(static_cast<std::int32_t>(tokens.size()));
      }
      tokens.push_back(token);
      positions.push_back(position++);
    }
  }
  kvc::require(!chunks.empty(), "chunks", "empty", "at least one chunk");

  prepare_graph(std::ssize(tokens), std::ssize(outputs));
  const Graph& graph = *graph_;
  const auto fill = [](ggml_tensor* input, const std::vector<std::int32_t>& values) {
    if (input != nullptr) {
      ggml_backend_tensor_set(input, values.data(), 0, values.size() * sizeof values[0]);
    }
  };
  fill(graph.tokens, tokens);
  fill(graph.positions, positions);
  fill(graph.outputs, outputs);

  cache_->begin(chunks);
  const ggml_status status = ggml_backend_graph_compute(backend_.get(), graph.operations);
  if (error_ || status != GGML_STATUS_SUCCESS) {
    cache_->rollback();
    if (error_) {
      std::rethrow_exception(std::exchange(error_, nullptr));
    }
    throw std::runtime_error(std::string("ggml could not compute the graph: ") + ggml_status_to_string(status));
  }
  cache_->commit();

  Logits logits;
  if (graph.logits != nullptr) {
    logits.columns = model_->vocab_size();
    logits.values = {static_cast<const float*>(graph.logits->data),
                     outputs.size() * static_cast<std::size_t>(logits.columns)};
  }
  profile_.total += seconds_since(start);
  return logits;
}

}  // namespace ggml_engine
