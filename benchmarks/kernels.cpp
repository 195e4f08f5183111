// The parts of decode attention, each alone on one tile in the first-level cache: shows where its time goes.
//
//   kernels/<element>/<part>    4 query rows (a GQA group) against 64 positions, dimension 128
//
//   scores          load_keys and the products of queries and keys
//   online_softmax  maximum, exponentials, sum
//   weights         encodes the weights as the values need them
//   values          the weighted sum of the values
//
// The column per_position is nanoseconds per position. `ideal` is the time of the multiply-adds alone at the peak of
// the unit that does them, measured in the same run; the rest is loads, folds of sums, and conversions.
//
//   reads/<how>/threads:<t>    memory alone: decode stripped of its arithmetic
//
//   plain              one stream in address order, left to the prefetcher of the processor
//   tiles/prefetched   the tiles of a head-major cache in the order of decode, 32 KiB of keys, then of values, head
//                      after head; prefetches one line of the next tile per line read, as attention does
//   tiles/plain        the same without prefetching
//   blocks/prefetched  as tiles/prefetched, with the positions of a tile in four blocks of 16 of a pool, in random
//                      order
//   one_by_one         lines in random order, each found in the one before: the latency of one request
//
// The column GB/s is the rate, `of_limit` its share of the fastest read that was measured. one_by_one shows nanoseconds
// per line, and how many lines must be in flight to reach the limit.
//
//   build/release/benchmarks/kernels
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kvc/attention/kernel/kv_tile.hpp"
#include "kvc/attention/kernel/online_softmax.hpp"
#include "machine.hpp"

namespace {
using namespace kvc;
using detail::tile_keys;

constexpr Index dim = 128;
constexpr int rows = 4;

/// Rows of a tile, and everything that the parts of the work on it leave behind.
template <class T>
class OneTile {
  using Tile = detail::KvTile<T>;

 public:
  OneTile() : tile_(dim, dim, 1.0F, scratch_) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const Index size = Element<T>::row_size(dim);
    std::vector<float> numbers(static_cast<std::size_t>(dim));
    const auto next = [&] {
      for (float& x : numbers) {
        x = normal(random);
      }
      return numbers.data();
    };
    for (Index j = 0; j < tile_keys; ++j) {
      Element<T>::encode(next(), dim, &keys_[static_cast<std::size_t>(j * size)]);
      Element<T>::encode(next(), dim, &values_[static_cast<std::size_t>(j * size)]);
      located_.k[j] = &keys_[static_cast<std::size_t>(j * size)];
      located_.v[j] = &values_[static_cast<std::size_t>(j * size)];
    }
    located_.first = 0;
    located_.last = tile_keys;
    for (Index r = 0; r < rows; ++r) {
      Tile::prepare_query(next(), dim, q_ + r * query_size);
    }
    tile_.set(located_, nullptr, rows);
    scores();
    scores_.assign(p_, p_ + rows * tile_keys);
    online_softmax();
    weights();
  }

