// The kernels that store, move and copy rows, run on the CPU: their bytes are those that a cache in host memory has.
#include "emulate.hpp"
// (first: it stands for CUDA)

#include <algorithm>
#include <cstring>
#include <numeric>

#include "catch.hpp"
#include "decode_case.hpp"
#include "kvc/cuda/append_kernel.cuh"
#include "kvc/cuda/copy_kernel.cuh"
#include "kvc/cuda/copy_queue.hpp"
#include "kvc/cuda/rows_kernel.cuh"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "kvc/llama/rope.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "policies.hpp"
#include "random_source.hpp"

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;

template <class Cache>
auto layer_of(Cache& cache, Index layer) {
  return cuda::layer_view<typename Cache::Element>(reinterpret_cast<std::byte*>(cache.data()), cache.layout(),
                                                   cache.shape(), layer);
}
template <class Cache>
std::size_t bytes_of(const Cache& cache) {
  return static_cast<std::size_t>(cache.layout().size()) * sizeof(typename Cache::Storage);
}
template <class Cache>
bool same_bytes(const Cache& a, const Cache& b) {
  return std::memcmp(static_cast<const void*>(a.data()), static_cast<const void*>(b.data()), bytes_of(a)) == 0;
}

template <Format I>
std::vector<std::byte> as_input(const std::vector<float>& x) {
  std::vector<std::byte> out(x.size() * static_cast<std::size_t>(cuda::code_bytes(I)));
  for (std::size_t i = 0; i < x.size(); ++i) {
    if constexpr (I == Format::f32) {
      std::memcpy(out.data() + 4 * i, &x[i], 4);
    } else {
      const std::uint16_t half = to_half(I, x[i]);
      std::memcpy(out.data() + 2 * i, &half, 2);
    }
  }
  return out;
}

/// kvc::llama::rope with fused multiply-adds, whether or not this test is compiled for a processor that has them.
template <class Pairing>
void rotate(const kvc::llama::RopeTable& table, const std::vector<Pos>& positions, std::vector<float>& x, Index width,
            Index dim) {
  const std::vector<float> before = x;
  const Index half = table.rotary_dim() / 2;
  for (std::size_t row = 0; row < positions.size(); ++row) {
    for (Index head = 0; head < width; head += dim) {
      float* const at = x.data() + static_cast<Index>(row) * width + head;
      for (Index i = 0; i < half; ++i) {
        float &first = at[Pairing::first(i, half)], &second = at[Pairing::second(i, half)];
        const float a = first, b = second, c = table.cos(positions[row])[i], s = table.sin(positions[row])[i];
        first = std::fma(a, c, -(b * s));
        second = std::fma(a, s, b * c);
      }
    }
  }
#if defined(__FMA__)
  std::vector<float> same = before;
  kvc::llama::rope(Pairing{}, table, positions, kvc::MatrixRef<float>(same.data(), std::ssize(positions), width), dim);
  REQUIRE(same == x);
#endif
}

