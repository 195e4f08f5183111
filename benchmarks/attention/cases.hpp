// The cases of kvc for one element type.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <type_traits>

#include "filled.hpp"
#include "kvc/attention/decode.hpp"
#include "kvc/attention/expanded.hpp"
#include "kvc/attention/extern.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/attention/selection.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/parallel/executor.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "measure.hpp"
#include "memory_plans.hpp"
#include "plain_reads.hpp"
#if defined(_OPENMP)
#include "kvc/parallel/openmp.hpp"
#endif

namespace kvc_bench {

#if defined(_OPENMP)
/// With one thread this is kvc::Sequential, in half of the time to compile.
inline kvc::OpenMp executor(int threads) { return {threads}; }
#else
inline kvc::Sequential executor(int) { return {}; }
#endif

template <class T, class P, class L = kvc::HeadMajor>
class AttentionCases {
 public:
  /// Blocks of `block_tokens`; 0 for a policy without blocks.
  explicit AttentionCases(Pos block_tokens, BlockOrder order = BlockOrder::random)
      : block_tokens_(block_tokens),
        order_(order),
        policy_(std::string(P::name) + (block_tokens > 0 ? std::to_string(block_tokens) : "") +
                (order == BlockOrder::served ? "-served" : "") +
                (std::is_same_v<L, kvc::HeadMajor> ? "" : "-" + std::string(L::name))) {}

  void add_decode(const Heads& heads, Pos length) const {
    add_batch(kind("decode", heads) + of_heads(heads) + "/kv:" + std::to_string(length), heads,
              {.length = length, .order = order_});
  }

  /// Over `count` positions of `length`: random ones, or those of random blocks of 16.
  void add_decode_selected(const Heads& heads, Pos length, Pos count) const {
    for (const int threads : thread_counts()) {
      for (const bool scattered : {true, false}) {
        const std::string data = kind("decode_selected", heads) + "/kv:" + std::to_string(length);
        const std::string name = kind("decode_selected", heads) + of_heads(heads) +
                                 (scattered ? "/positions:" : "/blocks:") + std::to_string(count) +
                                 "/kv:" + std::to_string(length) + "/threads:" + std::to_string(threads);
        add(name, [=, block_tokens = block_tokens_](benchmark::State& state) {
          const auto filled = kept<Filled<T, P, L>>(data + of_heads(heads), heads, Batch{.length = length},
                                                    block_tokens, working_set());
          const std::vector<float> q = random_numbers(heads.query * heads.key_dim, 4);
          std::vector<float> out(static_cast<std::size_t>(heads.query * heads.value_dim));
          // So many that no call finds the rows of an earlier one in a cache.
          std::vector<kvc::Selection> positions, blocks;
          for (unsigned seed = 0; seed < 64; ++seed) {
            positions.push_back(kvc::Selection::of_positions(kvc::top_positions(random_numbers(length, seed), count)));
            blocks.push_back(kvc::Selection::of_blocks(
                kvc::top_positions(random_numbers(length / 16, seed), count / 16), 16, length));
          }
          const Work work{static_cast<double>(count) * filled->position_bytes(),
                          heads.operations(static_cast<double>(count)), unit_of(element)};
          const auto view = [&](bool of_positions, std::size_t i) {
            const auto& selections = of_positions ? positions : blocks;
            return kvc::SelectedView(filled->views(i).front(), selections[i % selections.size()]);
          };
          const auto decode = [&](bool of_positions, std::size_t i) {
            kvc::decode(view(of_positions, i), {q.data(), 1, heads.query * heads.key_dim},
                        {out.data(), 1, heads.query * heads.value_dim}, {}, executor(threads));
          };
          measure(state, threads, work, [&](std::size_t i) { decode(scattered, i); });
          if (threads == 1) {
            compare_plain_reads(state, scattered, decode,
                                [&](bool of_positions, std::size_t i) { return rows_in_order(view(of_positions, i)); });
          }
        });
      }
    }
  }

  void add_decode_shared(const Heads& heads, const Batch& batch, Pos prompt) const {
    const std::string sharing = batch.shared > 0 ? policy_ : "unshared";
    add_batch("decode_shared/" + element + "/" + sharing + "/heads:" + std::to_string(heads.kv) +
                  "/seqs:" + std::to_string(batch.sequences) + "/shared:" + std::to_string(prompt) +
                  "/kv:" + std::to_string(batch.length),
              heads, batch);
  }

  void add_prefill(const Heads& heads, Pos length) const { add_prefill(heads, length, length); }

