// Plain code that reads the rows of a selection and computes nothing: what memory allows for rows that lie apart.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <vector>

#include "kvc/attention/kernel/kv_tile_rows.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "machine.hpp"

namespace kvc_bench {

/// How to read rows: how many rows ahead to prefetch, and whether whole rows or their first lines alone, behind which
/// the prefetchers of the processor may go on.
struct RowReadWay {
  std::size_t ahead;
  bool whole;
};
inline constexpr RowReadWay row_read_ways[] = {{0, false}, {8, true}, {32, true}, {32, false}, {128, true}};

/// The keys and values of a view in the order in which decode reads them: for each 64 positions, head after head, the
/// keys and then the values.
template <class View>
std::vector<kvc::detail::ByteSpan> rows_in_order(const View& view) {
  using kvc::detail::ByteSpan;
  const auto span = [](const auto* row, kvc::Index units) {
    return ByteSpan{reinterpret_cast<const std::byte*>(row), reinterpret_cast<const std::byte*>(row + units)};
  };
  std::vector<ByteSpan> rows, values;
  for (kvc::Pos first = 0; first < view.length(); first += 64) {
    for (kvc::Index head = 0; head < view.kv_heads(); ++head) {
      values.clear();
      view.for_each_run(head, {first, std::min(first + 64, view.length())}, [&](const auto& run) {
        for (kvc::Index j = 0; j < run.rows; ++j) {
          rows.push_back(span(run.k + j * run.k_stride, kvc::detail::key_units(run, view.key_dim())));
          if (!run.is_latent()) {
            values.push_back(span(run.v + j * run.v_stride, kvc::detail::value_units(run, view.value_dim())));
          }
        }
      });
      rows.insert(rows.end(), values.begin(), values.end());
    }
  }
  return rows;
}

/// Reads all lines of the rows. Returns seconds.
inline double read_rows(const std::vector<kvc::detail::ByteSpan>& rows, RowReadWay way) {
  constexpr std::ptrdiff_t line = kvc::detail::ByteSpan::line;
  std::array<std::uint64_t, line / sizeof(std::uint64_t)> bits{}, words{};
  const auto start = Clock::now();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (way.ahead > 0 && i + way.ahead < rows.size()) {
      const auto& row = rows[i + way.ahead];
      const std::byte* const end = way.whole ? row.end : row.begin + 1;
      for (const std::byte* at = row.first_line(); at < end; at += line) {
        __builtin_prefetch(at, 0, 2);
      }
    }
    for (const std::byte* at = rows[i].first_line(); at < rows[i].end; at += line) {
      std::memcpy(words.data(), at, sizeof words);
      for (std::size_t w = 0; w < words.size(); ++w) {
        bits[w] ^= words[w];
      }
    }
  }
  const double seconds = seconds_between(start, Clock::now());
  keep(bits);
  return seconds;
}

/// Runs decode over random positions, decode over random blocks, and plain reads of the rows of both, by turns. Writes
/// the medians' ratios as counters:
///
///   of_plain     plain reads of the same rows over decode
///   of_blocks    decode over positions, over decode over blocks
///   plain_ratio  the same of plain reads
///
///   decode(positions, i), rows(positions, i)   over selection i of random positions, or of random blocks
///   positions                                  what of_plain is of
template <class Decode, class Rows>
void compare_plain_reads(benchmark::State& state, bool positions, Decode&& decode, Rows&& rows) {
  constexpr std::size_t rounds = 15, ways = std::size(row_read_ways);
  std::array<std::vector<double>, 2> decoded;
  std::array<std::array<std::vector<double>, ways>, 2> read;
  std::size_t i = 0;
  for (std::size_t round = 0; round < rounds; ++round) {
    for (const bool kind : {true, false}) {
      const auto start = Clock::now();
      decode(kind, ++i);
      decoded[kind].push_back(seconds_between(start, Clock::now()));
      for (std::size_t way = 0; way < ways; ++way) {
        read[kind][way].push_back(read_rows(rows(kind, ++i), row_read_ways[way]));
      }
    }
  }
  const auto median = [](std::vector<double>& of) {
    const auto middle = of.begin() + static_cast<std::ptrdiff_t>(of.size() / 2);
    std::ranges::nth_element(of, middle);
    return *middle;
  };
  std::array<double, 2> of_decode{}, of_plain{};  // plain: the fastest way
  for (const bool kind : {true, false}) {
    of_decode[kind] = median(decoded[kind]);
    std::array<double, ways> medians{};
    std::ranges::transform(read[kind], medians.begin(), median);
    of_plain[kind] = *std::ranges::min_element(medians);
  }
  state.counters["of_plain"] = of_plain[positions] / of_decode[positions];
  state.counters["of_blocks"] = of_decode[true] / of_decode[false];
  state.counters["plain_ratio"] = of_plain[true] / of_plain[false];
}

}  // namespace kvc_bench