/// Extends sequences step by step in two caches, one written by the CPU and one by the kernel; then compares pools.
template <class T, Format I, class P, class L, class Pairing>
void check_append(const typename P::Config& config, const kvc::Shape& shape, cuda::RopeView rope, Index query_heads,
                  std::uint64_t seed) {
  using Cache = kvc::KvCache<T, P, L>;
  Cache expected(shape, config), cache(shape, config);
  for (Cache* each : {&expected, &cache}) {
    std::memset(static_cast<void*>(each->data()), 0xab, bytes_of(*each));
  }
  Random random(seed);
  const Index dim = shape.key_dim, value_dim = expected.shape().value_dim, heads = shape.kv_heads;
  const kvc::llama::RopeTable table(100, rope.rotary_dim, 10000.0);
  rope.cos = table.cos(0);
  rope.sin = table.sin(0);
  std::vector<kvc::SeqId> sequences{cache.open(), cache.open(), cache.open()};
  for (int i = 0; i < 3; ++i) {
    REQUIRE(expected.open() == sequences[static_cast<std::size_t>(i)]);
  }
  for (int step = 0; step < 3; ++step) {
    std::vector<typename Cache::Append> appends, others;
    Index rows = 0;
    for (const kvc::SeqId seq : sequences) {
      const Pos count = random.between(0, 9);
      rows += count;
      appends.push_back(cache.extend_without_tokens(seq, count));
      others.push_back(expected.extend_without_tokens(seq, count));
    }
    const auto random_rows = [&](Index columns) {
      std::vector<float> x(static_cast<std::size_t>(rows * columns));
      for (float& each : x) {
        each = random.uniform(-3, 3);
        if constexpr (I != Format::f32) {
          each = half_to_float(I, to_half(I, each));
        }
      }
      return x;
    };
    std::vector<float> k = random_rows(heads * dim), v = random_rows(heads * value_dim),
                       q = random_rows(query_heads * dim);
    if (I == Format::f32 && cuda::code_bytes(cuda::format_of<T>) == 1 && rows > 1) {
      k[0] = std::nanf("");  // a row that cannot be quantised
      std::fill_n(v.begin(), value_dim, 0.0F);
    }
    const HostBatch batch(kvc::make_tables(cache, appends));
    const std::vector<std::byte> k_in = as_input<I>(k), v_in = as_input<I>(v);
    std::vector<std::byte> q_in = as_input<I>(q);
    for (Index layer = 0; layer < shape.layers; ++layer) {
      const cuda::AppendArguments<cuda::format_in<T, L>> a{layer_of(cache, layer),
                                                           batch.view,
                                                           k_in.data(),
                                                           v_in.data(),
                                                           q_in.data(),
                                                           heads * dim,
                                                           heads * value_dim,
                                                           query_heads * dim,
                                                           layer == 0 ? static_cast<std::int32_t>(query_heads) : 0,
                                                           rope};
      kvc_emulation::launch({2}, cuda::detail::rows_threads, [&] {
        if (dim <= 128 && value_dim <= 128) {
          cuda::append_kernel<I, cuda::format_in<T, L>, true>(a);
        } else {
          cuda::append_kernel<I, cuda::format_in<T, L>, false>(a);
        }
      });
    }
    if (rope.pairing != cuda::RopePairing::none) {
      std::vector<Pos> positions;
      for (const auto& append : appends) {
        for (Pos p = append.range().first; p < append.range().last; ++p) {
          positions.push_back(p);
        }
      }
      rotate<Pairing>(table, positions, k, heads * dim, dim);
      rotate<Pairing>(table, positions, q, query_heads * dim, dim);
    }
    REQUIRE((rope.pairing == cuda::RopePairing::none || q_in == as_input<I>(q)));
    Index row = 0;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const Index count = others[i].size();
      for (Index layer = 0; layer < shape.layers; ++layer) {
        expected.write(layer, others[i], kvc::MatrixRef<const float>(k.data() + row * heads * dim, count, heads * dim),
                       kvc::MatrixRef<const float>(v.data() + row * heads * value_dim, count, heads * value_dim));
      }
      row += count;
      expected.commit(std::move(others[i]));
      cache.commit(std::move(appends[i]));
    }
    REQUIRE(same_bytes(expected, cache));
  }
}

constexpr cuda::RopeView no_rope{};
constexpr cuda::RopeView interleaved{cuda::RopePairing::interleaved, 32, nullptr, nullptr};
constexpr cuda::RopeView half_split{cuda::RopePairing::half_split, 48, nullptr, nullptr};

/// A space that copies as DeviceSpace does, with the kernel run on the CPU.
struct QueuedSpace {
  static constexpr bool host_accessible = true;
  [[nodiscard]] std::byte* allocate(std::size_t bytes) { return kvc::HostSpace{}.allocate(bytes); }
  void deallocate(std::byte* p, std::size_t bytes) noexcept { kvc::HostSpace{}.deallocate(p, bytes); }
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
  void copy(const kvc::GridCopy& copy) {
    if (copies.conflicts(copy)) {
      ++conflicts;
      flush();
    }
    copies.push(copy);
  }
  void flush() {
    const auto& all = copies.queued();
    for (std::size_t first = 0; first < all.size(); first += cuda::max_copy_jobs) {
      const std::size_t count = std::min<std::size_t>(cuda::max_copy_jobs, all.size() - first);
      cuda::GridCopyJobs<cuda::max_copy_jobs> jobs{};
      const Index unit = cuda::detail::unit_of(all.data() + first, all.data() + first + count);
      for (std::size_t i = 0; i < count; ++i) {
        jobs.jobs[i] = cuda::detail::job_of(all[first + i], unit);
      }
      ++launches;
      kvc_emulation::launch({2, static_cast<unsigned>(count)}, cuda::copy_threads, [&] {
        unit == 16  ? cuda::copy_kernel<uint4>(jobs)
        : unit == 4 ? cuda::copy_kernel<std::uint32_t>(jobs)
                    : cuda::copy_kernel<unsigned char>(jobs);
      });
    }
    copies.clear();
  }
  cuda::detail::CopyQueue copies;
  int conflicts = 0;
  int launches = 0;
};