  /// The last `rows` positions of `length`.
  void add_prefill(const Heads& heads, Pos rows, Pos length) const {
    const std::string data = kind("prefill", heads) + of(0, length), name = kind("prefill", heads) + of(rows, length);
    for (const int threads : thread_counts()) {
      add(name + "/threads:" + std::to_string(threads), [=, block_tokens = block_tokens_](benchmark::State& state) {
        const auto filled = kept<Filled<T, P, L>>(data, heads, Batch{.length = length}, block_tokens, std::size_t{0});
        const std::vector<float> q = random_numbers(rows * heads.query * heads.key_dim, 4);
        std::vector<float> out(static_cast<std::size_t>(rows * heads.query * heads.value_dim));
        const Work work{static_cast<double>(length) * filled->position_bytes(), heads.operations(pairs(rows, length)),
                        unit_of(element)};
        const auto view = filled->views(0).front();
        measure(state, threads, work, [&](std::size_t) {
          kvc::prefill(view, kvc::PosRange{length - rows, length}, {q.data(), rows, heads.query * heads.key_dim},
                       {out.data(), rows, heads.query * heads.value_dim}, {}, executor(threads));
        });
      });
    }
  }

  /// The same over latent rows in expanded form, with keys of 192 elements and values of 128.
  void add_prefill_expanded(const Heads& heads, Pos rows, Pos length) const {
    const std::string data = kind("prefill", heads) + of(0, length);
    const std::string name = kind("prefill", heads) + of(rows, length) + "/expanded";
    for (const int threads : thread_counts()) {
      add(name + "/threads:" + std::to_string(threads), [=, block_tokens = block_tokens_](benchmark::State& state) {
        const auto filled = kept<Filled<T, P, L>>(data, heads, Batch{.length = length}, block_tokens, std::size_t{0});
        const kvc::LatentExtents extents{heads.key_dim, heads.value_dim, 192, 128};
        const Index heads_dim = heads.query * extents.value_dim;  // of both projections
        const std::vector<float> w_uk = random_numbers(heads_dim * extents.latent_dim, 5);
        const std::vector<float> w_uv = random_numbers(heads_dim * extents.latent_dim, 6);
        const kvc::UpProjections projections({w_uk.data(), heads_dim, extents.latent_dim},
                                             {w_uv.data(), heads_dim, extents.latent_dim}, heads.query,
                                             extents.row_dim - extents.latent_dim);
        const std::vector<float> q = random_numbers(rows * heads.query * extents.key_dim, 4);
        std::vector<float> out(static_cast<std::size_t>(rows * heads_dim));
        const Heads expanded{.query = heads.query, .key_dim = extents.key_dim, .value_dim = extents.value_dim};
        const double expanding = 2.0 * length * static_cast<double>(heads.query * extents.projection_size());
        const Work work{static_cast<double>(length) * filled->position_bytes(),
                        expanding + expanded.operations(pairs(rows, length)), unit_of(element)};
        const auto view = filled->views(0).front();
        measure(state, threads, work, [&](std::size_t) {
          kvc::prefill_expanded(view, projections, kvc::PosRange{length - rows, length},
                                {q.data(), rows, heads.query * extents.key_dim}, {out.data(), rows, heads_dim}, {},
                                executor(threads));
        });
      });
    }
  }

 private:
  /// Pairs of one of the last `rows` positions and a key that it sees.
  static double pairs(Pos rows, Pos length) {
    return static_cast<double>(rows) * (length - rows) + 0.5 * static_cast<double>(rows) * (rows + 1.0);
  }
  static std::string of(Pos rows, Pos length) { return "/q:" + std::to_string(rows) + "/kv:" + std::to_string(length); }
  [[nodiscard]] std::string kind(const std::string& what, const Heads& heads) const {
    return heads.latent ? what + "_latent/" + element + "/" + policy_ + "/heads:" + std::to_string(heads.query)
                        : what + "/" + element + "/" + policy_ + dims(heads);
  }
  static std::string of_heads(const Heads& heads) {
    return heads.kv == 8 || heads.latent ? "" : "/heads:" + std::to_string(heads.kv);
  }
  static std::string dims(const Heads& heads) {
    if (heads.key_dim == 128 && heads.value_dim == 128) {
      return "";
    }
    return "/dim:" + std::to_string(heads.key_dim) +
           (heads.key_dim == heads.value_dim ? "" : "-" + std::to_string(heads.value_dim));
  }

