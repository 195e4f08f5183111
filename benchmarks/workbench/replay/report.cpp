#include "report.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <ostream>

#include "evictions.hpp"
#include "text.hpp"

namespace replay {
namespace {

using kvc_bench::Trace;
using text::fixed;

double share(Index part, Index all) { return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all); }

double ns_per_block(const Result& result, const Replay& replay) {
  return replay.blocks == 0 ? 0 : 1e9 * result.seconds / static_cast<double>(replay.blocks);
}

/// Columns as wide as their widest cell; the first two are words, the others numbers.
using Row = std::array<std::string, 10>;
void print_table(std::ostream& out, const std::vector<Row>& rows) {
  std::array<std::size_t, std::tuple_size_v<Row>> widths{};
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - row[i].size(), ' ');
      out << "  " << (i < 2 ? row[i] + space : space + row[i]);
    }
    out << '\n';
  }
}

}  // namespace

std::string grouped(Index value) {
  std::string text = std::to_string(value);
  for (std::size_t at = text.size(); at > 3 + (value < 0 ? 1U : 0U);) {
    text.insert(at -= 3, 1, ',');
  }
  return text;
}

void print(std::ostream& out, const Trace& trace, const Replay& replay) {
  const Index tokens = trace.input_tokens();
  out << trace.name << ": " << grouped(static_cast<Index>(trace.requests.size())) << " requests in the format "
      << kvc_bench::name(trace.format) << ", " << grouped(tokens) << " tokens in " << grouped(replay.blocks)
      << " blocks of " << trace.block_tokens << ", " << grouped(replay.unique_blocks) << " of them different\n";
  if (trace.skipped_lines > 0) {
    out << grouped(trace.skipped_lines) << (trace.skipped_lines == 1 ? " bad line was" : " bad lines were")
        << " skipped; the first: " << trace.first_skipped << '\n';
  }
  if (trace.format == kvc_bench::TraceFormat::azure) {
    out << "This format names no blocks: each request has blocks of its own, and nothing can be found in the cache.\n";
  }
  if (const std::string note = kvc_bench::note_on_blocks(trace.format, trace.block_tokens, trace.last_block);
      !note.empty()) {
    out << note << '\n';
  }
  std::vector<Row> rows;
  for (std::size_t i = 0; i < replay.results.size(); ++i) {
    const Result& r = replay.results[i];
    if (rows.empty()) {
      out << "\ncapacity " << grouped(r.capacity) << (r.capacity == 1 ? " block" : " blocks");
      if (!replay.model.empty()) {
        out << "; in this memory, " << grouped(r.pool_blocks) << " of the layer groups of " << replay.model;
      }
      out << '\n';
      rows.push_back({"eviction", "accounting", "hit blocks", "hit rate", "by tokens", "evictions", "gap recovered",
                      "of held", "ns/block", "refused"});
    }
    rows.push_back({r.eviction, std::string(name(r.accounting)), grouped(r.hits.blocks),
                    fixed(100 * share(r.hits.blocks, replay.blocks), 2, " %"),
                    fixed(100 * share(r.hits.tokens, tokens), 2, " %"), grouped(r.hits.evictions),
                    r.gap_recovered ? fixed(100 * *r.gap_recovered, 1, " %") : "-",
                    r.held_gap_recovered ? fixed(100 * *r.held_gap_recovered, 1, " %") : "-",
                    fixed(ns_per_block(r, replay), 1), grouped(r.refused)});
    if (i + 1 == replay.results.size() || replay.results[i + 1].capacity != r.capacity) {
      print_table(out, rows);
      rows.clear();
    }
  }
}

std::string to_json(const Trace& trace, const Replay& replay, const std::vector<TierSize>& tiers,
                    const std::vector<TieredResult>& tiered) {
  using Json = nlohmann::ordered_json;
  const Index tokens = trace.input_tokens();
  Json report = {
      {"trace", trace.name},
      {"format", kvc_bench::name(trace.format)},
      {"block_tokens", trace.block_tokens},
      {"requests", trace.requests.size()},
      {"blocks", replay.blocks},
      {"unique_blocks", replay.unique_blocks},
      {"input_tokens", tokens},
      {"skipped_lines", trace.skipped_lines},
      {"default", eviction_name<DefaultEviction>},
      {"model", replay.model.empty() ? Json(nullptr) : Json(replay.model)},
      {"results", Json::array()},
  };
  for (const Result& r : replay.results) {
    report["results"].push_back({
        {"eviction", r.eviction},
        {"default", r.eviction == eviction_name<DefaultEviction>},
        {"capacity", r.capacity},
        {"pool_blocks", r.pool_blocks},
        {"accounting", name(r.accounting)},
        {"requests", trace.requests.size()},
        {"blocks", replay.blocks},
        {"hit_blocks", r.hits.blocks},
        {"hit_tokens", r.hits.tokens},
        {"hit_rate", share(r.hits.blocks, replay.blocks)},
        {"hit_rate_tokens", share(r.hits.tokens, tokens)},
        {"evictions", r.hits.evictions},
        {"gap_recovered", r.gap_recovered ? Json(*r.gap_recovered) : Json(nullptr)},
        {"held_gap_recovered", r.held_gap_recovered ? Json(*r.held_gap_recovered) : Json(nullptr)},
        {"ns_per_block", ns_per_block(r, replay)},
        {"seconds", r.seconds},
        {"refused", r.refused},
    });
  }
  for (const TieredResult& r : tiered) {
    Json in_tiers = Json::array();
    for (std::size_t t = 0; t < r.hits.size(); ++t) {
      in_tiers.push_back({{"name", tiers[t].name},
                          {"blocks", tiers[t].blocks},
                          {"rule", tiers[t].rule},
                          {"hit_blocks", r.hits[t]},
                          {"stored_blocks", r.stored[t]},
                          {"lost_blocks", r.lost[t]}});
    }
    report["tiers"].push_back({{"eviction", r.eviction},
                               {"capacity", r.capacity},
                               {"pool_hit_blocks", r.pool_hits},
                               {"tiers", in_tiers},
                               {"seconds", r.seconds}});
  }
  return report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace replay
