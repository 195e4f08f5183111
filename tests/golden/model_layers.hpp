// The layers of real architectures with float64-verified results: what a cache got, and what attention gave.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "catch.hpp"
#include "delta_rule.hpp"
#include "kvc/attention/expanded.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "npy.hpp"
#include "temp_files.hpp"
#include "test_data.hpp"

namespace kvc_test {

/// Rows of an indexer, which says what the rows of its layer see.
struct Indexer {
  kvc::Index heads = 0;
  kvc::Index dim = 0;
  float scale = 0;
  Npy<float> q, w, k;  // [T, heads, dim], [T, heads], [T, dim]
};

/// The expanded form of latent rows.
struct ExpandedForm {
  kvc::LatentExtents extents;
  Npy<float> q, w_uk, w_uv,
      out;  // [T, heads, key_dim], [heads, key_dim - rest, latent], [heads, value_dim, latent], ...

  [[nodiscard]] kvc::UpProjections projections() const {
    return {{w_uk.data.data(), w_uk.extents[0] * w_uk.extents[1], extents.latent_dim},
            {w_uv.data.data(), w_uv.extents[0] * w_uv.extents[1], extents.latent_dim},
            w_uk.extents[0],
            extents.row_dim - extents.latent_dim};
  }
};

/// One layer: its rows as they are appended to a cache, its queries, and its results.
struct ModelLayer {
  kvc::Index query_heads = 0;
  kvc::LayerKind kind;
  std::optional<kvc::Index> reads;  // the layer whose rows it reads
  float scale = 0;
  float softcap = 0;
  std::vector<float> sinks;              // [query_heads] or empty
  Npy<float> q, k, v, out;               // [T, heads, dim]; of latent rows k alone, q absorbed, and out before w_uv
  std::optional<ExpandedForm> expanded;  // of latent rows
  std::optional<Indexer> indexer;
  std::optional<DeltaRule> recurrent;  // a recurrent layer, which has nothing of the above
  Npy<std::int32_t> selected;  // [T, top_k] positions that a row sees, then -1; empty: all that the kind lets it see

  /// Of plain float arithmetic on these data, absolute.
  [[nodiscard]] float tolerance() const { return kind.latent ? 1e-5F : 2e-6F; }

  [[nodiscard]] kvc::AttentionOptions options() const {
    return {.scale = scale, .window = kind.window, .chunk = kind.chunk, .softcap = softcap, .sinks = sinks};
  }
};

/// All layers of one architecture, as its manifest describes them.
struct LayersOfModel {
  std::string name;          // of the folder
  std::string architecture;  // as the manifest calls it
  std::string unsupported;   // not empty: the first layer that no group of today can hold. There are no layers then
  kvc::Pos prefill = 0;      // tokens that the model read in one pass; the others came one by one
  std::vector<kvc::Token> tokens;  // [T]
  std::vector<ModelLayer> layers;