/// Random forks, extensions and truncations in a cache that queues copies and in one that does not.
template <class T, class L, class Case>
void check_copies(std::uint64_t seed) {
  using P = typename Case::Policy;
  const kvc::Shape shape{.layers = 3, .kv_heads = 2, .key_dim = 8, .value_dim = 16};
  const auto config = Case::config(200, 12, 40);
  kvc::KvCache<T, P, L> expected(shape, config);
  kvc::KvCache<T, P, L, QueuedSpace> cache(shape, config);
  std::memset(static_cast<void*>(expected.data()), 0, bytes_of(expected));
  std::memset(static_cast<void*>(cache.data()), 0, bytes_of(cache));
  Random random(seed);
  std::vector<kvc::SeqId> open;
  for (int i = 0; i < 150; ++i) {
    const int what = random.between(0, 9);
    if (open.empty() || what < 2) {
      const auto seq = expected.try_open();
      REQUIRE(cache.try_open().has_value() == seq.has_value());
      if (seq) {
        open.push_back(seq->seq);
      }
      continue;
    }
    const auto at = static_cast<std::size_t>(random.between<Index>(0, std::ssize(open) - 1));
    const kvc::SeqId seq = open[at];
    if (what < 4) {
      const Pos where = random.between(0, expected.length(seq));
      const auto fork = expected.try_fork(seq, where);
      REQUIRE(cache.try_fork(seq, where) == fork);
      if (fork) {
        open.push_back(*fork);
      }
    } else if (what < 5) {
      expected.close(seq);
      cache.close(seq);
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
    } else {
      const Pos count = random.between(0, 9);
      auto step = expected.try_extend_without_tokens(seq, count);
      auto same = cache.try_extend_without_tokens(seq, count);
      REQUIRE(step.has_value() == same.has_value());
      if (step) {
        cache.space().flush();  // before the kernels of the step
        std::vector<float> k(static_cast<std::size_t>(count * 2 * 8)), v(static_cast<std::size_t>(count * 2 * 16));
        for (Index layer = 0; layer < shape.layers; ++layer) {
          std::generate(k.begin(), k.end(), [&] { return random.uniform(); });
          std::generate(v.begin(), v.end(), [&] { return random.uniform(); });
          expected.write(layer, *step, kvc::MatrixRef<const float>(k.data(), count, 16),
                         kvc::MatrixRef<const float>(v.data(), count, 32));
          cache.write(layer, *same, kvc::MatrixRef<const float>(k.data(), count, 16),
                      kvc::MatrixRef<const float>(v.data(), count, 32));
        }
        expected.commit(std::move(*step));
        cache.commit(std::move(*same));
      }
    }
  }
  cache.space().flush();
  REQUIRE(std::memcmp(static_cast<const void*>(expected.data()), static_cast<const void*>(cache.data()),
                      bytes_of(expected)) == 0);
  if (expected.stats().copies > 0) {
    REQUIRE(cache.space().launches > 0);
  }
}

}  // namespace

TEST_CASE("emulated append: the bytes of the CPU, for every element type", "[cuda]") {
  const kvc::Shape shape{.layers = 2, .kv_heads = 3, .key_dim = 64};
  using Head = kvc::HeadMajor;
  using Token = kvc::TokenMajor;
  using None = kvc::llama::Interleaved;
  const kvc::Paged::Config paged{.blocks = 40, .block_tokens = 4};
  check_append<float, Format::f32, kvc::Paged, Head, None>(paged, shape, no_rope, 0, 1);
  check_append<Eigen::half, Format::f16, kvc::Paged, Token, None>(paged, shape, no_rope, 0, 2);
  check_append<Eigen::bfloat16, Format::f32, kvc::Paged, Head, None>(paged, shape, no_rope, 0, 3);
  check_append<kvc::Fp8E4M3, Format::bf16, kvc::Paged, Head, None>(paged, shape, no_rope, 0, 4);
  check_append<kvc::Int8, Format::f32, kvc::Contiguous, Token, None>({.sequences = 3, .max_tokens = 30}, shape, no_rope,
                                                                     0, 5);
  check_append<kvc::Int8, Format::f32, kvc::Paged, kvc::ScalePlanes<Head>, None>(paged, shape, no_rope, 0, 5);
}

