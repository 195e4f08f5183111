#include "families.hpp"

#include <algorithm>
#include <map>
#include <ostream>
#include <sstream>

#include "evictions.hpp"
#include "gnuplot.hpp"
#include "run.hpp"
#include "text.hpp"

namespace replay {
namespace {

using kvc::Index;
using text::fixed;

kvc_bench::Trace trace_of(Workload workload) {
  kvc_bench::Trace trace;
  trace.name = std::string(name(workload.family)) + ":" + std::to_string(workload.seed);
  trace.block_tokens = 1;
  for (GeneratedRequest& generated : workload.requests) {
    kvc_bench::Request request;
    request.arrival = static_cast<kvc_bench::Nanoseconds>(1e9 * generated.seconds);
    request.input_tokens = static_cast<Pos>(generated.blocks.size());
    request.blocks = std::move(generated.blocks);
    trace.requests.push_back(std::move(request));
  }
  return trace;
}

/// Of lru's hits; 0 where it has none.
double percent(const FamilyResult& r) {
  return r.lru == 0 ? 0 : 100 * static_cast<double>(r.default_policy - r.lru) / static_cast<double>(r.lru);
}
/// In ascending order.
std::vector<double> percents(const std::vector<FamilyResult>& results) {
  std::vector<double> all;
  for (const FamilyResult& r : results) {
    all.push_back(percent(r));
  }
  std::ranges::sort(all);
  return all;
}

}  // namespace

std::vector<FamilyResult> replay_families(std::size_t count, std::uint64_t seed) {
  std::vector<FamilyResult> results;
  for (const auto& [family, number] : workloads(count, seed)) {
    Workload workload = make_workload(family, number);
    const Index unique = workload.unique;
    const kvc_bench::Trace trace = trace_of(std::move(workload));
    for (const double share : family_shares) {
      const Index capacity = std::max<Index>(16, static_cast<Index>(share * static_cast<double>(unique)));
      const std::string default_name(eviction_name<DefaultEviction>);
      const Replay replay = replay_all(trace, {capacity}, {default_name, std::string(kvc::Lru::name)});
      const auto hits = [&](std::string_view eviction) {
        return std::ranges::find(replay.results, eviction, &Result::eviction)->hits.blocks;
      };
      results.push_back(
          {family, number, share, capacity, unique, hits(kvc::Lru::name), hits(default_name), hits("belady")});
    }
  }
  return results;
}

void print(std::ostream& out, const std::vector<FamilyResult>& results) {
  struct Gap {
    double sum = 0;
    int count = 0;
  };
  std::map<Family, std::map<double, Gap>> gaps;
  out << "workload          different  capacity       lru   default    belady   of lru      gap\n";
  for (const FamilyResult& r : results) {
    const auto cell = [](const std::string& text, std::size_t width) {
      return std::string(width - std::min(width, text.size()), ' ') + text;
    };
    const std::string workload = std::string(name(r.family)) + ":" + std::to_string(r.seed);
    out << workload << std::string(16 - std::min<std::size_t>(16, workload.size()), ' ');
    for (const Index number : {r.unique, r.capacity, r.lru, r.default_policy, r.belady}) {
      out << cell(std::to_string(number), number == r.unique ? 11 : 10);
    }
    out << cell(fixed(percent(r), 2, " %"), 9);
    if (r.belady > r.lru) {
      const double gap = static_cast<double>(r.default_policy - r.lru) / static_cast<double>(r.belady - r.lru);
      out << cell(fixed(gap, 3, ""), 9);
      gaps[r.family][r.share].sum += gap;
      ++gaps[r.family][r.share].count;
    }
    out << '\n';
  }
  out << "\nmean share of the gap recovered, at";
  for (const double share : family_shares) {
    out << ' ' << fixed(100 * share, 1, " %");
  }
  out << " of the different blocks\n";
  for (const auto& [family, by_share] : gaps) {
    out << name(family) << std::string(12 - name(family).size(), ' ');
    for (const double share : family_shares) {
      const auto found = by_share.find(share);
      out << "  " << (found == by_share.end() ? "-" : fixed(found->second.sum / found->second.count, 3, ""));
    }
    out << '\n';
  }
  const std::vector<double> all = percents(results);
  out << "\nhits of the default against lru's, quantiles:";
  for (const double quantile : {0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0}) {
    const auto at = static_cast<std::size_t>(quantile * static_cast<double>(all.size() - 1));
    out << "  " << fixed(100 * quantile, 0, "") << ": " << fixed(all[at], 2, " %");
  }
  out << '\n';
}

void plot(const std::string& path, const std::vector<FamilyResult>& results) {
  std::ostringstream out;
  out << "set terminal svg size 960,480 font 'sans-serif,14' noenhanced background rgb 'white'\n"
      << "set output " << kvc_bench::quoted(path) << "\n"
      << "set xlabel 'generated workloads and capacities, in order (%)'\n"
      << "set ylabel 'hits of the default against lru (%)'\n"
      << "set yrange [-5:50]\n"
      << "set grid lc rgb '#E0E0E0' lt 1\nset border 3\nset tics nomirror\nunset key\n"
      << "$gains << END\n";
  const std::vector<double> all = percents(results);
  for (std::size_t i = 0; i < all.size(); ++i) {
    out << 100 * static_cast<double>(i) / static_cast<double>(all.size()) << ' ' << all[i] << '\n';
  }
  out << "END\nplot 0 lc rgb '#A0A0A0', $gains with lines lw 2 lc rgb '#0072B2'\n";
  kvc_bench::run_gnuplot(out.str(), "--plot");
}

}  // namespace replay
