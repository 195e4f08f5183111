// A model whose layers differ: five layers with a sliding window, then one without, as in Gemma 3. Four sequences
// share a system prompt. Shows what each layer group holds, beside a cache of one shape for all layers; that a prefix
// is found in all groups; and how far a sequence can be cut back.
//
// Keys, values and queries are made up from the tokens; attention is real, and gives the same numbers in both caches.
#include "usage.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <span>
#include <stdexcept>
#include <vector>

#include "kvc/attention/decode.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {

using Cache = kvc::KvCache<float, kvc::PrefixShared<>>;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Tokens = std::vector<kvc::Token>;

constexpr kvc::Index model_layers = 12;
constexpr kvc::Index kv_heads = 2;
constexpr kvc::Index query_heads = 4;
constexpr kvc::Index dim = 32;

kvc::Pos window_of(kvc::Index layer) { return layer % 6 == 5 ? 0 : 64; }

kvc::LayerGroups window_model() {
  kvc::LayerGroups layers;
  for (kvc::Index i = 0; i < model_layers; ++i) {
    layers.add({.kv_heads = kv_heads, .key_dim = dim, .window = window_of(i)});
  }
  layers.with_rewind(4);  // speculation proposes up to 4 tokens
  return layers;
}

/// Rows that depend on the token, the layer, and what they are for.
Matrix made_up(std::span<const kvc::Token> tokens, kvc::Index layer, kvc::Index heads, float phase) {
  return Matrix::NullaryExpr(static_cast<kvc::Index>(tokens.size()), heads * dim, [&](kvc::Index row, kvc::Index col) {
    const auto token = static_cast<float>(tokens[static_cast<std::size_t>(row)]);
    return std::sin(token * static_cast<float>(layer + 1) + static_cast<float>(col) * phase);
  });
}

/// One pass of the model over the next tokens of a sequence. Returns the attention of the last token, all layers added.
Matrix pass(Cache& cache, kvc::SeqId seq, std::span<const kvc::Token> tokens) {
  Matrix sum = Matrix::Zero(1, query_heads * dim);
  Matrix out(tokens.size(), query_heads * dim);
  auto step = cache.extend(seq, tokens);
  for (kvc::Index layer = 0; layer < model_layers; ++layer) {
    const Matrix q = made_up(tokens, layer, query_heads, 0.3F);
    cache.write(layer, step, made_up(tokens, layer, kv_heads, 0.5F), made_up(tokens, layer, kv_heads, 0.7F));
    kvc::prefill(cache.view(layer, seq), step.range(), q, out, {.window = window_of(layer)});
    sum += out.bottomRows(1);
  }
  cache.commit(std::move(step));  // now, and not before, rows outside of the window are released
  return sum;
}

/// Opens a sequence on what is cached of its prompt and computes the rest, 128 tokens at a time.
kvc::SeqId prefill_prompt(Cache& cache, const Tokens& prompt, Matrix& last) {
  const kvc::Opened opened = cache.open(prompt);
  std::printf("  %3d of %zu tokens found\n", opened.cached, prompt.size());
  for (auto rest = std::span(prompt).subspan(static_cast<std::size_t>(opened.cached)); !rest.empty();) {
    const std::size_t count = std::min<std::size_t>(rest.size(), 128);
    last = pass(cache, opened.seq, rest.first(count));
    rest = rest.subspan(count);
  }
  return opened.seq;
}

struct Served {
  std::vector<kvc::SeqId> open;
  std::vector<Matrix> last;  // attention of the last token of each sequence
};

Tokens system_prompt() {
  Tokens tokens(300);
  std::iota(tokens.begin(), tokens.end(), 1);
  return tokens;
}

/// The system prompt alone, once, and then four sequences that begin with it.
Served serve(Cache& cache) {
  Served served;
  Matrix last;
  cache.close(prefill_prompt(cache, system_prompt(), last));  // its end is remembered: prompts that go on find it
  for (kvc::Token user = 1; user <= 4; ++user) {
    Tokens prompt = system_prompt();
    for (kvc::Token i = 0; i < 40; ++i) {
      prompt.push_back(1000 * user + i);
    }
    served.open.push_back(prefill_prompt(cache, prompt, last));
    for (kvc::Token i = 0; i < 60; ++i) {
      const Tokens sampled = {1000 * user + 500 + i};
      last = pass(cache, served.open.back(), sampled);
    }
    served.last.push_back(last);
  }
  return served;
}

double kib(const Cache& cache, kvc::Index blocks) {
  return static_cast<double>(blocks) * static_cast<double>(cache.pool_bytes()) /
         static_cast<double>(cache.policy().blocks()) / 1024;
}

int compare() {
  Cache grouped(window_model(), {.blocks = 100, .block_tokens = 16});
  Cache plain({.layers = model_layers, .kv_heads = kv_heads, .key_dim = dim}, {.blocks = 100, .block_tokens = 16});

  std::printf("layer groups:\n");
  Served served = serve(grouped);
  std::printf("one shape for all layers:\n");
  const Served in_plain = serve(plain);
  if (served.last != in_plain.last) {
    std::printf("the two caches gave different numbers\n");
    return 1;
  }

  std::printf("\nfour sequences of 400 tokens hold         blocks  tokens in a block      KiB\n");
  const auto groups = grouped.layers().groups();
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const auto group = static_cast<kvc::Index>(g);
    const kvc::Index held = grouped.policy().stats(group).blocks_referenced;
    std::printf("  group %zu: %2ld layers, %-20s    %4ld               %4d   %6.0f\n", g,
                static_cast<long>(groups[g].shape.layers),
                groups[g].retained.window > 0 ? "a window of 64" : "all positions", static_cast<long>(held),
                grouped.policy().block_tokens(group), kib(grouped, held));
  }
  const kvc::Index all = grouped.stats().blocks_referenced;
  const kvc::Index all_plain = plain.stats().blocks_referenced;
  std::printf("  both groups                             %4ld                      %6.0f\n", static_cast<long>(all),
              kib(grouped, all));
  std::printf("  one shape for all layers                %4ld               %4d   %6.0f\n",
              static_cast<long>(all_plain), plain.policy().block_tokens(), kib(plain, all_plain));

  // Four tokens are guessed, and the first of them accepted.
  const kvc::SeqId seq = served.open[0];
  pass(grouped, seq, Tokens{1, 2, 3, 4});
  grouped.truncate(seq, grouped.length(seq) - 3);
  std::printf("\nafter speculation: %d tokens; group 0 can be cut back to %d, group 1 to %d\n", grouped.length(seq),
              grouped.policy().retained_from(seq, 0), grouped.policy().retained_from(seq, 1));
  try {
    grouped.truncate(seq, 200);
    return 1;
  } catch (const std::invalid_argument& error) {
    std::printf("%s\n", error.what());
  }
  return grouped.length(seq) == 401 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  return run_example(argc, argv,
                     "A model with sliding windows in five of six layers: what its layer groups hold, a prefix hit, "
                     "and a rewind.",
                     compare);
}