TEST_CASE("emulated append: dims that differ, and beyond a half of a warp", "[cuda]") {
  const kvc::Paged::Config paged{.blocks = 20, .block_tokens = 7};
  check_append<kvc::Int8, Format::bf16, kvc::Paged, kvc::HeadMajor, kvc::llama::Interleaved>(
      paged, {.layers = 1, .kv_heads = 2, .key_dim = 192, .value_dim = 104}, no_rope, 0, 6);
  check_append<kvc::Int8, Format::bf16, kvc::Paged, kvc::ScalePlanes<kvc::TokenMajor>, kvc::llama::Interleaved>(
      paged, {.layers = 1, .kv_heads = 2, .key_dim = 192, .value_dim = 104}, no_rope, 0, 6);
  check_append<kvc::Fp8E4M3, Format::f32, kvc::Paged, kvc::TokenMajor, kvc::llama::Interleaved>(
      paged, {.layers = 1, .kv_heads = 2, .key_dim = 72, .value_dim = 128}, no_rope, 0, 7);
}

TEST_CASE("emulated append: RoPE on keys and queries, with the bits of the CPU", "[cuda]") {
  const kvc::Shape shape{.layers = 1, .kv_heads = 2, .key_dim = 64};
  const kvc::Paged::Config paged{.blocks = 20, .block_tokens = 7};
  check_append<Eigen::bfloat16, Format::bf16, kvc::Paged, kvc::HeadMajor, kvc::llama::Interleaved>(paged, shape,
                                                                                                   interleaved, 4, 8);
  check_append<float, Format::f32, kvc::Paged, kvc::HeadMajor, kvc::llama::HalfSplit>(paged, shape, half_split, 3, 9);
  check_append<Eigen::half, Format::f16, kvc::Paged, kvc::HeadMajor, kvc::llama::HalfSplit>(paged, shape, half_split, 2,
                                                                                            10);
}

TEST_CASE("emulated rows: gathered, lost and scattered, a sequence is what it was", "[cuda]") {
  const auto check = [](auto cache_of, auto unit) {
    using Unit = decltype(unit);
    auto& cache = *cache_of;
    constexpr Format F = decltype(layer_of(cache, 1))::format;
    std::memset(static_cast<void*>(cache.data()), 0, bytes_of(cache));
    Random random(11);
    auto* const bytes = reinterpret_cast<unsigned char*>(cache.data());
    std::generate_n(bytes, bytes_of(cache), [&] { return static_cast<unsigned char>(random.between(0, 255)); });
    const std::vector<unsigned char> before(bytes, bytes + bytes_of(cache));
    std::vector<kvc::SeqId> sequences{cache.open(), cache.open()};
    std::vector<Pos> lengths{13, 5};
    for (std::size_t i = 0; i < 2; ++i) {
      cache.commit(cache.extend_without_tokens(sequences[i], lengths[i]));
    }
    const HostBatch batch(
        kvc::make_tables(cache.policy(), std::span<const kvc::SeqId>(sequences), std::span<const Pos>(lengths)));
    const auto row = static_cast<std::size_t>(18 * cache.shape().kv_heads);
    std::vector<std::byte> k(row *
                             static_cast<std::size_t>(cuda::row_bytes(F, static_cast<int>(cache.shape().key_dim)))),
        v(row * static_cast<std::size_t>(cuda::row_bytes(F, static_cast<int>(cache.shape().value_dim))));
    cuda::RowsArguments<F> a{layer_of(cache, 1), batch.view, k.data(), v.data(), true};
    kvc_emulation::launch({2}, cuda::detail::rows_threads, [&] { cuda::rows_kernel<F, Unit>(a); });
    for (const kvc::SeqId seq : sequences) {
      const kvc::PosRange all{0, cache.length(seq)};
      cache.policy().for_each_run(seq, all, [&](const kvc::SlotRun& run) {
        for (Pos i = 0; i < run.count; ++i) {
          std::memset(static_cast<void*>(cache.data() + cache.layout().k(run.block, 1, 0, run.offset + i)), 0,
                      static_cast<std::size_t>(cache.shape().key_dim));
        }
      });
    }
    REQUIRE_FALSE(std::equal(before.begin(), before.end(), bytes));
    a.gather = false;
    kvc_emulation::launch({2}, cuda::detail::rows_threads, [&] { cuda::rows_kernel<F, Unit>(a); });
    REQUIRE(std::equal(before.begin(), before.end(), bytes));
  };
  const kvc::Shape shape{.layers = 2, .kv_heads = 2, .key_dim = 24, .value_dim = 40};
  kvc::KvCache<Eigen::half, kvc::Paged> paged(shape, {.blocks = 20, .block_tokens = 3});
  check(&paged, uint4{});
  kvc::KvCache<kvc::Int8, kvc::Contiguous, kvc::TokenMajor> contiguous(shape, {.sequences = 2, .max_tokens = 20});
  check(&contiguous, std::uint32_t{});
  kvc::KvCache<kvc::Int8, kvc::Paged, kvc::ScalePlanes<kvc::HeadMajor>> planes(shape,
                                                                               {.blocks = 20, .block_tokens = 3});
  check(&planes, std::uint32_t{});
}

