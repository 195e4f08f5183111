// The engine on ggml: several sequences in one pass, prefixes, errors.

#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "gemma.hpp"
#include "kvc/core/error.hpp"
#include "temp_files.hpp"

using kvc_test::Chunk;
using kvc_test::EngineRun;
using kvc_test::Golden;
using kvc_test::golden;
using kvc_test::most_likely;
using kvc_test::Token;
using kvc_test::Tokens;
using kvc_test::Wanted;

namespace {

/// The 48 tokens that the engine gives for a prompt alone.
Tokens alone(const Golden& golden) {
  EngineRun run({.max_tokens = 1000});
  return run.continue_greedily(golden.prompt_tokens, 48);
}

/// The `count` greedy tokens that follow `next`.
Tokens go_on(EngineRun& run, kvc::SeqId seq, Token next, std::size_t count) {
  Tokens tokens;
  while (tokens.size() < count) {
    next = most_likely(run.compute(seq, std::span(&next, 1)).row(0));
    tokens.push_back(next);
  }
  return tokens;
}

}  // namespace

TEST_CASE("sequences that are decoded together give the tokens that each gives alone", "[gguf]") {
  kvc_test::gemma_file();
  const Golden window = golden("window");
  const Golden french = golden("french");
  const Tokens first_alone = alone(window);
  const Tokens second_alone = alone(french);
  for (const char* policy : {"contiguous", "paged", "prefix-shared"}) {
    CAPTURE(policy);
    EngineRun run({.policy = policy, .sequences = 2, .max_tokens = 1000}, 2);
    const kvc::SeqId first = run.cache->open(window.prompt_tokens).seq;
    Tokens of_first = {most_likely(run.compute(first, window.prompt_tokens, 512).row(0))};
    // The second one begins when the first has ten tokens: its prompt goes with the eleventh in one pass.
    while (of_first.size() < 10) {
      of_first.push_back(most_likely(run.compute(first, std::span(&of_first.back(), 1)).row(0)));
    }
    const kvc::SeqId second = run.cache->open(french.prompt_tokens).seq;
    Tokens of_second;
    while (of_first.size() < 48 || of_second.size() < 48) {
      std::vector<Chunk> chunks;
      if (of_first.size() < 48) {
        chunks.push_back({first, std::span(&of_first.back(), 1)});
      }
      if (of_second.empty()) {
        chunks.push_back({second, french.prompt_tokens});
      } else if (of_second.size() < 48) {
        chunks.push_back({second, std::span(&of_second.back(), 1)});
      }
      const ggml_engine::Logits logits = run.engine.pass(chunks, Wanted::last);
      REQUIRE(logits.rows() == std::ssize(chunks));
      kvc::Index row = 0;
      for (const Chunk& chunk : chunks) {
        (chunk.seq == first ? of_first : of_second).push_back(most_likely(logits.row(row++)));
      }
    }
    REQUIRE(of_first == first_alone);
    REQUIRE(of_second == second_alone);
  }
}

TEST_CASE("a prompt whose beginning is in the cache gives the same tokens", "[gguf]") {
  kvc_test::gemma_file();
  const Golden window = golden("window");
  const std::span<const Token> beginning = std::span(window.prompt_tokens).first(640);
  const std::span<const Token> rest = std::span(window.prompt_tokens).subspan(640);
  // The same passes in both caches: ggml's products depend on them.
  EngineRun other({.policy = "paged", .max_tokens = 1000});
  const kvc::SeqId seq = other.cache->open({}).seq;
  (void)other.compute(seq, beginning, 512);
  const Tokens expected = go_on(other, seq, most_likely(other.compute(seq, rest).row(0)), 47);

  EngineRun run({.policy = "prefix-shared", .sequences = 2, .max_tokens = 1000});
  (void)run.continue_greedily({beginning.begin(), beginning.end()}, 1, 512);
  REQUIRE(run.cache->stats().hit_tokens == 0);
  const Tokens tokens = run.continue_greedily(window.prompt_tokens, 48, 512);
  REQUIRE(run.cache->stats().hit_tokens == 640);
  REQUIRE(Tokens(tokens.begin() + 1, tokens.end()) == expected);

  (void)run.continue_greedily(window.prompt_tokens, 1, 512);
  const kvc::Index found = run.cache->stats().hit_tokens - 640;
  CAPTURE(found);
  REQUIRE(found > 600);  // of 766, in all layers: those with a window of 512 have dropped rows
  REQUIRE(run.cache->stats().sequences == 0);
}

