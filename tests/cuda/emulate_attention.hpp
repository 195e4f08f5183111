// Decode and prefill as cuda::decode and cuda::prefill launch them, with emulated kernels. Include emulate_tiles.hpp
// first.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "decode_case.hpp"  // HostBatch
#include "kvc/cuda/decode_kernel.cuh"
#include "kvc/cuda/decode_limits.hpp"
#include "kvc/cuda/merge_kernel.cuh"
#include "kvc/cuda/prefill_arguments.cuh"
#include "kvc/cuda/prefill_kernel.cuh"
#include "kvc/cuda/prefill_plain.cuh"

namespace kvc_test {

/// Decodes with items of 8 N and 8 Wide query rows. Arguments as of cuda::decode.
///
///   group  query heads per kv head
template <int D, int N, int Wide, Format F, Format Q>
void emulate_decode(const kvc::cuda::LayerView<F>& kv, const kvc::BatchTables& tables, std::int32_t group,
                    const std::byte* q, std::byte* out, const kvc::AttentionOptions& options, bool share, float* lse,
                    kvc::cuda::QueryRows which = kvc::cuda::QueryRows::last) {
  const std::int32_t query_heads = kv.kv_heads * group;
  const kvc::Retained seen = kvc::cuda::seen_by(options);
  const float scale = kvc::cuda::detail::checked_decode(
      kv, {tables.size(), 1 << 20, query_heads, kv.kv_heads, kv.key_dim, F}, seen, options, which);
  const kvc::cuda::DecodePlan plan = kvc::cuda::make_decode_plan(tables, group, seen, {8 * N, 8 * Wide}, share, which);
  const HostBatch batch(tables);
  const std::int32_t counts[3] = {static_cast<std::int32_t>(plan.narrow.size()),
                                  static_cast<std::int32_t>(plan.wide.size()), static_cast<std::int32_t>(plan.rows())};
  const auto states = static_cast<std::size_t>(plan.partial_begin.back() * query_heads);
  std::vector<float> partials(states * static_cast<std::size_t>(kv.value_dim), std::nanf("")),
      partial_sums(states * 2, std::nanf(""));
  const kvc::cuda::DecodeArguments<F> a{
      kv,
      batch.view,
      {counts, plan.narrow.data(), plan.wide.data(), plan.members.data(), plan.partial_begin.data()},
      q,
      out,
      lse,
      options.sinks.empty() ? nullptr : options.sinks.data(),
      partials.data(),
      partial_sums.data(),
      query_heads,
      group,
      scale,
      options.softcap};
  kvc_emulation::launch({3}, 128, [&] { kvc::cuda::decode_kernel<F, Q, D, N>(a, false); });
  kvc_emulation::launch({2}, 128, [&] { kvc::cuda::decode_kernel<F, Q, D, Wide>(a, true); });
  // With blocks of 32 elements, and with more blocks than rows and heads.
  const auto merge = [&](Index blocks) {
    kvc_emulation::launch({static_cast<unsigned>(blocks)}, 128, [&] { kvc::cuda::merge_kernel<F, Q>(a); });
    return std::vector<std::byte>(out, out + plan.rows() * query_heads * kv.value_dim * 2);
  };
  const std::vector<std::byte> in_parts = merge(kvc::cuda::detail::merge_grid(plan.rows(), query_heads, kv.value_dim));
  const bool same = merge(plan.rows() * query_heads + 1) == in_parts;
  REQUIRE(same);
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
