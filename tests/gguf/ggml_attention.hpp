// GgmlAttention: a cache whose attention llama.cpp could have computed, with flash attention off: the same operations
// of ggml, over keys and values in f32 in the same cells. With it, the engine gives llama.cpp's numbers bit for bit,
// where both use the same code of ggml. Beside it, a cache of kvc can compute the same rows.
#pragma once

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "ggml/cache.hpp"
#include "ggml/gguf_file.hpp"
#include "ggml/model.hpp"
#include "kvc/core/types.hpp"

namespace kvc_test {

/// Whether ggml adds in the order of the golden tokens: compiled for a processor like theirs and, as far as the
/// compiler of the tests tells, by g++. Another one may contract products and sums otherwise.
inline bool adds_as_goldens() {
#if defined(__GNUC__) && !defined(__clang__)
  return ggml_cpu_has_avx2() == 1 && ggml_cpu_has_avx512() == 0;
#else
  return false;
#endif
}

/// One sequence, in passes of at most 512 tokens.
class GgmlAttention final : public ggml_engine::Cache {
 public:
  using Index = kvc::Index;
  using Pos = kvc::Pos;

  static constexpr Pos pass_tokens = 512;  // llama.cpp's n_ubatch

  /// `beside` computes the same rows, if it is given.
  GgmlAttention(const ggml_engine::Model& model, Pos max_tokens, std::unique_ptr<ggml_engine::Cache> beside = nullptr)
      : model_(&model), beside_(std::move(beside)) {
    for (const ggml_engine::Layer& layer : model.layers) {
      // Layers with a window have a ring of cells: the window, and one pass.
      const Pos wanted = layer.window == 0 ? max_tokens : std::min(max_tokens, layer.window + pass_tokens);
      const Index cells = kvc::ceil_div<Index>(wanted, cell_step) * cell_step;
      cells_.push_back({cells, std::vector<float>(static_cast<std::size_t>(cells * model.kv_heads * model.key_dim)),
                        std::vector<float>(static_cast<std::size_t>(cells * model.kv_heads * model.value_dim))});
    }
  }

  kvc::Opened open(std::span<const kvc::Token> prompt) override {
    REQUIRE(length_ == 0);
    return beside_ ? beside_->open(prompt) : kvc::Opened{};
  }
  void close(kvc::SeqId seq) override {
    if (beside_) beside_->close(seq);
  }
  Pos length(kvc::SeqId) const override { return length_; }
  void begin(std::span<const ggml_engine::Chunk> chunks) override {
    REQUIRE(chunks.size() == 1);
    REQUIRE(chunks[0].tokens.size() <= static_cast<std::size_t>(pass_tokens));
    rows_ = static_cast<Pos>(chunks[0].tokens.size());
    if (beside_) beside_->begin(chunks);
  }
  void commit() override {
    length_ += rows_;
    if (beside_) beside_->commit();
  }
  void rollback() noexcept override {
    if (beside_) beside_->rollback();
  }

  void attend(Index layer, const float* q, const float* k, const float* v, float* out,
              const kvc::Spmd::Team& team) override {
    const ggml_engine::Model& m = *model_;
    Cells& cells = cells_[static_cast<std::size_t>(layer)];
    const Index key_columns = m.kv_heads * m.key_dim, value_columns = m.kv_heads * m.value_dim;
    for (Index row = 0; row < rows_; ++row) {
      const Index cell = (length_ + row) % cells.count;
      std::copy_n(k + row * key_columns, key_columns, cells.keys.data() + cell * key_columns);
      for (Index c = 0; c < value_columns; ++c) {  // transposed
        cells.values[static_cast<std::size_t>(c * cells.count + cell)] = v[row * value_columns + c];
      }
    }
    compute(m, m.layers[static_cast<std::size_t>(layer)].window, cells, q, out);
    if (beside_) {
      const Index columns = m.heads * m.value_dim;
      beside_out_.resize(static_cast<std::size_t>(rows_ * columns));
      beside_->attend(layer, q, k, v, beside_out_.data(), team);
      for (Index row = 0; row < rows_; ++row) {
        float difference = 0, size = 0;
        for (Index c = row * columns; c < (row + 1) * columns; ++c) {
          difference = std::max(difference, std::abs(out[c] - beside_out_[static_cast<std::size_t>(c)]));
          size = std::max(size, std::abs(out[c]));
        }
        most_difference_ = std::max(most_difference_, difference / size);
        ++compared_;
      }
    }
  }