  [[nodiscard]] kvc::Pos length() const { return static_cast<kvc::Pos>(tokens.size()); }
  /// As a user writes it: the layers, and behind them the rows of their indexers.
  [[nodiscard]] kvc::LayerGroups groups() const {
    kvc::LayerGroups groups;
    for (const ModelLayer& layer : layers) {
      layer.recurrent ? groups.add_state(layer.recurrent->bytes())
      : layer.reads   ? groups.add_reader_of(*layer.reads)
                      : groups.add(layer.kind);
    }
    for (const ModelLayer& layer : layers) {
      if (layer.indexer) {
        groups.add({.kv_heads = 1, .key_dim = layer.indexer->dim, .latent = true});
      }
    }
    return groups;
  }
  [[nodiscard]] bool is_recurrent() const {
    return std::ranges::any_of(layers, [](const ModelLayer& layer) { return layer.recurrent.has_value(); });
  }
  /// The number, in groups(), of the rows of a layer's indexer.
  [[nodiscard]] kvc::Index index_layer(kvc::Index layer) const {
    return static_cast<kvc::Index>(layers.size()) +
           std::count_if(layers.begin(), layers.begin() + layer,
                         [](const ModelLayer& l) { return l.indexer.has_value(); });
  }
};

namespace detail {

/// Why a cache cannot hold a layer; empty if it can.
inline std::string unsupported(const nlohmann::json& layer) {
  const std::string kind = layer.at("kind");
  if (kind == "linear") {
    return layer.contains("conv_kernel") ? std::string() : "kind linear without a convolution";
  }
  if (kind != "full" && kind != "window" && kind != "chunk" && kind != "top-k") {
    return "kind " + kind;
  }
  if ((layer.at("window") > 0) != (kind == "window") || (layer.at("chunk") > 0) != (kind == "chunk")) {
    return "kind " + kind + " with window " + layer.at("window").dump() + " and chunk " + layer.at("chunk").dump();
  }
  if (kind == "top-k" && !layer.at("arrays").contains("selected")) {
    return "kind top-k without a selection";
  }
  return {};
}

template <class S>
Npy<S> array(const std::filesystem::path& folder, const nlohmann::json& entry, const std::vector<kvc::Index>& extents) {
  Npy<S> array = read_npy<S>(folder / entry.at("file").get<std::string>());
  if (array.extents != extents || entry.at("extents").get<std::vector<kvc::Index>>() != extents) {
    throw std::runtime_error(folder.string() + "/" + entry.at("file").get<std::string>() +
                             " has other extents than its layer says");
  }
  return array;
}

inline DeltaRule delta_rule(const std::filesystem::path& folder, const nlohmann::json& entry, kvc::Index tokens) {
  const auto extent = [&](const char* name) { return entry.at(name).get<kvc::Index>(); };
  const nlohmann::json& arrays = entry.at("arrays");
  DeltaRule rule;
  rule.key_heads = extent("key_heads");
  rule.value_heads = extent("value_heads");
  rule.key_dim = extent("key_dim");
  rule.value_dim = extent("value_dim");
  rule.kernel = extent("conv_kernel");
  rule.channels = extent("channels");
  rule.state_positions = entry.at("state_positions").get<std::vector<kvc::Pos>>();
  const auto positions = static_cast<kvc::Index>(rule.state_positions.size());
  rule.conv_in = array<float>(folder, arrays.at("conv_in"), {tokens, rule.channels});
  rule.conv_w = array<float>(folder, arrays.at("conv_w"), {rule.channels, rule.kernel});
  rule.g = array<float>(folder, arrays.at("g"), {tokens, rule.value_heads});
  rule.beta = array<float>(folder, arrays.at("beta"), {tokens, rule.value_heads});
  rule.out = array<float>(folder, arrays.at("out"), {tokens, rule.value_heads, rule.value_dim});
  rule.conv_state = array<float>(folder, arrays.at("conv_state"), {positions, rule.channels, rule.kernel});
  rule.state = array<float>(folder, arrays.at("state"), {positions, rule.value_heads, rule.key_dim, rule.value_dim});
  return rule;
}

inline ModelLayer model_layer(const std::filesystem::path& folder, const nlohmann::json& entry, kvc::Index tokens) {
  ModelLayer layer;
  const auto extent = [&](const char* name) { return entry.at(name).get<kvc::Index>(); };
  if (entry.at("kind") == "linear") {
    layer.recurrent = delta_rule(folder, entry, tokens);
    return layer;
  }
  layer.query_heads = extent("query_heads");
  layer.kind = {.kv_heads = extent("kv_heads"),
                .key_dim = extent("key_dim"),
                .value_dim = extent("value_dim"),
                .window = entry.at("window"),
                .chunk = entry.at("chunk")};
  if (entry.contains("reads_cache_of")) {
    layer.reads = extent("reads_cache_of");
  }
  layer.scale = entry.at("scale");
  layer.softcap = entry.at("softcap");
  if (!entry.at("sinks").is_null()) {
    layer.sinks = entry.at("sinks").get<std::vector<float>>();
  }
  const nlohmann::json& arrays = entry.at("arrays");
  if (arrays.contains("selected")) {
    layer.selected = array<std::int32_t>(folder, arrays.at("selected"), {tokens, extent("top_k")});
  }
  if (entry.contains("index_heads")) {
    Indexer indexer{extent("index_heads"), extent("index_dim"), entry.at("index_scale"), {}, {}, {}};
    indexer.q = array<float>(folder, arrays.at("index_q"), {tokens, indexer.heads, indexer.dim});
    indexer.w = array<float>(folder, arrays.at("index_w"), {tokens, indexer.heads});
    indexer.k = array<float>(folder, arrays.at("index_k"), {tokens, indexer.dim});
    layer.indexer = std::move(indexer);
  }
  if (entry.contains("mla")) {  // what a cache of the model holds is one row for all heads
    const auto rank = entry.at("mla").at("kv_lora_rank").get<kvc::Index>();
    const kvc::Index row = rank + entry.at("mla").at("qk_rope_head_dim").get<kvc::Index>();
    layer.kind.kv_heads = 1;
    layer.kind.key_dim = row;
    layer.kind.value_dim = rank;
    layer.kind.latent = true;
    layer.q = array<float>(folder, arrays.at("q_absorbed"), {tokens, layer.query_heads, row});
    layer.k = array<float>(folder, arrays.at("latent"), {tokens, row});
    layer.out = array<float>(folder, arrays.at("out_latent"), {tokens, layer.query_heads, rank});
    if (arrays.contains("w_uk")) {
      ExpandedForm expanded{{row, rank, extent("key_dim"), extent("value_dim")}, {}, {}, {}, {}};
      const kvc::Index heads = layer.query_heads, key_dim = expanded.extents.key_dim, dim = expanded.extents.value_dim;
      expanded.q = array<float>(folder, arrays.at("q"), {tokens, heads, key_dim});
      expanded.w_uk = array<float>(folder, arrays.at("w_uk"), {heads, expanded.extents.projected_key_dim(), rank});
      expanded.w_uv = array<float>(folder, arrays.at("w_uv"), {heads, dim, rank});
      expanded.out = array<float>(folder, arrays.at("out"), {tokens, heads, dim});
      layer.expanded = std::move(expanded);
    }
    return layer;
  }
  layer.q = array<float>(folder, arrays.at("q"), {tokens, layer.query_heads, layer.kind.key_dim});
  layer.k = array<float>(folder, arrays.at("k"), {tokens, layer.kind.kv_heads, layer.kind.key_dim});
  layer.v = array<float>(folder, arrays.at("v"), {tokens, layer.kind.kv_heads, layer.kind.value_dim});
  layer.out = array<float>(folder, arrays.at("out"), {tokens, layer.query_heads, layer.kind.value_dim});
  return layer;
}

}  // namespace detail

/// Reads one folder. Throws std::exception if anything in it is not as its manifest says.
inline LayersOfModel read_layers_of_model(const std::filesystem::path& folder) {
  const auto manifest = nlohmann::json::parse(file_text(folder / "manifest.json"));
  LayersOfModel model;
  model.name = folder.filename();
  model.architecture = manifest.at("architecture");
  model.prefill = manifest.at("prefill");
  const auto tokens = manifest.at("T").get<kvc::Index>();
  model.tokens = detail::array<std::int32_t>(folder, manifest.at("tokens"), {tokens}).data;
  for (const auto& entry : manifest.at("layers")) {
    const auto number = static_cast<kvc::Index>(model.layers.size());
    if (entry.at("layer") != number) {
      throw std::runtime_error(folder.string() + ": layer " + std::to_string(number) + " is not the next one");
    }
    model.unsupported = detail::unsupported(entry);
    if (!model.unsupported.empty()) {
      model.unsupported = "layer " + std::to_string(number) + ": " + model.unsupported;
      model.layers.clear();
      break;
    }
    model.layers.push_back(detail::model_layer(folder, entry, tokens));
  }
  return model;
}

/// All folders below KVC_MODEL_LAYERS, or below model_layers of the test data. The running test case ends as skipped
/// where there is no such folder, and fails where it is empty.
inline std::vector<LayersOfModel> all_model_layers() {
  const char* given = std::getenv("KVC_MODEL_LAYERS");
  const std::string root = given != nullptr && *given != '\0' ? given : data_file("model_layers");
  if (!std::filesystem::exists(root)) {
    KVC_SKIP("no " << root << "; set KVC_MODEL_LAYERS to a folder of model layers");
  }
  std::vector<std::filesystem::path> folders;
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    if (entry.is_directory()) {
      folders.push_back(entry.path());
    }
  }
  std::ranges::sort(folders);
  std::vector<LayersOfModel> models;
  for (const auto& folder : folders) {
    INFO(folder.string());
    models.push_back(read_layers_of_model(folder));
    CHECK((models.back().layers.empty() == !models.back().unsupported.empty()));
  }
  INFO(root);
  REQUIRE(!models.empty());
  return models;
}

}  // namespace kvc_test
