// Prefix matching and leaf-first LRU on real traffic: the counts of hits that an independent simulation of the same
// trace gives.
#include <fstream>
#include <nlohmann/json.hpp>

#include "catch.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "test_data.hpp"

namespace {
using namespace kvc;

/// The trace names blocks by ids that stand for whole prefixes: here an id is a token, and a block holds one.
Index hits_of_trace(const std::string& path, Index capacity) {
  PrefixShared<Lru> policy({.blocks = capacity, .block_tokens = 1});
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::vector<Token> ids = nlohmann::json::parse(line).at("hash_ids").get<std::vector<Token>>();
    const std::size_t count = ids.size();
    ids.push_back(-1);  // the token that a match leaves over; it is not computed
    const Opened opened = *policy.try_open(ids);
    const auto rest = std::span(ids).subspan(static_cast<std::size_t>(opened.cached),
                                             count - static_cast<std::size_t>(opened.cached));
    REQUIRE(policy.try_extend(opened.seq, static_cast<Pos>(rest.size()), rest));
    policy.commit(opened.seq);
    policy.close(opened.seq);
  }
  policy.verify();
  return policy.stats().hit_tokens;
}
}  // namespace

TEST_CASE("Leaf-first LRU finds on the mooncake trace what an independent simulation finds", "[golden][eviction]") {
  const std::string path = kvc_test::data_file("mooncake/conversation_trace.jsonl");
  const auto [capacity, hits] = GENERATE(table<Index, Index>(
      {{1'000, 12'847}, {5'000, 32'260}, {10'000, 61'046}, {30'000, 93'978}, {50'000, 102'290}, {200'000, 105'710}}));
  CAPTURE(capacity);
  REQUIRE(hits_of_trace(path, capacity) == hits);
}