  void save(const std::string&) const override { FAIL("not for this cache"); }
  std::vector<kvc::SeqId> load(const std::string&) override {
    FAIL("not for this cache");
    return {};
  }
  kvc::Stats stats() const override { return {}; }
  Index pool_bytes() const override { return 0; }
  Index held_bytes() const override { return 0; }

  /// Of the outputs of `beside`, the largest difference of an element from ours, as a part of the largest element of
  /// its row.
  [[nodiscard]] float most_difference() const noexcept { return most_difference_; }
  /// Rows that were compared.
  [[nodiscard]] Index compared() const noexcept { return compared_; }

 private:
  static constexpr Index cell_step = 256;  // llama.cpp computes over multiples of so many cells

  struct Cells {
    Index count;
    std::vector<float> keys;    // [count, kv_heads * key_dim]
    std::vector<float> values;  // [kv_heads * value_dim, count]
  };

  /// Whether the row at `position` sees what is in a cell: its last position that is stored.
  [[nodiscard]] bool sees(Pos position, Index cell, Index count, Pos window) const {
    const Index last = length_ + rows_ - 1;
    const Index stored = last - ((last - cell) % count + count) % count;
    return stored >= 0 && stored <= position && (window == 0 || position - stored < window);
  }

  void compute(const ggml_engine::Model& m, Pos window, Cells& cells, const float* q, float* out) {
    const Index seen = std::min<Index>(
        cells.count, kvc::ceil_div<Index>(std::min<Index>(length_ + rows_, cells.count), cell_step) * cell_step);
    const ggml_engine::Context owner(ggml_init(
        {.mem_size = static_cast<std::size_t>((4 * m.heads + 2) * seen * rows_ + 8 * m.heads * m.value_dim * rows_) *
                         sizeof(float) +
                     (std::size_t{1} << 20),
         .mem_buffer = nullptr,
         .no_alloc = false}));
    ggml_context* const ctx = owner.get();
    const auto over = [ctx](void* data, Index ne0, Index ne1, Index ne2, Index stride1, Index stride2) {
      ggml_set_no_alloc(ctx, true);
      ggml_tensor* const tensor = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, ne0, ne1, ne2);
      ggml_set_no_alloc(ctx, false);
      tensor->data = data;
      tensor->nb[1] = static_cast<std::size_t>(stride1) * sizeof(float);
      tensor->nb[2] = static_cast<std::size_t>(stride2) * sizeof(float);
      tensor->nb[3] = tensor->nb[2] * static_cast<std::size_t>(ne2);
      return tensor;
    };
    ggml_tensor* const queries = ggml_permute(
        ctx, over(const_cast<float*>(q), m.key_dim, m.heads, rows_, m.key_dim, m.key_dim * m.heads), 0, 2, 1, 3);
    ggml_tensor* const keys = over(cells.keys.data(), m.key_dim, seen, m.kv_heads, m.kv_heads * m.key_dim, m.key_dim);
    ggml_tensor* const values =
        over(cells.values.data(), seen, m.value_dim, m.kv_heads, cells.count, cells.count * m.value_dim);
    ggml_tensor* const mask = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, seen, rows_);
    for (Index row = 0; row < rows_; ++row) {
      for (Index cell = 0; cell < seen; ++cell) {
        static_cast<float*>(mask->data)[row * seen + cell] =
            sees(static_cast<Pos>(length_ + row), cell, cells.count, window) ? 0
                                                                             : -std::numeric_limits<float>::infinity();
      }
    }
    ggml_tensor* scores = ggml_mul_mat(ctx, keys, queries);
    scores = ggml_soft_max_ext(ctx, scores, mask, m.attention_scale, 0.0F);
    ggml_tensor* const rows = ggml_cont_2d(ctx, ggml_permute(ctx, ggml_mul_mat(ctx, values, scores), 0, 2, 1, 3),
                                           m.heads * m.value_dim, rows_);
    ggml_cgraph* const graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, rows);
    REQUIRE(ggml_graph_compute_with_ctx(ctx, graph, 1) == GGML_STATUS_SUCCESS);
    std::copy_n(static_cast<const float*>(rows->data), m.heads * m.value_dim * rows_, out);
  }

  const ggml_engine::Model* model_;
  std::unique_ptr<ggml_engine::Cache> beside_;
  std::vector<Cells> cells_;  // [layers]
  std::vector<float> beside_out_;
  Pos length_ = 0;
  Pos rows_ = 0;
  float most_difference_ = 0;
  Index compared_ = 0;
};

}  // namespace kvc_test
