// Decode and prefill as cuda::decode and cuda::prefill launch them, with emulated kernels. Include emulate_tiles.hpp
// first.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "catch.hpp"
#include "decode_case.hpp"  // HostBatch
#include "kvc/cuda/decode_kernel.cuh"
#include "kvc/cuda/decode_latent_kernel.cuh"
#include "kvc/cuda/decode_limits.hpp"
#include "kvc/cuda/merge_kernel.cuh"
#include "kvc/cuda/prefill_arguments.cuh"
#include "kvc/cuda/prefill_kernel.cuh"
#include "kvc/cuda/prefill_plain.cuh"

namespace kvc_test {

/// Runs a plan for decode: launch_items(arguments) launches the items of both lists, and merge_kernel for values of up
/// to D elements follows, with blocks of 32 elements, and with more blocks than rows and heads, which must give the
/// same (of a plan in halves one of both).
/// Partial results are there only when all threads of a block wait for them.
template <Format Q, int D, Format F, class LaunchItems>
void emulate_plan(kvc::cuda::DecodeArguments<F> a, const kvc::cuda::DecodePlan& plan, LaunchItems launch_items) {
  const std::int32_t counts[4] = {static_cast<std::int32_t>(plan.narrow.size()),
                                  static_cast<std::int32_t>(plan.wide.size()), static_cast<std::int32_t>(plan.rows()),
                                  plan.parts};
  const Index states = plan.splits() * plan.parts * a.query_heads, units = plan.rows() * a.query_heads;
  std::vector<float> partials(static_cast<std::size_t>(states * a.kv.value_dim), std::nanf("")),
      partial_sums(static_cast<std::size_t>(states * 2), std::nanf(""));
  a.plan = {counts, plan.narrow.data(), plan.wide.data(), plan.members.data(), plan.partial_begin.data()};
  a.partials = partials.data();
  a.partial_sums = partial_sums.data();
  launch_items(a);
  const std::vector<float> outputs = partials, of_sums = partial_sums;
  const auto merge = [&](Index blocks) {
    kvc_emulation::LaunchesBefore before{[&] {
      std::copy(outputs.begin(), outputs.end(), partials.begin());
      std::copy(of_sums.begin(), of_sums.end(), partial_sums.begin());
    }};
    kvc_emulation::launches_before() = &before;
    const dim3 grid(static_cast<unsigned>(blocks));
    for (unsigned block = grid.x; block-- > 0;) {
      std::fill(partials.begin(), partials.end(), std::nanf(""));
      std::fill(partial_sums.begin(), partial_sums.end(), std::nanf(""));
      before.waiting = 0;
      kvc_emulation::Block(grid, {block}, 128).run([&] { kvc::cuda::merge_kernel<F, Q, D>(a); });
    }
    kvc_emulation::launches_before() = nullptr;
    return std::vector<std::byte>(a.out, a.out + units * a.kv.value_dim * 2);
  };
  const Index grids[] = {kvc::cuda::detail::merge_grid(plan.rows(), a.query_heads, a.kv.value_dim), units + 1};
  if (plan.parts == 2) {  // one of both, to save time: another plan must give the same
    (void)merge(grids[static_cast<std::size_t>(plan.splits() % 2)]);
    return;
  }
  const std::vector<std::byte> in_parts = merge(grids[0]);
  const bool same = merge(grids[1]) == in_parts;
  REQUIRE(same);
}

/// Decodes by a plan, and by another one that must give the same: run(plan, out, lse) for each.
template <class Run>
void require_same_by_both(const kvc::cuda::DecodePlan& plan, const kvc::cuda::DecodePlan& other, Index query_heads,
                          Index value_dim, std::byte* out, float* lse, Run run) {
  const Index rows = plan.rows() * query_heads;
  std::vector<std::byte> same_out(static_cast<std::size_t>(rows * value_dim * 2), std::byte{0xff});
  std::vector<float> same_lse(static_cast<std::size_t>(rows), std::nanf(""));
  run(other, same_out.data(), same_lse.data());
  run(plan, out, lse);
  const bool same = std::equal(same_out.begin(), same_out.end(), out);
  REQUIRE(same);
  if (lse != nullptr) {
    const bool same_sums = std::memcmp(same_lse.data(), lse, same_lse.size() * sizeof(float)) == 0;
    REQUIRE(same_sums);
  }
}

/// The arguments of a decode but for the plan. Arguments as of cuda::decode.
template <Format F>
kvc::cuda::DecodeArguments<F> emulated_arguments(const kvc::cuda::LayerView<F>& kv, const HostBatch& batch,
                                                 const kvc::cuda::DecodeLimits& limits, const kvc::Retained& seen,
                                                 const std::byte* q, const kvc::AttentionOptions& options,
                                                 kvc::cuda::QueryRows which) {
  const auto heads = static_cast<std::int32_t>(limits.query_heads);
  return {kv,
          batch.view,
          {},
          q,
          nullptr,
          nullptr,
          options.sinks.empty() ? nullptr : options.sinks.data(),
          nullptr,
          nullptr,
          heads,
          heads / kv.kv_heads,
          kvc::cuda::detail::checked_decode(kv, limits, seen, options, which),
          options.softcap,
          kvc::cuda::detail::has_aligned_rows(kv)};
}

/// Decodes with items of 8 N and 8 Wide query rows, of whole splits and of halves. Arguments as of cuda::decode.
///
///   group  query heads per kv head
template <int D, int N, int Wide, Format F, Format Q>
void emulate_decode(const kvc::cuda::LayerView<F>& kv, const kvc::BatchTables& tables, std::int32_t group,
                    const std::byte* q, std::byte* out, const kvc::AttentionOptions& options, bool share, float* lse,
                    kvc::cuda::QueryRows which = kvc::cuda::QueryRows::last) {
  const kvc::cuda::DecodeLimits limits{.sequences = std::max<Index>(tables.size(), 1),
                                       .positions = 1 << 20,
                                       .query_heads = kv.kv_heads * group,
                                       .kv_heads = kv.kv_heads,
                                       .dim = kv.key_dim,
                                       .format = F == Format::int8_planes ? Format::int8 : F};
  const kvc::Retained seen = kvc::cuda::seen_by(options);
  const kvc::cuda::DecodePlan plan = kvc::cuda::make_decode_plan(tables, group, seen, {8 * N, 8 * Wide}, share, which);
  kvc::cuda::DecodePlan halves = plan;
  kvc::cuda::halve(halves);
  const HostBatch batch(tables);
  kvc::cuda::DecodeArguments<F> a = emulated_arguments(kv, batch, limits, seen, q, options, which);
  require_same_by_both(plan, halves, limits.query_heads, kv.value_dim, out, lse,
                       [&](const kvc::cuda::DecodePlan& by, std::byte* to, float* sums) {
                         a.out = to;
                         a.lse = sums;
                         emulate_plan<Q, 256>(a, by, [](const kvc::cuda::DecodeArguments<F>& with) {
                           kvc_emulation::launch({3}, 128, [&] { kvc::cuda::decode_kernel<F, Q, D, N>(with, false); });
                           kvc_emulation::launch({2}, 128,
                                                 [&] { kvc::cuda::decode_kernel<F, Q, D, Wide>(with, true); });
                         });
                       });
}

/// Decodes latent rows, with many query rows in an item where there are, and with few. Arguments as of
/// cuda::decode_latent.
template <Format F>
void emulate_latent_decode(const kvc::cuda::LayerView<F>& kv, const kvc::BatchTables& tables, std::int32_t group,
                           const std::byte* q, std::byte* out, const kvc::AttentionOptions& options, bool share,
                           float* lse, kvc::cuda::QueryRows which = kvc::cuda::QueryRows::last) {
  using kvc::cuda::latent_few, kvc::cuda::latent_many;
  const kvc::cuda::DecodeLimits limits{.sequences = std::max<Index>(tables.size(), 1),
                                       .positions = 1 << 20,
                                       .query_heads = kv.kv_heads * group,
                                       .kv_heads = kv.kv_heads,
                                       .dim = kv.key_dim,
                                       .format = F,
                                       .value_dim = kv.value_dim};
  const kvc::Retained seen = kvc::cuda::seen_by(options);
  const auto plan = [&](std::int32_t wide) {
    return kvc::cuda::make_decode_plan(tables, group, seen, {latent_few, wide}, share, which);
  };
  const HostBatch batch(tables);
  kvc::cuda::DecodeArguments<F> a = emulated_arguments(kv, batch, limits, seen, q, options, which);
  require_same_by_both(
      plan(latent_many), plan(latent_few), limits.query_heads, kv.value_dim, out, lse,
      [&](const kvc::cuda::DecodePlan& by, std::byte* to, float* sums) {
        a.out = to;
        a.lse = sums;
        emulate_plan<F, kvc::cuda::latent_value_dim>(a, by, [](const kvc::cuda::DecodeArguments<F>& with) {
          constexpr unsigned threads = kvc::cuda::detail::LatentTraits<latent_few>::threads;
          kvc_emulation::launch({3}, threads, [&] { kvc::cuda::latent_decode_kernel<F, latent_few>(with, false); });
          kvc_emulation::launch({2}, threads, [&] { kvc::cuda::latent_decode_kernel<F, latent_many>(with, true); });
        });
      });
}

/// Prefill by the kernel for dim D; 0: by the plain one. Arguments as of cuda::prefill.
template <int D, Format F, Format Q>
void emulate_prefill(const kvc::cuda::LayerView<F>& kv, const kvc::BatchTables& tables, Index query_heads,
                     const std::byte* q, std::byte* out, const kvc::AttentionOptions& options, float* lse) {
  const HostBatch batch(tables);
  const kvc::cuda::PrefillArguments<F> a =
      kvc::cuda::detail::prefill_arguments(kv, batch.view, query_heads, q, out, lse, options);
  const auto queries = static_cast<unsigned>(tables.queries());
  if constexpr (D == 0) {
    constexpr unsigned warps = kvc::cuda::detail::plain_warps;
    kvc_emulation::launch({queries + 2, (static_cast<unsigned>(query_heads) + warps - 1) / warps},
                          kvc::cuda::detail::plain_threads, [&] { kvc::cuda::plain_prefill_kernel<F, Q>(a); });
  } else {
    using Traits = kvc::cuda::detail::PrefillTraits<D, F>;
    REQUIRE(kvc::cuda::detail::fit_tensor_cores(a));
    static_assert(Traits::shared_bytes <= 163 << 10, "Ampere has no more");
    kvc_emulation::launch({3}, Traits::threads, [&] { kvc::cuda::prefill_kernel<F, Q, D>(a); });
    REQUIRE((batch.tile_queue.next == 0 && batch.tile_queue.blocks == 0));
  }
}

}  // namespace kvc_test
