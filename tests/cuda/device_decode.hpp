// Cases of decode on a device, against the definition of attention, over policies, layouts and formats.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "decode_case.hpp"
#include "device_memory.hpp"
#include "device_test.hpp"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/decode.cuh"
#include "kvc/cuda/view.cuh"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace kvc_test {

namespace cuda = kvc::cuda;

/// The pool of a case on the device, at some distance into a larger one.
template <class Case>
struct OnDevice {
  using Storage = typename Case::Cache::Storage;
  explicit OnDevice(Case& of, std::size_t distance = 0)
      : c(of),
        bytes(static_cast<std::size_t>(of.cache.layout().size()) * sizeof(Storage)),
        pool(distance + bytes),
        at(distance),
        batch({.sequences = of.rows() + 3, .blocks = 100000, .queries = of.rows() + 3}),
        work({.sequences = of.rows() + 3,
              .positions = 100000,
              .query_heads = of.query_heads(),
              .kv_heads = of.spec.kv_heads,
              .dim = of.spec.dim,
              .format = cuda::format_of<typename Case::Cache::Element>}) {
    KVC_CUDA(cudaMemset(pool.data(), 0xff, pool.size()));
    to_device(pool.data() + at, of.cache.data(), bytes);
  }
  [[nodiscard]] auto view() const {
    return cuda::layer_view<typename Case::Cache::Element>(pool.data() + at, c.cache.layout(), c.cache.shape(),
                                                           c.layer());
  }
  Case& c;
  std::size_t bytes;
  cuda::DeviceBuffer pool;
  std::size_t at;
  cuda::Batch batch;
  cuda::DecodeWork work;
};

template <class Scalar, class Case>
std::vector<std::uint16_t> run(OnDevice<Case>& device, const kvc::BatchTables& tables,
                               const std::vector<std::uint16_t>& q, bool share, std::vector<float>* lse = nullptr,
                               cuda::SmallItems small = cuda::SmallItems::where_few) {
  Stream stream;
  const DeviceArray<float> sums(static_cast<std::size_t>(tables.size() * device.c.query_heads()) + 1);
  const DeviceArray<std::uint16_t> in(q), out(q.size());
  device.batch.upload(tables, stream);
  device.work.upload(tables, {.window = device.c.spec.window}, stream, share, cuda::QueryRows::last, small);
  cuda::decode(device.view(), device.batch, device.work, reinterpret_cast<const Scalar*>(in.data()),
               reinterpret_cast<Scalar*>(out.data()), device.c.options(), stream,
               lse == nullptr ? nullptr : sums.data());
  stream.wait();
  if (lse != nullptr) {
    *lse = sums.host();
    CHECK(std::isnan(lse->back())) << "a row beyond the batch was written";
    lse->pop_back();
  }
  return out.host();
}

/// Right; the same bits twice; and every sequence has the bits that it has alone.
template <class T, class Scalar, class P, class L = kvc::HeadMajor>
void check(const DecodeSpec& spec, const typename P::Config& config, float tolerance) {
  constexpr Format Q = cuda::format_of<Scalar>;
  using Case = DecodeCase<T, P, L, Q>;
  Case c(spec, config);
  OnDevice<Case> device(c);
  std::vector<float> lse, expected_lse;
  const std::vector<std::uint16_t> out = run<Scalar>(device, c.tables, c.q, true, &lse);
  const float difference = largest_difference(Q, out, c.expected(&expected_lse));
  CHECK(lse_difference(lse, expected_lse) < 4e-6F) << lse_difference(lse, expected_lse);
  CHECK(difference < tolerance) << "dim" << spec.dim << "group" << spec.group << "window" << spec.window << "difference"
                                << difference;
  CHECK(run<Scalar>(device, c.tables, c.q, true) == out) << "not the same bits twice";
  CHECK(run<Scalar>(device, c.tables, c.q, false) == out) << "other bits without sharing";
  for (const cuda::SmallItems small : {cuda::SmallItems::never, cuda::SmallItems::always}) {
    CHECK(run<Scalar>(device, c.tables, c.q, true, nullptr, small) == out) << "other bits with small items, or without";
  }
  const auto width = static_cast<std::size_t>(c.query_heads() * spec.dim);
  for (std::size_t b = 0; b < c.sequences.size(); ++b) {
    const std::vector<Pos> one(1, 1);
    const kvc::BatchTables alone = kvc::make_tables(
        c.cache.policy(), std::span<const kvc::SeqId>(c.sequences).subspan(b, 1), std::span<const Pos>(one));
    const auto begin = static_cast<std::ptrdiff_t>(b * width), end = static_cast<std::ptrdiff_t>((b + 1) * width);
    const std::vector<std::uint16_t> same =
        run<Scalar>(device, alone, std::vector<std::uint16_t>(c.q.begin() + begin, c.q.begin() + end), false);
    CHECK(std::equal(same.begin(), same.end(), out.begin() + begin)) << "sequence" << b << "has other bits alone";
  }
}

template <class T, class Scalar>
void check_random(std::uint64_t seed, float tolerance) {
  std::mt19937_64 random(seed);
  const auto between = [&](Index low, Index high) {
    return low + static_cast<Index>(random() % static_cast<std::uint64_t>(high - low + 1));
  };
  for (int round = 0; round < 12; ++round) {
    DecodeSpec spec{.kv_heads = between(1, 4), .seed = random()};
    constexpr Index dims[] = {64, 128, 80, 96, 192, 256};
    spec.dim = dims[between(0, 5)];
    spec.group = between(1, round % 4 == 0 ? 40 : 8);
    const auto sequences = between(1, 9);
    for (Index i = 0; i < sequences; ++i) {
      spec.lengths.push_back(static_cast<Pos>(between(0, 3) == 0 ? between(0, 20) : between(1, 2200)));
    }
    spec.window = between(0, 2) == 0 ? static_cast<Pos>(between(1, 1500)) : 0;
    spec.softcap = between(0, 2) == 0 ? 5.0F : 0.0F;
    const Pos block_tokens = static_cast<Pos>(between(0, 1) == 0 ? 16 : between(1, 70));
    const Index blocks = 30000 / block_tokens + 200;
    if (round % 3 == 0) {
      check<T, Scalar, kvc::Contiguous>(spec, {.sequences = 10, .max_tokens = 2300}, tolerance);
    } else if (round % 3 == 1) {
      check<T, Scalar, kvc::Paged, kvc::TokenMajor>(spec, {.blocks = blocks, .block_tokens = block_tokens}, tolerance);
    } else {
      spec.prefix = static_cast<Pos>(between(500, 1200));
      for (Index i = between(1, 12); i > 0; --i) {
        spec.sharers.push_back(static_cast<Pos>(between(0, 600)));
      }
      check<T, Scalar, kvc::PrefixShared<>>(spec, {.blocks = blocks, .block_tokens = block_tokens}, tolerance);
    }
  }
}

}  // namespace kvc_test