  void add_batch(const std::string& name, const Heads& heads, const Batch& batch) const {
    for (const int threads : thread_counts()) {
      add(name + "/threads:" + std::to_string(threads), [=, block_tokens = block_tokens_](benchmark::State& state) {
        const auto filled = kept<Filled<T, P, L>>(name, heads, batch, block_tokens, working_set());
        const std::vector<float> q = random_numbers(batch.sequences * heads.query * heads.key_dim, 4);
        std::vector<float> out(static_cast<std::size_t>(batch.sequences * heads.query * heads.value_dim));
        const Work work{static_cast<double>(batch.distinct()) * filled->position_bytes(),
                        heads.operations(static_cast<double>(batch.sequences) * batch.length), unit_of(element)};
        std::vector<std::vector<typename Filled<T, P, L>::View>> layers;
        for (Index layer = 0; layer < filled->layers(); ++layer) {
          layers.push_back(filled->views(static_cast<std::size_t>(layer)));
        }
        const auto call = [&](std::size_t i, std::optional<kvc::MemoryPlan> plan) {
          const std::span<const typename Filled<T, P, L>::View> views = layers[i % layers.size()];
          kvc::decode(views, {q.data(), batch.sequences, heads.query * heads.key_dim},
                      {out.data(), batch.sequences, heads.query * heads.value_dim}, {.memory_plan = plan},
                      executor(threads));
        };
        decide_memory_plan(call);
        measure(state, threads, work, [&](std::size_t i) { call(i, std::nullopt); });
        const Index run = block_tokens == 0 ? kvc::MemoryPlanKind::most_run : Index{block_tokens};
        compare_memory_plans(state, {element, run, heads.kv, heads.key_dim, heads.value_dim, threads > 1}, call);
      });
    }
  }

  inline static const std::string element{kvc::Element<T>::name};
  Pos block_tokens_;
  BlockOrder order_;
  std::string policy_;
};

/// All cases of T.
template <class T>
void add_cases() {
  const AttentionCases<T, kvc::Contiguous> contiguous(0);
  const AttentionCases<T, kvc::Paged> paged16(16), paged64(64);
  const AttentionCases<T, kvc::PrefixShared<>> shared16(16), shared64(64);
  const auto each_policy = [&](auto&& f) { f(contiguous), f(paged16), f(paged64), f(shared16), f(shared64); };

  const Heads heads;
  each_policy([&](const auto& policy) {
    for (const Pos length : {4096, 16384, 65536}) {
      policy.add_decode(heads, length);
    }
  });
  AttentionCases<T, kvc::Paged>(16, BlockOrder::served).add_decode(heads, 16384);
  for (const Index kv_heads : {1, 32}) {
    const Heads of{.query = 4 * kv_heads, .kv = kv_heads};
    contiguous.add_decode(of, 16384), paged16.add_decode(of, 16384), paged64.add_decode(of, 16384);
  }
  for (const Index dim : {64, 80, 96, 192, 256}) {
    contiguous.add_decode({.key_dim = dim, .value_dim = dim}, 16384);
  }
  contiguous.add_decode({.key_dim = 192, .value_dim = 128}, 16384);

  for (const Index kv_heads : {8, 32}) {
    if (kv_heads == 32 && sizeof(kvc::StorageOf<T>) > 2) {
      continue;  // 4.4 GB unshared
    }
    const Heads of{.kv = kv_heads};
    shared16.add_decode_shared(of, {.length = 4224, .sequences = 32, .shared = 4096}, 4096);
    shared16.add_decode_shared(of, {.length = 4224, .sequences = 32}, 4096);
  }

  each_policy([&](const auto& policy) { policy.add_prefill(heads, 2048); });
  for (const Index dim : {64, 80, 96, 192, 256}) {
    contiguous.add_prefill({.key_dim = dim, .value_dim = dim}, 2048);
  }
  contiguous.add_prefill({.key_dim = 192, .value_dim = 128}, 2048);

  const auto latent = [](Index query_heads) {
    return Heads{.query = query_heads, .kv = 1, .key_dim = 576, .value_dim = 512, .latent = true};
  };
  for (const Index query_heads : {16, 128}) {
    for (const Pos length : {4096, 32768}) {
      contiguous.add_decode(latent(query_heads), length);
      paged64.add_decode(latent(query_heads), length);
    }
    paged64.add_prefill(latent(query_heads), 2048);
    paged64.add_prefill_expanded(latent(query_heads), 2048, 2048);
  }
  for (const Pos rows : {64, 128, 256, 512}) {  // where one form becomes cheaper than the other
    paged64.add_prefill(latent(16), rows, 4096);
    paged64.add_prefill_expanded(latent(16), rows, 4096);
  }
  paged16.add_decode(heads, 2048);
  for (const Index kv_heads : {8, 1}) {
    paged16.add_decode_selected({.query = 4 * kv_heads, .kv = kv_heads}, 65536, 2048);
  }
  if constexpr (std::is_same_v<T, Eigen::bfloat16>) {  // another layout takes long to compile
    AttentionCases<T, kvc::Paged, kvc::TokenMajor>(16).add_decode_selected(heads, 65536, 2048);
  }
  paged64.add_decode(latent(16), 2048);
  paged64.add_decode_selected(latent(16), 65536, 2048);
}

}  // namespace kvc_bench
