// The node tests of the ONNX operator Attention, through a cache: past and present keys and values are what the cache
// holds.
#include "catch.hpp"

#ifndef KVC_HAVE_PROTOBUF

TEST_CASE("ONNX Attention", "[attention][onnx]") { KVC_SKIP("compiled without protobuf"); }

#else

#include <optional>

#include "attend.hpp"
#include "kvc/attention/scores.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "onnx_case.hpp"

using namespace kvc_test;
using kvc::Index;
using kvc::MatrixRef;
using kvc::Pos;

namespace {

/// A tensor of [batch, heads, tokens, dim], or of [batch, tokens, heads * dim], as one matrix [tokens, heads * dim] per
/// sequence.
struct Rows {
  Index batch, heads, tokens, dim;
  std::vector<float> data;  // [batch, tokens, heads * dim]

  Rows(Index b, Index h, Index t, Index d)
      : batch(b), heads(h), tokens(t), dim(d), data(static_cast<std::size_t>(b * h * t * d)) {}
  MatrixRef<float> sequence(Index b) { return {data.data() + b * tokens * heads * dim, tokens, heads * dim}; }

  /// f(place in data, place in the tensor) for each number.
  template <class F>
  void each(bool four_d, F f) const {
    for (Index b = 0; b < batch; ++b) {
      for (Index t = 0; t < tokens; ++t) {
        for (Index h = 0; h < heads; ++h) {
          for (Index d = 0; d < dim; ++d) {
            const Index here = ((b * tokens + t) * heads + h) * dim + d;
            f(static_cast<std::size_t>(here),
              static_cast<std::size_t>(four_d ? ((b * heads + h) * tokens + t) * dim + d : here));
          }
        }
      }
    }
  }
  static Rows of(const OnnxTensor& tensor, std::int64_t heads_attribute) {
    const bool four_d = tensor.dims.size() == 4;
    if (!four_d && (tensor.dims.size() != 3 || heads_attribute < 1)) {
      throw std::runtime_error(tensor.name + ": neither 4-D nor 3-D with a number of heads");
    }
    Rows rows = four_d ? Rows(tensor.dim(0), tensor.dim(1), tensor.dim(2), tensor.dim(3))
                       : Rows(tensor.dim(0), heads_attribute, tensor.dim(1), tensor.dim(2) / heads_attribute);
    rows.each(four_d,
              [&](std::size_t here, std::size_t there) { rows.data[here] = static_cast<float>(tensor.values[there]); });
    return rows;
  }
  std::vector<float> tensor(bool four_d) const {
    std::vector<float> values(data.size());
    each(four_d, [&](std::size_t here, std::size_t there) { values[there] = data[here]; });
    return values;
  }
};

/// attn_mask, which broadcasts from the right to [batch, query_heads, rows, total]; keys beyond its last dimension are
/// masked.
class Mask {
 public:
  Mask(const OnnxTensor* tensor, Index batch, Index heads, Index rows) {
    if (tensor == nullptr) {
      return;
    }
    if (tensor->dims.empty() || tensor->dims.size() > 4) {
      throw std::runtime_error("attn_mask of rank " + std::to_string(tensor->dims.size()));
    }
    std::vector<Index> dims(4 - tensor->dims.size(), 1);
    dims.insert(dims.end(), tensor->dims.begin(), tensor->dims.end());
    const Index full[3] = {batch, heads, rows};
    Index stride = dims[3];
    for (std::size_t i = 3; i-- > 0;) {
      if (dims[i] != 1 && dims[i] != full[i]) {
        throw std::runtime_error("attn_mask does not broadcast");
      }
      strides_[i] = dims[i] == 1 ? 0 : stride;
      stride *= dims[i];
    }
    cols_ = dims[3];
    boolean_ = tensor->type == OnnxType::boolean;
    floats_ = tensor->floats();
    bools_.reset(new bool[floats_.size()]);
    std::transform(floats_.begin(), floats_.end(), bools_.get(), [](float x) { return x != 0; });
  }