TEST_CASE("a snapshot takes a sequence and its prefixes to another cache", "[gguf]") {
  kvc_test::gemma_file();
  const Golden window = golden("window");
  const kvc_test::TempFolder folder;
  const std::string file = folder.file("cache.kvc");
  EngineRun run({.policy = "prefix-shared", .element = "bf16", .sequences = 2, .max_tokens = 1000}, 2);
  const kvc::SeqId seq = run.cache->open(window.prompt_tokens).seq;
  const Token first = most_likely(run.compute(seq, window.prompt_tokens, 512).row(0));
  run.cache->save(file);
  const Tokens expected = go_on(run, seq, first, 10);

  EngineRun other(
      {.policy = "prefix-shared", .element = "bf16", .block_tokens = 64, .sequences = 2, .max_tokens = 1000}, 2);
  const std::vector<kvc::SeqId> loaded = other.cache->load(file);
  REQUIRE(loaded.size() == 1);
  REQUIRE(other.cache->length(loaded[0]) == std::ssize(window.prompt_tokens));
  REQUIRE(go_on(other, loaded[0], first, 10) == expected);
  // Layers with a window have what the end of the text needs. So a prompt that goes on from there is found, and the
  // original prompt is not: its end needs rows that had been dropped.
  Tokens text = window.prompt_tokens;
  text.push_back(first);
  text.insert(text.end(), expected.begin(), expected.end());
  const kvc::Pos found = other.cache->open(text).cached;
  CAPTURE(found);
  REQUIRE(found >= std::ssize(window.prompt_tokens));

  EngineRun another({.policy = "prefix-shared", .element = "f32", .max_tokens = 1000});
  REQUIRE_THROWS_AS(another.cache->load(file), kvc::FormatError);
  REQUIRE(another.cache->stats().blocks_referenced == 0);
}

TEST_CASE("a pass gives the logits of the rows that are wanted", "[gguf]") {
  kvc_test::gemma_file();
  const Golden short_one = golden("short");
  EngineRun run({.sequences = 3, .max_tokens = 20});
  const auto pass = [&](Wanted wanted) {
    const Chunk chunk{run.cache->open({}).seq, short_one.prompt_tokens};
    return run.engine.pass(std::span(&chunk, 1), wanted);
  };
  const ggml_engine::Logits all = pass(Wanted::all);
  REQUIRE(all.rows() == std::ssize(short_one.prompt_tokens));
  REQUIRE(most_likely(all.row(all.rows() - 1)) == short_one.tokens[0]);
  const std::vector<float> last_of_all(all.row(all.rows() - 1).begin(), all.row(all.rows() - 1).end());
  REQUIRE(pass(Wanted::none).rows() == 0);
  const ggml_engine::Logits last = pass(Wanted::last);
  REQUIRE(last.rows() == 1);
  for (std::size_t token = 0; token < last.row(0).size(); token += 1000) {
    CAPTURE(token);
    REQUIRE(last_of_all[token] == Catch::Approx(last.row(0)[token]).margin(0.5));
  }
}

TEST_CASE("a pass that fails changes nothing", "[gguf]") {
  kvc_test::gemma_file();
  const Golden short_one = golden("short");
  EngineRun run({.block_tokens = 16, .sequences = 1, .max_tokens = 64});
  const kvc::SeqId seq = run.cache->open(short_one.prompt_tokens).seq;
  const auto pass = [&](const Tokens& tokens) {
    const Chunk chunk{seq, tokens};
    return run.engine.pass(std::span(&chunk, 1), Wanted::last);
  };
  REQUIRE_THROWS_AS(pass({}), std::invalid_argument);
  REQUIRE_THROWS_WITH(pass({1, 262144}), kvc_test::contains("262144"));
  REQUIRE_THROWS_AS(run.engine.pass({}, Wanted::last), std::invalid_argument);
  REQUIRE_THROWS_AS(pass(Tokens(4000, 2)), kvc::CapacityError);
  REQUIRE(run.cache->length(seq) == 0);
  REQUIRE(run.cache->stats().blocks_referenced == 0);
  REQUIRE(most_likely(pass(short_one.prompt_tokens).row(0)) == short_one.tokens[0]);
}

TEST_CASE("the engine computes with every element type", "[gguf]") {
  kvc_test::gemma_file();
  const Golden short_one = golden("short");
  for (const char* element : {"f16", "bf16", "int8", "fp8", "int4"}) {
    CAPTURE(element);
    EngineRun run({.element = element, .max_tokens = 64});
    // The first token has a lead of 0.69 in log-probability over the next.
    REQUIRE(run.continue_greedily(short_one.prompt_tokens, 1) == Tokens{short_one.tokens[0]});
  }
  REQUIRE_THROWS_WITH(ggml_engine::make_cache(kvc_test::gemma(), {.element = "f8", .max_tokens = 64}),
                      kvc_test::contains("f8") && kvc_test::contains("int4"));
  REQUIRE_THROWS_WITH(ggml_engine::make_cache(kvc_test::gemma(), {.policy = "lifo", .max_tokens = 64}),
                      kvc_test::contains("lifo") && kvc_test::contains("paged"));
}