TEST_CASE("emulated copies: what a policy asks for, in few launches, as if at once", "[cuda]") {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    CAPTURE(seed);
    check_copies<float, kvc::HeadMajor, Paged4>(seed);
    check_copies<kvc::Int8, kvc::TokenMajor, Paged7>(seed);
    check_copies<kvc::Int8, kvc::ScalePlanes<kvc::TokenMajor>, Paged4>(seed);
    check_copies<Eigen::half, kvc::TokenMajor, GrowFirst>(seed);
    check_copies<kvc::Fp8E4M3, kvc::HeadMajor, Reserve>(seed);
    check_copies<float, kvc::HeadMajor, Prefix4>(seed);
  }
}

TEST_CASE("bytes widen to 16 bits and narrow as on the CPU", "[cuda]") {
  const auto same = [](float a, float b) {
    return std::isnan(a) ? std::isnan(b) : std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
  };
  for (std::uint32_t code = 0; code < 256; ++code) {
    const std::uint32_t codes = code | (255 - code) << 8 | (code ^ 0x55U) << 16 | (code ^ 0xaaU) << 24;
    std::uint32_t fp8[2], int8[2];
    cuda::device::widen_fp8(codes, fp8);
    cuda::device::widen_int8(codes, int8);
    for (unsigned i = 0; i < 4; ++i) {
      const auto byte = static_cast<std::uint8_t>(codes >> (8 * i));
      const std::uint32_t half = i % 2 == 0 ? fp8[i / 2] & 0xffffU : fp8[i / 2] >> 16;
      const std::uint32_t integer = i % 2 == 0 ? int8[i / 2] & 0xffffU : int8[i / 2] >> 16;
      float expected = 0;
      kvc::Element<kvc::Fp8E4M3>::decode(&byte, 1, &expected);
      REQUIRE(same(expected, kvc_emulation::from_f16(half)));
      REQUIRE(kvc_emulation::from_f16(integer) == static_cast<float>(static_cast<std::int8_t>(byte)));
    }
  }
  int wrong = 0;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 4099) {  // a prime: all kinds of endings
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    std::uint8_t expected = 0;
    kvc::Element<kvc::Fp8E4M3>::encode(&x, 1, &expected);
    wrong += cuda::device::narrow_fp8(x) != expected ? 1 : 0;
    const std::uint32_t half = kvc_emulation::to_16_bits(false, x), bf16 = kvc_emulation::to_16_bits(true, x);
    wrong += !same(static_cast<float>(Eigen::half(x)), kvc_emulation::from_16_bits(false, half)) ? 1 : 0;
    wrong += !same(static_cast<float>(Eigen::bfloat16(x)), kvc_emulation::from_16_bits(true, bf16)) ? 1 : 0;
  }
  REQUIRE(wrong == 0);
}
