// The program benchmarks/replay, run as a user runs it: its counts on real traces are those of an independent
// simulation.

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "catch.hpp"
#include "kvc/core/types.hpp"
#include "run_program.hpp"
#include "temp_files.hpp"
#include "test_data.hpp"

namespace {

using kvc::Index;

kvc_test::Run replay(const std::string& arguments, const std::string& environment = "") {
  return kvc_test::run_program(KVC_REPLAY, arguments, environment);
}

struct Figures {
  Index capacity, lru, fifo, belady;
};

/// Replays a trace at all capacities at once, and compares each count.
void check_counts(const std::string& trace, Index blocks, Index unique, const std::vector<Figures>& figures) {
  const std::string path = kvc_test::data_file(trace);
  const kvc_test::TempFolder folder;
  std::string capacities;
  for (const Figures& f : figures) {
    capacities += (capacities.empty() ? "" : ",") + std::to_string(f.capacity);
  }
  const kvc_test::Run run = replay("--trace '" + path + "' --capacity " + capacities + " --eviction lru --json '" +
                                   folder.file("r.json") + "' 2>&1");
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  const auto report = nlohmann::json::parse(folder.read("r.json"));
  REQUIRE(report.at("trace") == path);
  REQUIRE(report.at("blocks") == blocks);
  REQUIRE(report.at("unique_blocks") == unique);
  REQUIRE(report.at("skipped_lines") == 0);
  for (const Figures& f : figures) {
    CAPTURE(f.capacity);
    std::map<std::string, nlohmann::json> results;
    for (const auto& result : report.at("results")) {
      if (result.at("capacity") == f.capacity) {
        results[result.at("eviction")] = result;
      }
    }
    REQUIRE(results.size() == 5);
    const auto hits = [&](const char* name) { return results.at(name).at("hit_blocks").get<Index>(); };
    REQUIRE(hits("lru") == f.lru);
    REQUIRE(hits("fifo") == f.fifo);
    REQUIRE(hits("belady") == f.belady);
    REQUIRE(hits("unbounded") == blocks - unique);
    REQUIRE(hits("belady-held") <= f.belady);
    REQUIRE(hits("belady-held") >= f.lru);
    REQUIRE(results.at("lru").at("accounting") == "chain");
    REQUIRE(results.at("belady-held").at("held_gap_recovered") == 1.0);
    REQUIRE(results.at("belady").at("gap_recovered") == 1.0);
    REQUIRE(results.at("lru").at("gap_recovered") == 0.0);
    REQUIRE(results.at("unbounded").at("gap_recovered").is_null());
    // Each block that came in and did not stay was evicted; at the end each cache is full.
    for (const char* name : {"lru", "fifo", "belady", "belady-held"}) {
      REQUIRE(results.at(name).at("evictions") == blocks - hits(name) - f.capacity);
      REQUIRE(results.at(name).at("refused") == 0);
    }
    REQUIRE(results.at("unbounded").at("evictions") == 0);
  }
}

const std::string line_a = R"({"timestamp": 0, "input_length": 1100, "output_length": 1, "hash_ids": [0, 1, 2]})";
const std::string line_b = R"({"timestamp": 5, "input_length": 1030, "output_length": 1, "hash_ids": [0, 1, 3]})";

}  // namespace

TEST_CASE("replay and an independent simulation count the same on the mooncake trace", "[golden][replay]") {
  check_counts("mooncake/conversation_trace.jsonl", 288'500, 182'790,
               {{1'000, 12'847, 12'559, 54'994},
                {10'000, 61'046, 53'812, 105'710},
                {30'000, 93'978, 87'152, 105'710},
                {50'000, 102'290, 98'096, 105'710}});
}

