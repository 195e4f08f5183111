// Decode by ggml, the library of llama.cpp: its flash attention on the CPU, ggml_flash_attn_ext.
//
//   peer_ggml/decode/<type>/best/...   keys and values of a head one after the other: [kv head][position][dim]
//   peer_ggml/decode/<type>/own/...    as llama.cpp stores them: [position][kv head][dim], seen through a permutation
//
// No mask, queries in float, threads that spin between calls: whatever is fastest for it.
#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention/filled.hpp"
#include "peers/rows.hpp"

namespace {
using namespace kvc_bench;

struct FreeContext {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
struct FreeThreads {
  void operator()(ggml_threadpool* threads) const { ggml_threadpool_free(threads); }
};

/// One graph of one node for each layer.
class Decode {
 public:
  Decode(ggml_type type, bool own_layout, std::int64_t length, const Heads& heads, PeerRows& rows, int threads)
      : q_(random_numbers(heads.query * heads.key_dim, 4)),
        out_(static_cast<std::size_t>(heads.query * heads.value_dim)),
        context_(ggml_init({rows.layers() * (ggml_graph_overhead_custom(8, false) + 8 * ggml_tensor_overhead()) + 4096,
                            nullptr, true})) {
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    params.poll = 100;
    threads_.reset(ggml_threadpool_new(&params));
    if (context_ == nullptr || threads_ == nullptr) {
      throw std::runtime_error("ggml: no context or no threads");
    }
    ggml_context* const c = context_.get();
    const auto tensor = [&](std::byte* data, std::int64_t dim) {
      ggml_tensor* t = own_layout ? ggml_new_tensor_3d(c, type, dim, heads.kv, length)
                                  : ggml_new_tensor_3d(c, type, dim, length, heads.kv);
      t->data = data;
      return own_layout ? ggml_permute(c, t, 0, 2, 1, 3) : t;
    };
    for (std::size_t layer = 0; layer < rows.layers(); ++layer) {
      ggml_tensor* q = ggml_new_tensor_3d(c, GGML_TYPE_F32, heads.key_dim, 1, heads.query);
      q->data = q_.data();
      ggml_tensor* k = tensor(rows.keys(layer), heads.key_dim);
      ggml_tensor* v = tensor(rows.values(layer), heads.value_dim);
      const float scale = 1.0F / std::sqrt(static_cast<float>(heads.key_dim));
      ggml_tensor* out = ggml_flash_attn_ext(c, q, k, v, nullptr, scale, 0.0F, 0.0F);
      out->data = out_.data();
      graphs_.push_back(ggml_new_graph_custom(c, 8, false));
      ggml_build_forward_expand(graphs_.back(), out);
    }
    plan_ = ggml_graph_plan(graphs_.front(), threads, threads_.get());
    memory_.resize(plan_.work_size);
    plan_.work_data = memory_.data();
  }

  void operator()(std::size_t i) {
    if (ggml_graph_compute(graphs_[i % graphs_.size()], &plan_) != GGML_STATUS_SUCCESS) {
      throw std::runtime_error("ggml_graph_compute failed");
    }
  }

 private:
  std::vector<float> q_, out_;
  std::unique_ptr<ggml_context, FreeContext> context_;
  std::unique_ptr<ggml_threadpool, FreeThreads> threads_;
  std::vector<ggml_cgraph*> graphs_;
  ggml_cplan plan_{};
  std::vector<std::uint8_t> memory_;
};

std::vector<std::byte> encoded_rows(ggml_type type, Index dim) {
  constexpr Index count = 1024;
  const std::vector<float> numbers = random_numbers(count * dim, 1);
  std::vector<std::byte> rows(ggml_row_size(type, dim) * count);
  ggml_quantize_chunk(type, numbers.data(), rows.data(), 0, count, dim, nullptr);
  return rows;
}

void add_decode(ggml_type type, bool own_layout, Index length) {
  const std::string type_name = ggml_type_name(type);
  const std::string rows_key = "peer_ggml/" + type_name + "/" + std::to_string(length);
  const std::string name =
      "peer_ggml/decode/" + type_name + (own_layout ? "/own" : "/best") + "/kv:" + std::to_string(length);
  for (const int threads : thread_counts()) {
    add(name + "/threads:" + std::to_string(threads), [=](benchmark::State& state) {
      const Heads heads;
      const auto rows =
          kept<PeerRows>(rows_key, ggml_row_size(type, heads.key_dim) * static_cast<std::size_t>(length * heads.kv),
                         encoded_rows(type, heads.key_dim));
      Decode decode(type, own_layout, length, heads, *rows, threads);
      const Work work{rows->bytes_per_layer(), heads.operations(static_cast<double>(length)), unit_of(type_name)};
      measure(state, threads, work, decode);
    });
  }
}

const Cases cases(11, [] {
  ggml_cpu_init();
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
    for (const Index length : {4096, 16384, 65536}) {
      for (const bool own_layout : {false, true}) {
        add_decode(type, own_layout, length);
      }
    }
  }
});
}  // namespace