  void scores() {
    tile_.load_keys();
    if constexpr (rows <= detail::kernel_rows) {
      tile_.template scores<rows>(0, tile_keys, q_, query_size, p_);
    } else {
      for (Index r = 0; r < rows; ++r) {
        tile_.template scores<1>(0, tile_keys, q_ + r * query_size, query_size, p_ + r * tile_keys);
      }
    }
  }
  void online_softmax() {
    std::copy(scores_.begin(), scores_.end(), p_);
    std::fill_n(visible_, rows, ~std::uint64_t{0});
    std::fill_n(m_, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(l_, rows, 0.0F);
    detail::online_softmax(p_, visible_, rows, m_, l_, rescale_, largest_);
  }
  void weights() {
    tile_.load_values();
    for (Index r = 0; r < rows; ++r) {
      tile_.encode_weights(p_ + r * tile_keys, largest_[r], ~std::uint64_t{0}, w_ + r * weight_size);
    }
  }
  void values() { add<rows <= detail::kernel_rows ? rows : 1>(); }

 private:
  template <int R>
  void add() {
    for (Index r = 0; r < rows; r += R) {
      const float* const w = (Tile::weight_floats(dim) == 0 ? p_ : w_) + r * weight_size;
      if constexpr (Tile::exact_sums) {
        tile_.template add_values<R>(w, 0, tile_keys, o_ + r * state_size, rescale_ + r);
      } else {
        tile_.template add_values<R>(w, 0, tile_keys, nullptr, o_ + r * state_size, rescale_ + r);
      }
    }
  }

  static constexpr Index query_size = Tile::query_floats(dim), state_size = Tile::state_floats(dim);
  static constexpr Index weight_size = Tile::weight_floats(dim) == 0 ? tile_keys : Tile::weight_floats(dim);
  std::vector<StorageOf<T>> keys_ =
      std::vector<StorageOf<T>>(static_cast<std::size_t>(tile_keys * Element<T>::row_size(dim)));
  std::vector<StorageOf<T>> values_ = keys_;
  detail::KvTileRows<T> located_;
  detail::Scratch scratch_{Tile::scratch_floats(dim, dim) + rows * (query_size + tile_keys + weight_size + state_size)};
  Tile tile_;
  float* q_ = scratch_.take(rows * query_size);
  float* p_ = scratch_.take(rows * tile_keys);
  float* w_ = scratch_.take(rows * weight_size);
  float* o_ = zeros(scratch_.take(rows * state_size));
  std::vector<float> scores_;
  std::uint64_t visible_[rows] = {};
  float m_[rows] = {}, l_[rows] = {}, rescale_[rows] = {}, largest_[rows] = {};

  static float* zeros(float* p) {
    std::fill_n(p, rows * state_size, 0.0F);
    return p;
  }
};

template <class T>
void add_parts(double kvc_bench::Limits::* unit) {
  const auto add = [&](const char* part, auto run, double operations) {
    const std::string name = "kernels/" + std::string(Element<T>::name) + "/" + part;
    benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
      OneTile<T> tile;
      const auto start = kvc_bench::Clock::now();
      for (auto _ : state) {
        run(tile);
        benchmark::ClobberMemory();
      }
      const double seconds = kvc_bench::seconds_between(start, kvc_bench::Clock::now());
      const auto limits = kvc_bench::machine().median(1, kvc_bench::Clock::now() - std::chrono::hours(1));
      state.counters["per_position"] = seconds / static_cast<double>(state.iterations()) / tile_keys * 1e9;
      state.counters["ideal"] = operations / (limits.*unit) * 1e9;
    });
  };
  add("scores", [](OneTile<T>& t) { t.scores(); }, 2.0 * rows * dim);
  add("online_softmax", [](OneTile<T>& t) { t.online_softmax(); }, 0.0);
  add("weights", [](OneTile<T>& t) { t.weights(); }, 0.0);
  add("values", [](OneTile<T>& t) { t.values(); }, 2.0 * rows * dim);
}

/// A buffer, cut into spans that are read one after the other.
class ReadOrder {
 public:
  enum class Kind { plain, tiles, blocks };

  explicit ReadOrder(Kind kind) : buffer_(HostSpace{}, kvc_bench::working_set()) {
    auto* const floats = reinterpret_cast<float*>(buffer_.data());
    std::fill_n(floats, buffer_.size() / sizeof(float), 1.0F);
    // Keys of a head, its values, then the next head; the next tile after all heads.
    constexpr Index streams = 2 * heads, block_rows = 16, block_floats = block_rows * dim;
    if (kind == Kind::blocks) {
      span_floats_ = block_floats;
      std::vector<Index> blocks(buffer_.size() / sizeof(float) / (streams * block_floats));
      std::iota(blocks.begin(), blocks.end(), Index{0});
      std::ranges::shuffle(blocks, std::mt19937(1));
      constexpr std::size_t of_tile = tile_keys / block_rows;
      for (std::size_t first = 0; first + of_tile <= blocks.size(); first += of_tile) {
        for (Index stream = 0; stream < streams; ++stream) {
          for (std::size_t b = first; b < first + of_tile; ++b) {
            const Index place = stream % 2 * heads + stream / 2;  // keys of all heads, then their values
            spans_.push_back(floats + (blocks[b] * streams + place) * block_floats);
          }
        }
      }
    } else {
      const Index count = static_cast<Index>(buffer_.size() / sizeof(float)) / span_floats_;
      for (Index i = 0; i < count; ++i) {
        const Index place = kind == Kind::tiles ? i % streams * (count / streams) + i / streams : i;
        spans_.push_back(floats + place * span_floats_);
      }
    }
  }
  [[nodiscard]] double bytes() const {
    return static_cast<double>(spans()) * static_cast<double>(span_floats_) * sizeof(float);
  }
  [[nodiscard]] Index spans() const { return static_cast<Index>(spans_.size()); }