namespace {
/// Hits of the default beside lru's, by capacity, in thousandths of lru's, and of the gap to belady.
struct Beside {
  double of_lru, of_gap;
};
std::map<Index, Beside> default_beside_lru(const std::string& trace, const std::string& capacities,
                                           const std::string& options) {
  const std::string path = kvc_test::data_file(trace);
  const kvc_test::TempFolder folder;
  const kvc_test::Run run = replay("--trace '" + path + "' --capacity " + capacities + " --eviction default --json '" +
                                   folder.file("r.json") + "' " + options + " 2>&1");
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  const auto report = nlohmann::json::parse(folder.read("r.json"));
  std::map<Index, Beside> beside;
  for (const auto& result : report.at("results")) {
    if (result.at("eviction") == report.at("default")) {
      beside[result.at("capacity")] = {result.at("hit_blocks").get<double>(), result.at("gap_recovered").get<double>()};
    }
  }
  for (const auto& result : report.at("results")) {
    if (result.at("eviction") == "lru") {
      beside.at(result.at("capacity")).of_lru *= 1000 / result.at("hit_blocks").get<double>();
    }
  }
  return beside;
}
}  // namespace

TEST_CASE("The default eviction finds more than lru on the mooncake trace, and no less on the weka trace",
          "[golden][replay]") {
  auto mooncake = default_beside_lru("mooncake/conversation_trace.jsonl", "1000,5000,10000,20000,30000,50000", "");
  REQUIRE(mooncake.size() == 6);
  for (const auto& [capacity, beside] : mooncake) {
    CAPTURE(capacity);
    REQUIRE(beside.of_lru >= 999);
  }
  REQUIRE(mooncake.at(10'000).of_gap >= 0.08);
  REQUIRE(mooncake.at(20'000).of_gap >= 0.15);
  for (const auto& [capacity, beside] :
       default_beside_lru("weka/weka_merged_test.rle.jsonl", "5000,10000,20000,30000,50000", "")) {
    CAPTURE(capacity);
    REQUIRE(beside.of_lru >= 999);
  }
}

namespace {
/// Hit blocks of lru by capacity, with what the layers of a model keep.
std::map<Index, Index> lru_hits(const std::string& path, const std::string& capacities, const std::string& model) {
  const kvc_test::TempFolder folder;
  const kvc_test::Run run = replay("--trace '" + path + "' --capacity " + capacities + " --eviction lru --json '" +
                                   folder.file("r.json") + "' --model " + model + " 2>&1");
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  REQUIRE_THAT(run.output, kvc_test::contains("of the layer groups of " + model));
  const auto report = nlohmann::json::parse(folder.read("r.json"));
  REQUIRE(report.at("model") == model);
  std::map<Index, Index> hits;
  for (const auto& result : report.at("results")) {
    REQUIRE(result.at("gap_recovered").is_null());
    REQUIRE(result.at("refused") == 0);
    if (result.at("eviction") == "lru") {
      hits[result.at("capacity")] = result.at("hit_blocks");
    }
  }
  return hits;
}

/// Blocks that a cache without end finds of a model with recurrent layers: as far as there are rows, and there behind
/// the last block that has states. A prompt leaves some behind its end and its last whole block, and where it found
/// rows and no states.
Index found_with_states(const std::string& path) {
  std::set<int> rows, states;
  Index found = 0;
  std::ifstream in(path);
  for (std::string text; std::getline(in, text);) {
    const auto line = nlohmann::json::parse(text);
    const std::vector<int> blocks = line.at("hash_ids");
    const std::size_t whole = line.at("input_length").get<std::size_t>() / 512;
    std::size_t with_rows = 0;
    while (with_rows < blocks.size() && rows.contains(blocks[with_rows])) {
      ++with_rows;
    }
    std::size_t hit = with_rows;
    while (hit > 0 && !states.contains(blocks[hit - 1])) {
      --hit;
    }
    found += static_cast<Index>(hit);
    states.insert(blocks.back());
    if (hit < whole) {
      states.insert(blocks[whole - 1]);
    }
    if (hit < with_rows) {
      states.insert(blocks[with_rows - 1]);
    }
    rows.insert(blocks.begin(), blocks.end());
  }
  return found;
}
}  // namespace

TEST_CASE("replay holds what the layers of a model keep", "[golden][replay]") {
  const std::string path = kvc_test::data_file("mooncake/conversation_trace.jsonl");
  REQUIRE(lru_hits(path, "1000,10000", "llama-3-8b") == std::map<Index, Index>{{1'000, 12'847}, {10'000, 61'046}});
  // In the same memory windows leave room for more prefixes.
  REQUIRE(lru_hits(path, "10000", "gemma-3-27b").at(10'000) > 61'046 * 11 / 10);
  // States take room, and a prompt is found where there are some.
  REQUIRE(found_with_states(path) == 101'530);
  for (const char* model : {"qwen3-next-80b", "jamba-52b"}) {
    const auto hits = lru_hits(path, "10000,3000000", model);
    REQUIRE(hits.at(3'000'000) == 101'530);
    REQUIRE(hits.at(10'000) < 61'046);
  }
}

TEST_CASE("replay finds a prompt of a recurrent model behind whole blocks, and where prompts have parted", "[replay]") {
  const kvc_test::TempFolder folder;
  const auto line = [](const std::string& blocks, int tokens) {
    return R"({"timestamp": 0, "input_length": )" + std::to_string(tokens) + R"(, "output_length": 1, "hash_ids": [)" +
           blocks + "]}\n";
  };
  const auto hits = [&](const std::string& lines) {
    return lru_hits(folder.write("t.jsonl", lines), "1000", "jamba-52b").at(1'000);
  };
  const std::string first = line("0, 1, 2", 1100);  // of the last block 76 tokens
  REQUIRE(hits(first + line("0, 1, 2", 1100)) == 3);
  REQUIRE(hits(first + line("0, 1, 3", 1536)) == 2);  // the first prompt goes on
  REQUIRE(hits(first + line("0, 4", 1024)) == 0);     // another one parts from it earlier,
  REQUIRE(hits(first + line("0, 4", 1024) + line("0, 5", 1024)) == 1);
  const kvc_test::Run small = replay("--trace " + folder.file("t.jsonl") + " --capacity 1 --model qwen3-next-80b 2>&1");
  REQUIRE(small.status == 1);
  REQUIRE_THAT(small.output, kvc_test::contains("--capacity 1 has no room for one block of qwen3-next-80b"));
}

TEST_CASE("The gain of the default holds on shuffled and split traces", "[golden][replay]") {
  for (const char* options : {"--shuffle 1", "--shuffle 2", "--part 1/2", "--part 2/2"}) {
    CAPTURE(options);
    for (const auto& [capacity, beside] :
         default_beside_lru("mooncake/conversation_trace.jsonl", "1000,5000,10000,20000", options)) {
      CAPTURE(capacity);
      REQUIRE(beside.of_gap >= 0.05);
    }
  }
}

TEST_CASE("replay and an independent simulation count the same on the weka trace", "[golden][replay]") {
  check_counts("weka/weka_merged_test.rle.jsonl", 1'471'333, 62'740,
               {{10'000, 1'361'223, 1'324'560, 1'393'088},
                {20'000, 1'401'674, 1'391'833, 1'408'593},
                {50'000, 1'408'438, 1'408'438, 1'408'593}});
}

TEST_CASE("replay finds nothing to share in the azure traces", "[golden][replay]") {
  const std::string path = kvc_test::data_file("azure/AzureLLMInferenceTrace_code.csv");
  const kvc_test::Run run = replay("--trace '" + path + "' --capacity 1000 --json /dev/stdout");
  REQUIRE(run.status == 0);
  REQUIRE_THAT(run.output, kvc_test::contains("nothing can be found"));
  const auto report = nlohmann::json::parse(run.output.substr(run.output.find("\n{")));
  REQUIRE(report.at("requests") == 8'819);
  REQUIRE(report.at("blocks") == report.at("unique_blocks"));
  for (const auto& result : report.at("results")) {
    REQUIRE(result.at("hit_blocks") == 0);
    REQUIRE(result.at("gap_recovered").is_null());
  }
}

TEST_CASE("replay reads a trace of blocks of 1024 tokens as it is", "[golden][replay]") {
  const std::string path = kvc_test::data_file("rtp/chat_1024.jsonl");
  const kvc_test::Run run =
      replay("--trace '" + path + "' --block-tokens 1024 --capacity 1000 --eviction lru --json /dev/stdout");
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  REQUIRE_THAT(run.output, kvc_test::contains("8,332 requests") && kvc_test::contains("45,497 blocks of 1024") &&
                               kvc_test::contains("35,346 of them different") &&
                               kvc_test::contains("Blocks of 1024 tokens; the trace names full blocks only."));
  const auto report = nlohmann::json::parse(run.output.substr(run.output.find("\n{")));
  REQUIRE(report.at("blocks") == 45'497);
  REQUIRE(report.at("unique_blocks") == 35'346);
  REQUIRE(report.at("block_tokens") == 1024);
  const kvc_test::Run without = replay("--trace '" + path + "' --capacity 1000 2>&1");
  REQUIRE(without.status == 1);
  REQUIRE_THAT(without.output, kvc_test::contains("blocks of 1024 tokens would fit: --block-tokens"));
}

TEST_CASE("replay counts the same on a folder of sessions and on the merged trace", "[golden][replay]") {
  const std::string path = kvc_test::data_file("weka/weka_merged_test.rle.jsonl");
  const kvc_test::TempFolder folder;
  // The merged trace is cut into sessions again, as they were published: session k began at k * 120 s.
  std::map<int, nlohmann::json> sessions;
  std::ifstream in(path);
  for (std::string text; std::getline(in, text);) {
    const auto line = nlohmann::json::parse(text);
    const int number = line.at("conv");
    nlohmann::json ids = nlohmann::json::array();
    for (const auto& run : line.at("hash_runs")) {
      for (int i = 0; i < run.at(1); ++i) {
        ids.push_back(run.at(0).get<int>() + i);
      }
    }
    sessions[number]["block_size"] = 64;
    sessions[number]["requests"].push_back({{"t", line.at("timestamp").get<double>() / 1000 - 120.0 * number},
                                            {"in", line.at("input_length")},
                                            {"out", line.at("output_length")},
                                            {"hash_ids", std::move(ids)}});
  }
  REQUIRE(sessions.size() == 24);
  std::filesystem::create_directory(folder.file("sessions"));
  for (const auto& [number, session] : sessions) {
    char name[32];
    std::snprintf(name, sizeof name, "sessions/%02d.json", number);
    REQUIRE(std::filesystem::exists(folder.write(name, session.dump(number % 2 == 0 ? 1 : -1))));
  }
  const kvc_test::Run run = replay("--trace " + folder.file("sessions") + " --capacity 10000 --eviction lru --json " +
                                   folder.file("r.json") + " 2>&1");
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  const auto report = nlohmann::json::parse(folder.read("r.json"));
  REQUIRE(report.at("format") == "session");
  REQUIRE(report.at("requests") == 1'233);
  REQUIRE(report.at("blocks") == 1'471'333);
  REQUIRE(report.at("unique_blocks") == 62'740);
  for (const auto& result : report.at("results")) {
    if (result.at("eviction") == "lru") {
      REQUIRE(result.at("hit_blocks") == 1'361'223);
    }
  }
}

TEST_CASE("replay reads the own format, pipes and gzip members", "[replay]") {
  const kvc_test::TempFolder folder;
  const std::string own = folder.write(
      "own.jsonl", R"({"timestamp": 0, "input_length": 40, "output_length": 0, "prefix": [["hash_ids", 32]]})"
                   "\n"
                   R"({"timestamp": 0.5, "input_length": 33, "output_length": 1, "prefix": [["hash_ids", 32]]})"
                   "\n");
  const kvc_test::Run run = replay("--trace " + own + " --capacity 10 --json /dev/stdout");
  REQUIRE(run.status == 0);
  const auto report = nlohmann::json::parse(run.output.substr(run.output.find("\n{")));
  REQUIRE(report.at("format") == "own");
  REQUIRE(report.at("blocks") == 6);
  REQUIRE(report.at("unique_blocks") == 4);
  const std::string trace = folder.write("t.jsonl", line_a + "\n" + line_b + "\n");
  const std::string piped = "--trace /dev/stdin --capacity 10 2>&1 ";
  REQUIRE_THAT(replay(piped + "< " + trace).output, kvc_test::contains("2 requests"));
  REQUIRE_THAT(replay(piped, "cat " + trace + " |").output, kvc_test::contains("2 requests"));
  REQUIRE_THAT(replay(piped, "gzip -c " + trace + " " + trace + " |").output, kvc_test::contains("4 requests"));
  const kvc_test::Run mixed = replay(piped, "(gzip -c " + trace + "; cat " + trace + ") |");
  REQUIRE(mixed.status == 1);
  REQUIRE_THAT(mixed.output, kvc_test::contains("/dev/stdin: byte ") && kvc_test::contains("neither zeros nor"));
}

TEST_CASE("replay counts hits by blocks and by tokens, and caches the beginning of a prompt that does not fit",
          "[replay]") {
  const kvc_test::TempFolder folder;
  const std::string trace = folder.write("t.jsonl", line_a + "\n" + line_a + "\n" + line_b + "\n");
  const auto lru_at = [&](const char* capacity) {
    const kvc_test::Run run =
        replay("--trace " + trace + " --eviction default --capacity " + capacity + " --json " + folder.file("r.json"));
    REQUIRE(run.status == 0);
    const auto report = nlohmann::json::parse(folder.read("r.json"));
    REQUIRE(report.at("format") == "mooncake");
    REQUIRE(report.at("input_tokens") == 3230);
    for (const auto& result : report.at("results")) {
      if (result.at("eviction") == "lru") {
        return result;
      }
    }
    return nlohmann::json();
  };
  // The second request finds all of its 1100 tokens, the third the 1024 of two full blocks.
  const auto roomy = lru_at("4");
  REQUIRE(roomy.at("hit_blocks") == 5);
  REQUIRE(roomy.at("hit_tokens") == 2124);
  REQUIRE(roomy.at("hit_rate") == Approx(5.0 / 9));
  REQUIRE(roomy.at("hit_rate_tokens") == Approx(2124.0 / 3230));
  REQUIRE(roomy.at("evictions") == 0);
  REQUIRE(roomy.at("refused") == 0);
  REQUIRE(lru_at("3").at("evictions") == 1);
  const auto tight = lru_at("2");
  REQUIRE(tight.at("refused") == 3);
  REQUIRE(tight.at("hit_blocks") == 4);
  REQUIRE(tight.at("hit_tokens") == 2048);
  REQUIRE(tight.at("evictions") == 0);
}

TEST_CASE("replay names bad options and files, and leaves no half-written file", "[replay]") {
  const kvc_test::Run help = replay("--help");  // not within REQUIRE, which would report a skip as a failure
  REQUIRE(help.status == 0);
  const kvc_test::TempFolder folder;
  const std::string trace = folder.write("t.jsonl", line_a + "\n{}\n");
  const std::string good = "--trace " + trace + " --skip-bad --capacity 5 ";
  struct Case {
    std::string arguments;
    int status;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases = {
      {"", 2, {"--trace"}},
      {"--trace x", 2, {"--capacity"}},
      {"--trace x --capacity 0", 2, {"--capacity", "\"0\"", "from 1 to"}},
      {"--trace x --capacity 5,", 2, {"--capacity", "\"\""}},
      {"--trace x --capacity 1e3", 2, {"--capacity", "\"1e3\""}},
      {good + "--eviction lru,lifo", 2, {"--eviction", "\"lifo\"", "lru", "default"}},
      {good + "--model gpt", 2, {"--model", "\"gpt\"", "llama-3-8b", "qwen3-next-80b"}},
      {good + "--format csv", 2, {"--format", "\"csv\"", "mooncake, weka, session, azure, own"}},
      {good + "--block-tokens 0", 2, {"--block-tokens", "\"0\"", "from 1 to 16777216"}},
      {good + "--block-tokens 16k", 2, {"--block-tokens", "\"16k\""}},
      {good + "--time-unit h", 2, {"--time-unit", "\"h\"", "s, ms, us"}},
      {good + "--session-gap -1", 2, {"--session-gap", "\"-1\"", "from 0"}},
      {"--trace /nowhere --capacity 5 --json " + folder.file("r.json"), 1, {"/nowhere"}},
      {"--capacity 5 --trace " + trace, 1, {"t.jsonl:2: \"timestamp\": is missing"}},
      {good + "--json /nowhere/r.json", 1, {"--json", "/nowhere/r.json"}},
      {good + "--json \"\"", 2, {"--json", "\"\"", "the name of a file"}},
      {good + "--plot \"\"", 2, {"--plot", "\"\"", "the name of a file"}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.arguments);
    const kvc_test::Run run = replay(c.arguments + " 2>&1");
    REQUIRE(run.status == c.status);
    for (const std::string& word : c.words) {
      REQUIRE_THAT(run.output, kvc_test::contains(word));
    }
  }
  REQUIRE(folder.files().size() == 1);  // the trace

  const kvc_test::Run skipping = replay(good + "2>&1");
  REQUIRE(skipping.status == 0);
  REQUIRE_THAT(skipping.output, kvc_test::contains("1 bad line was skipped") && kvc_test::contains("is missing"));
}

TEST_CASE("replay --workload replays a generated workload as a trace", "[replay]") {
  const kvc_test::Run run = replay("--workload agents --blocks 20000 --seed 2 --capacity 400 --eviction default 2>&1");
  INFO(run.output);
  REQUIRE(run.status == 0);
  REQUIRE_THAT(run.output, kvc_test::contains("agents, seed 2"));
  REQUIRE_THAT(run.output, kvc_test::contains("belady-held"));
  REQUIRE(replay("--workload agents --blocks 20000 --seed 3 --capacity 400 --eviction default").output != run.output);
  for (const char* bad : {"--workload none --capacity 5", "--workload chat", "--workload chat --trace x --capacity 5",
                          "--blocks 1000 --capacity 5"}) {
    CAPTURE(bad);
    REQUIRE(replay(std::string(bad) + " 2>&1").status == 2);
  }
}

TEST_CASE("replay --workloads compares the default with lru on generated traffic", "[replay]") {
  const kvc_test::Run run = replay("--workloads 2 --seed 3 2>&1");
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  std::istringstream lines(run.output);
  std::string line, name;
  std::getline(lines, line);  // the names of the columns
  std::map<std::string, Index> capacity;
  std::map<std::string, std::string> gaps;
  for (int row = 0; row < 8; ++row) {
    Index unique = 0, blocks = 0, lru = 0, found = 0, belady = 0;
    std::string percent, sign, gap;
    std::getline(lines, line);
    REQUIRE(std::istringstream(line) >> name >> unique >> blocks >> lru >> found >> belady >> percent >> sign >> gap);
    CAPTURE(line);
    REQUIRE(name == (row < 4 ? "chat:3" : "agents:3"));
    REQUIRE(blocks > capacity[name]);  // 0.5, 2, 10 and 40 % of the different blocks
    capacity[name] = blocks;
    REQUIRE(std::max(lru, found) <= belady);
    REQUIRE(lru > 0);
    gaps[name] += "  " + gap;
  }
  // A mean over one workload is its own share of the gap.
  REQUIRE_THAT(run.output, kvc_test::contains("\nchat        " + gaps.at("chat:3") + "\n"));
  REQUIRE_THAT(run.output, kvc_test::contains("\nagents      " + gaps.at("agents:3") + "\n"));
  REQUIRE_THAT(run.output, kvc_test::contains("quantiles:"));
  REQUIRE(replay("--workloads 2 --seed 4").output != run.output);

  for (const char* bad : {"--workloads 0", "--workloads 1 --capacity 5", "--workloads 1 --trace x", "--seed 1"}) {
    CAPTURE(bad);
    const kvc_test::Run refused = replay(std::string(bad) + " 2>&1");
    REQUIRE(refused.status == 2);
    REQUIRE_THAT(refused.output, kvc_test::contains(bad[2] == 's' ? "--seed" : "--workloads"));
  }
}

TEST_CASE("replay --tiers finds in slower tiers what the pool has evicted", "[replay]") {
  if (replay("--help").output.find("--tiers") == std::string::npos) {
    KVC_SKIP("replay was built without libsodium");
  }
  const kvc_test::TempFolder folder;
  const std::string a = R"({"timestamp": 0, "input_length": 2048, "output_length": 1, "hash_ids": [1, 2, 3, 4]})";
  const std::string b = R"({"timestamp": 1, "input_length": 2048, "output_length": 1, "hash_ids": [5, 6, 7, 8]})";
  std::string lines;
  for (int turn = 0; turn < 3; ++turn) {
    lines.append(a).append("\n").append(b).append("\n");
  }
  const std::string arguments = "--trace '" + folder.write("t.jsonl", lines) + "' --eviction lru --capacity 5 --tiers ";
  const auto hits = [&](const std::string& tiers) {
    const kvc_test::Run run = replay(arguments + tiers + " --json '" + folder.file("r.json") + "' 2>&1");
    CAPTURE(run.output);
    REQUIRE(run.status == 0);
    const auto report = nlohmann::json::parse(folder.read("r.json")).at("tiers");
    REQUIRE(report.size() == 2);
    REQUIRE(report[1].at("eviction") == "belady-held");
    std::vector<Index> all = {report[0].at("pool_hit_blocks").get<Index>()};
    for (const auto& tier : report[0].at("tiers")) {
      all.push_back(tier.at("hit_blocks").get<Index>());
    }
    return all;
  };
  // The pool has one block of the other prompt left; eight blocks have room for both.
  REQUIRE(hits("host:8,disk:20") == std::vector<Index>{4, 12, 0});
  REQUIRE(hits("host:1,disk:8") == std::vector<Index>{4, 0, 12});
  REQUIRE(hits("host:8:selective") == std::vector<Index>{4, 0});
  for (const char* bad : {"host", ":5", "host:0", "host:5:never", "a:1,b:1,c:1,d:1"}) {
    CAPTURE(bad);
    const kvc_test::Run refused = replay(arguments + bad + " 2>&1");
    REQUIRE(refused.status == 2);
    REQUIRE_THAT(refused.output, kvc_test::contains("--tiers"));
  }
}

TEST_CASE("replay draws its plot with gnuplot, or reports that it is missing", "[replay]") {
  const kvc_test::TempFolder folder;
  const std::string trace = folder.write("it's.jsonl", line_a + "\n" + line_b + "\n");
  const std::string arguments =
      "--trace \"" + trace + "\" --capacity 2,30,500 --plot \"" + folder.file("it's.svg") + "\" 2>&1";
  const kvc_test::Run absent = replay(arguments, "PATH=/nowhere");
  REQUIRE(absent.status == 1);
  REQUIRE_THAT(absent.output, kvc_test::contains("--plot") && kvc_test::contains("gnuplot-nox"));
  REQUIRE(folder.files().size() == 1);
  if (std::system("command -v gnuplot >/dev/null") != 0) {
    KVC_SKIP("gnuplot is not installed (Debian: gnuplot-nox)");
  }
  const kvc_test::Run run = replay(arguments);
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  const std::string svg = folder.read("it's.svg");
  REQUIRE_THAT(svg, kvc_test::contains("</svg>") && kvc_test::contains("it's.jsonl") && kvc_test::contains("belady"));
  REQUIRE(folder.files().size() == 2);
}

TEST_CASE("replay writes its figures into a FIFO that another program reads", "[replay]") {
  const kvc_test::TempFolder folder;
  const std::string trace = folder.write("t.jsonl", line_a + "\n");
  const std::string fifo = folder.file("figures");
  REQUIRE(mkfifo(fifo.c_str(), 0600) == 0);
  // The time limits are for a program that waits for a second reader.
  const kvc_test::Run run = replay("--trace " + trace + " --capacity 5 --json " + fifo + " >" + folder.file("said") +
                                       " 2>&1 & timeout 60 cat " + fifo,
                                   "timeout 60");
  REQUIRE(run.status == 0);
  REQUIRE(nlohmann::json::parse(run.output).at("input_tokens") == 1100);
  REQUIRE(std::filesystem::is_fifo(fifo));
}
