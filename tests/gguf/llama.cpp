// The graph of the family Llama: a trained model of that family, written as a GGUF file, beside kvc's own decoder.

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "gemma.hpp"
#include "gguf_writer.hpp"
#include "golden/stories.hpp"
#include "kvc/cache.hpp"
#include "kvc/llama/decoder.hpp"
#include "kvc/policy/paged.hpp"
#include "run_model.hpp"
#include "temp_files.hpp"

namespace {

using kvc::llama::Matrix;

/// `extra`: also a tensor that no Llama has.
void write_gguf(const kvc::llama::Model& model, const std::string& path, const char* architecture, bool extra) {
  const kvc::llama::Config& c = model.config;
  kvc_test::GgufWriter writer;
  const std::string prefix = architecture;
  const auto key = [&](const char* name) { return prefix + "." + name; };
  writer.set("general.architecture", architecture);
  writer.set(key("embedding_length").c_str(), c.dim);
  writer.set(key("attention.head_count").c_str(), c.heads);
  writer.set(key("attention.head_count_kv").c_str(), c.kv_heads);
  writer.set(key("block_count").c_str(), c.layers);
  writer.set(key("context_length").c_str(), c.seq_len);
  writer.set(key("feed_forward_length").c_str(), c.hidden_dim);
  writer.set(key("attention.layer_norm_rms_epsilon").c_str(), c.norm_epsilon);
  writer.set(key("rope.freq_base").c_str(), c.rope_theta);
  writer.add("token_embd.weight", model.embedding);
  writer.add("output_norm.weight", model.final_norm);
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const kvc::llama::Layer& layer = model.layers[i];
    const std::string block = "blk." + std::to_string(i) + ".";
    writer.add(block + "attn_norm.weight", layer.attention_norm);
    writer.add(block + "attn_q.weight", layer.wq);
    writer.add(block + "attn_k.weight", layer.wk);
    writer.add(block + "attn_v.weight", layer.wv);
    writer.add(block + "attn_output.weight", layer.wo);
    writer.add(block + "ffn_norm.weight", layer.ffn_norm);
    writer.add(block + "ffn_gate.weight", layer.w_gate);
    writer.add(block + "ffn_up.weight", layer.w_up);
    writer.add(block + "ffn_down.weight", layer.w_down);
  }
  if (extra) {
    writer.add("blk.0.attn_q.bias", model.final_norm);
  }
  writer.write(path);
}

}  // namespace

TEST_CASE("a Llama in a GGUF file has the logits of kvc's decoder", "[gguf]") {
  const kvc_test::Stories stories;
  const kvc_test::TempFolder folder;
  write_gguf(stories.model, folder.file("model.gguf"), "llama", false);
  const ggml_engine::Model model = ggml_engine::Model::load(folder.file("model.gguf"));
  REQUIRE_FALSE(model.vocabulary.has_value());

  const kvc_test::Tokens tokens =
      stories.tokenizer.encode("Once upon a time, there was a little girl named Lily. She loved to play outside.");
  kvc::KvCache<float, kvc::Paged> cache(stories.model.config.cache_shape(), {.blocks = 16, .block_tokens = 16});
  const Matrix expected = kvc_test::teach(stories.model, cache, cache.open(), tokens, 0);

  for (const int threads : {1, 3}) {
    kvc_test::EngineRun run({.max_tokens = 128}, threads, model);
    const kvc_test::Chunk chunk{run.cache->open({}).seq, tokens};
    const ggml_engine::Logits logits = run.engine.pass(std::span(&chunk, 1), kvc_test::Wanted::all);
    REQUIRE(logits.rows() == expected.rows());
    REQUIRE(logits.columns == expected.cols());
    const Eigen::Map<const Matrix> found(logits.values.data(), expected.rows(), expected.cols());
    const float difference = (found - expected).cwiseAbs().maxCoeff();
    CAPTURE(threads, difference);
    REQUIRE(difference < 1e-3F);
  }
}

TEST_CASE("a GGUF file that the engine cannot run is refused by name", "[gguf]") {
  const kvc_test::Stories stories;
  const kvc_test::TempFolder folder;
  write_gguf(stories.model, folder.file("mamba.gguf"), "mamba", false);
  REQUIRE_THROWS_WITH(ggml_engine::Model::load(folder.file("mamba.gguf")),
                      kvc_test::contains("mamba.gguf") && kvc_test::contains("gemma3"));
  write_gguf(stories.model, folder.file("extra.gguf"), "llama", true);
  REQUIRE_THROWS_WITH(ggml_engine::Model::load(folder.file("extra.gguf")), kvc_test::contains("blk.0.attn_q.bias"));
  write_gguf(stories.model, folder.file("qwen.gguf"), "qwen3", false);
  REQUIRE_THROWS_WITH(ggml_engine::Model::load(folder.file("qwen.gguf")), kvc_test::contains("attn_q_norm"));
  write_gguf(stories.model, folder.file("llama.gguf"), "llama", false);
  const std::string whole = kvc_test::file_text(folder.file("llama.gguf"));
  folder.write("short.gguf", whole.substr(0, whole.size() - 1000));
  REQUIRE_THROWS_WITH(ggml_engine::Model::load(folder.file("short.gguf")), kvc_test::contains("short.gguf"));
}