  /// Reads spans [first, last). Prefetches per line the one that lies 64 rows ahead.
  template <bool prefetches>
  void read(Index first, Index last) const {
    const Index ahead = tile_keys * dim / span_floats_;
    simd::F32x16 sum[4] = {};
    for (Index i = first; i < last; ++i) {
      const float* const at = spans_[static_cast<std::size_t>(i)];
      const float* const next = spans_[static_cast<std::size_t>(std::min(i + ahead, last - 1))];
      for (Index f = 0; f < span_floats_; f += 4 * simd::lanes) {
        simd::detail::unroll<4>([&](auto k) __attribute__((always_inline)) {
          if constexpr (prefetches) {
            __builtin_prefetch(next + f + k * simd::lanes, 0, 3);
          }
          sum[k] = sum[k] + simd::load(at + f + k * simd::lanes);
        });
      }
    }
    kvc_bench::keep(simd::sum((sum[0] + sum[1]) + (sum[2] + sum[3])));
  }

 private:
  static constexpr Index heads = 8;
  Buffer<HostSpace> buffer_;
  Index span_floats_ = tile_keys * dim;
  std::vector<const float*> spans_;
};

template <ReadOrder::Kind kind, bool prefetches>
void add_reads(const char* how) {
  for (const int threads : {1, 2}) {
    const std::string name = std::string("reads/") + how + "/threads:" + std::to_string(threads);
    benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
      const ReadOrder order(kind);
      const Index each = order.spans() / threads;
      const auto start = kvc_bench::Clock::now();
      std::vector<double> rates;
      for (auto _ : state) {
        const double seconds =
            kvc_bench::together(threads, [&](int i) { order.read<prefetches>(i * each, (i + 1) * each); });
        rates.push_back(order.bytes() / seconds);
        kvc_bench::machine().measure(threads);
      }
      std::ranges::nth_element(rates, rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2));
      const double rate = rates[rates.size() / 2];
      state.counters["GB/s"] = rate / 1e9;
      state.counters["of_limit"] = rate / kvc_bench::machine().median(threads, start).read;
    })->Iterations(9);
  }
}

/// Reads lines in an order that no prefetcher can foresee.
void one_by_one(benchmark::State& state) {
  constexpr std::size_t line = 64 / sizeof(std::uint32_t);
  Buffer<HostSpace> buffer(HostSpace{}, kvc_bench::working_set());
  auto* const words = reinterpret_cast<std::uint32_t*>(buffer.data());
  std::vector<std::uint32_t> order(buffer.size() / 64);
  std::iota(order.begin(), order.end(), 0U);
  std::ranges::shuffle(order, std::mt19937(1));
  for (std::size_t i = 0; i < order.size(); ++i) {
    words[order[i] * line] = order[i + 1 < order.size() ? i + 1 : 0];
  }
  std::uint32_t at = 0;
  const auto start = kvc_bench::Clock::now();
  for (auto _ : state) {
    at = words[at * line];
  }
  const double seconds =
      kvc_bench::seconds_between(start, kvc_bench::Clock::now()) / static_cast<double>(state.iterations());
  kvc_bench::keep(at);
  kvc_bench::machine().measure(1);
  state.counters["ns"] = seconds * 1e9;
  state.counters["lines_at_limit"] =
      seconds * kvc_bench::machine().median(1, kvc_bench::Clock::now() - std::chrono::minutes(1)).read / 64;
}
}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  using kvc_bench::Limits;
  kvc_bench::machine().measure(1);
  add_parts<float>(&Limits::fp32);
  add_parts<Eigen::half>(&Limits::fp32);
  add_parts<Eigen::bfloat16>(&Limits::bf16);
  add_parts<Fp8E4M3>(&Limits::bf16);
  add_parts<Int8>(&Limits::int8);
  add_parts<Int4>(&Limits::int8);
  add_reads<ReadOrder::Kind::plain, false>("plain");
  add_reads<ReadOrder::Kind::tiles, true>("tiles/prefetched");
  add_reads<ReadOrder::Kind::tiles, false>("tiles/plain");
  add_reads<ReadOrder::Kind::blocks, true>("blocks/prefetched");
  benchmark::RegisterBenchmark("reads/one_by_one/threads:1", one_by_one)->Iterations(1'000'000);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