  kvc::AttentionMask of(Index b, Index heads, Index rows) const {
    if (!bools_) {
      return {};
    }
    const Index start = b * strides_[0];
    const auto mask = boolean_ ? kvc::AttentionMask::boolean(bools_.get() + start, heads, rows, cols_)
                               : kvc::AttentionMask::additive(floats_.data() + start, heads, rows, cols_);
    return mask.with_strides(strides_[1], strides_[2], 1);
  }

 private:
  std::unique_ptr<bool[]> bools_;
  std::vector<float> floats_;
  bool boolean_ = false;
  Index strides_[3] = {};
  Index cols_ = 0;
};

template <class T, class Policy>
void run(const OnnxCase& c, const typename Policy::Config& config) {
  enum { q_in, k_in, v_in, mask_in, past_k_in, past_v_in, nonpad_in };
  enum { y_out, present_k_out, present_v_out, qk_out };
  const std::int64_t kv_attribute = c.integer("kv_num_heads", 0);
  Rows q = Rows::of(*c.input(q_in), c.integer("q_num_heads", 0));
  Rows k = Rows::of(*c.input(k_in), kv_attribute), v = Rows::of(*c.input(v_in), kv_attribute);
  const bool has_past = c.input(past_k_in) != nullptr;
  Rows past_k = has_past ? Rows::of(*c.input(past_k_in), kv_attribute) : Rows(k.batch, k.heads, 0, k.dim);
  Rows past_v = has_past ? Rows::of(*c.input(past_v_in), kv_attribute) : Rows(v.batch, v.heads, 0, v.dim);
  const OnnxTensor* nonpad = c.input(nonpad_in);
  const Index total = past_k.tokens + k.tokens;
  const Mask mask(c.input(mask_in), q.batch, q.heads, q.tokens);

  kvc::AttentionOptions options{.causal = c.integer("is_causal", 0) != 0,
                                .softcap = static_cast<float>(c.number("softcap", 0))};
  const double scale = c.number("scale", 0);
  if (scale != 0) {  // 0 stands for the default
    options.scale = static_cast<float>(scale);
  }
  const auto stage = static_cast<kvc::ScoreStage>(c.integer("qk_matmul_output_mode", 0));
  if (stage < kvc::ScoreStage::raw || stage > kvc::ScoreStage::softmax) {
    throw std::runtime_error("qk_matmul_output_mode is not between 0 and 3");
  }

  kvc::KvCache<T, Policy> cache({.layers = 1, .kv_heads = k.heads, .key_dim = k.dim, .value_dim = v.dim}, config);
  Rows y(q.batch, q.heads, q.tokens, v.dim);
  Rows present_k(k.batch, k.heads, total, k.dim), present_v(v.batch, v.heads, total, v.dim);
  std::vector<float> qk(static_cast<std::size_t>(q.batch * q.heads * q.tokens * total));

  for (Index b = 0; b < q.batch; ++b) {
    const kvc::SeqId seq = cache.open();
    if (past_k.tokens > 0) {
      auto past = cache.extend_without_tokens(seq, past_k.tokens);
      cache.write(0, past, past_k.sequence(b), past_v.sequence(b));
      cache.commit(std::move(past));
    }
    auto append = cache.extend_without_tokens(seq, k.tokens);
    cache.write(0, append, k.sequence(b), v.sequence(b));
    cache.commit(std::move(append));
    cache.gather(0, seq, {0, static_cast<Pos>(total)}, present_k.sequence(b), present_v.sequence(b));

    // The scores before the mask are of all keys, padding too.
    Pos first = static_cast<Pos>(past_k.tokens);
    const auto length = nonpad == nullptr ? total : static_cast<Index>(nonpad->values.at(static_cast<std::size_t>(b)));
    if (nonpad != nullptr) {
      first = static_cast<Pos>(length - q.tokens);
    }
    const kvc::PosRange queries{first, first + static_cast<Pos>(q.tokens)};
    options.mask = mask.of(b, q.heads, q.tokens);
    const Index rows = q.heads * q.tokens;
    float* scores = qk.data() + b * rows * total;
    const bool after_mask = stage >= kvc::ScoreStage::masked;
    if (!after_mask) {
      kvc::attention_scores(cache.view(0, seq), queries, q.sequence(b), stage, MatrixRef<float>(scores, rows, total),
                            options);
    }
    cache.truncate(seq, length);
    if (after_mask) {
      const float masked = stage == kvc::ScoreStage::masked ? -std::numeric_limits<float>::infinity() : 0.0F;
      std::fill_n(scores, rows * total, masked);
      std::vector<float> visible(static_cast<std::size_t>(rows * length));
      kvc::attention_scores(cache.view(0, seq), queries, q.sequence(b), stage,
                            MatrixRef<float>(visible.data(), rows, length), options);
      for (Index r = 0; r < rows; ++r) {
        std::copy_n(visible.data() + r * length, length, scores + r * total);
      }
    }

    Attend<T>::prefill(cache.view(0, seq), queries, q.sequence(b), y.sequence(b), options);
    if (q.tokens == 1 && first == length - 1) {
      std::vector<float> decoded(static_cast<std::size_t>(q.heads * v.dim));
      Attend<T>::decode(cache.view(0, seq), q.sequence(b), MatrixRef<float>(decoded.data(), 1, q.heads * v.dim),
                        options);
      CHECK(std::equal(decoded.begin(), decoded.end(), y.sequence(b).data()));
    }
  }

  check_onnx(y.tensor(c.output(y_out)->dims.size() == 4), *c.output(y_out));
  if (c.output(present_k_out) != nullptr) {
    check_onnx(present_k.tensor(true), *c.output(present_k_out));
    check_onnx(present_v.tensor(true), *c.output(present_v_out));
  }
  if (c.output(qk_out) != nullptr) {
    check_onnx(qk, *c.output(qk_out));
  }
}

template <class Policy>
void run(const OnnxCase& c, const typename Policy::Config& config) {
  if (c.op != "Attention" || c.input(0) == nullptr || c.input(1) == nullptr || c.input(2) == nullptr ||
      c.output(0) == nullptr) {
    throw std::runtime_error("not an Attention node with Q, K, V and Y");
  }
  // softmax_precision asks for at least that of its type, up to float: float is what is used throughout.
  const OnnxType k = c.input(1)->type, v = c.input(2)->type;
  if (k == OnnxType::f16 && v == OnnxType::f16) {
    run<Eigen::half, Policy>(c, config);
  } else if (k == OnnxType::bf16 && v == OnnxType::bf16) {
    run<Eigen::bfloat16, Policy>(c, config);
  } else {
    run<float, Policy>(c, config);
  }
}

template <class Policy>
struct Configured;
template <>
struct Configured<kvc::Contiguous> {
  static kvc::Contiguous::Config config() { return {.sequences = 16, .max_tokens = 1024}; }
};
template <>
struct Configured<kvc::Paged> {
  static kvc::Paged::Config config() { return {.blocks = 4096, .block_tokens = 4}; }
};
template <>
struct Configured<kvc::PrefixShared<>> {
  static kvc::PrefixShared<>::Config config() { return {.blocks = 4096, .block_tokens = 4}; }
};

}  // namespace

TEMPLATE_TEST_CASE("ONNX Attention", "[attention][onnx]", kvc::Contiguous, kvc::Paged, kvc::PrefixShared<>) {
  for (const auto& folder : onnx_folders("test_attention_")) {
    INFO(folder.filename().string());
    try {
      run<TestType>(load_onnx_case(folder), Configured<TestType>::config());
    } catch (const std::exception& error) {
      FAIL_CHECK(folder.filename().string() << ": " << error.what());
    }
  }
}

#endif
