// Prefill and decode engines of examples/applications/disaggregated: their outputs, whatever happens to them.
#include <map>
#include <vector>

#include "engines/world.hpp"
#include "kvc/attention/extern.hpp"  // the kernels are compiled once, for all tests
#include "kvc/llama/decoder.hpp"
#include "run.hpp"

namespace {
using namespace kvc_test;

/// Runs with `fault` at each moment of a run without it. Returns how often the fault changed the run.
template <class F, class Check>
void at_each_moment(const Sizes& sizes, const std::vector<Request>& requests, F&& fault, Check&& check) {
  World plain(sizes, requests);
  plain.run();
  plain.check_all_done();
  for (int moment = 0; moment < plain.ticks(); ++moment) {
    INFO("at moment " << moment << " of " << plain.ticks());
    World world(sizes, requests);
    world.at_tick = [&](int tick) {
      if (tick == moment) {
        fault(world);
      }
    };
    world.run();
    check(world);
  }
}

int attempts(const World& world) {
  int sum = 0;
  for (const RequestRecord& r : world.record().requests) {
    sum += static_cast<int>(r.attempt.number);
  }
  return sum;
}
int in_state(const World& world, State state) {
  int sum = 0;
  for (const RequestRecord& r : world.record().requests) {
    sum += r.state == state ? 1 : 0;
  }
  return sum;
}
}  // namespace

TEST_CASE("The decoder reports each layer as soon as its rows are written, and no other", "[engines]") {
  const kvc::llama::Model& model = model_of_engines();
  disaggregated::Cache cache(model.config.cache_shape(), {.blocks = 8, .block_tokens = 4});
  const std::vector<Token> prompt = random_tokens(10, model.config.vocab_size, 1);
  const kvc::SeqId seq = cache.open();
  auto step = cache.extend(seq, prompt);
  const auto rows_of = [&](kvc::Index layer) {
    kvc::llama::Matrix k(10, 12);
    kvc::llama::Matrix v(10, 12);
    cache.gather(layer, seq, {0, 10}, k, v);
    k += v;
    return k;
  };
  std::vector<kvc::llama::Matrix> reported;
  const kvc::llama::Matrix empty = rows_of(1);
  kvc::llama::dec_kv(model, cache, step, prompt, kvc::Sequential{}, [&](kvc::Index layer) {
    REQUIRE(layer == static_cast<kvc::Index>(reported.size()));
    if (layer == 0) {
      REQUIRE(rows_of(1) == empty);  // the next one is not begun
    }
    reported.push_back(rows_of(layer));
  });
  REQUIRE(reported.size() == 2);
  REQUIRE(reported[0] == rows_of(0));
  REQUIRE(reported[1] == rows_of(1));
  REQUIRE(reported[0] != reported[1]);
}

TEST_CASE("Any number of engines computes the outputs of one engine", "[engines]") {
  for (const auto& [prefill, decode] : {std::pair(1, 1), std::pair(1, 3), std::pair(2, 1), std::pair(3, 2)}) {
    INFO(prefill << " prefill engines, " << decode << " decode engines");
    World world({.prefill = prefill, .decode = decode}, some_requests(12));
    world.run();
    world.check_all_done();
    REQUIRE(attempts(world) == 0);
    std::map<Peer, int> by_engine;
    for (const RequestRecord& r : world.record().requests) {
      ++by_engine[r.prefill];
      ++by_engine[r.decode];
      REQUIRE(r.handover.bytes == static_cast<std::uint64_t>(r.prompt_tokens - r.handover.kept) * 2 * 2 * 12 * 4);
    }
    REQUIRE(by_engine.size() == static_cast<std::size_t>(prefill + decode));  // each one has work
  }
}

TEST_CASE("Engines serve a model with windows, and send the rows that these leave", "[engines]") {
  for (const auto& [prefill, decode] : {std::pair(1, 2), std::pair(2, 3)}) {
    INFO(prefill << " prefill engines, " << decode << " decode engines");
    World world({.prefill = prefill, .decode = decode, .model = &model_with_window()}, some_requests(12, 6, 3));
    world.run();
    world.check_all_done();
    REQUIRE(attempts(world) == 0);
    constexpr std::uint64_t row_bytes = 2 * 12 * 4;  // of a position in one layer
    for (const RequestRecord& r : world.record().requests) {
      const auto positions = static_cast<std::uint64_t>(r.prompt_tokens);
      REQUIRE(r.handover.bytes <= (positions + std::min<std::uint64_t>(positions, 6 + 8)) * row_bytes);
      if (r.handover.kept == 0) {
        REQUIRE(r.handover.bytes >= (positions + std::min<std::uint64_t>(positions, 6)) * row_bytes);
      }
    }
  }
  // And through faults: a decode engine dies in the middle.
  World world({.decode = 3, .model = &model_with_window()}, some_requests(8));
  world.at_tick = [&](int tick) {
    if (tick == 40) {
      world.kill(1);
    }
  };
  world.run();
  world.check_all_done();
}

TEST_CASE("Rows of a prefix that a decode engine has are not sent to it again", "[engines]") {
  World world({}, some_requests(12, 6, 24));
  world.run();
  world.check_all_done();
  std::map<Peer, int> seen;
  for (const RequestRecord& r : world.record().requests) {
    REQUIRE((r.handover.kept >= 24 || seen[r.decode] < 2));  // at most two are in flight at first
    ++seen[r.decode];
  }
}

TEST_CASE("A decode engine dies at any moment: the others finish all requests", "[engines]") {
  int again = 0;
  at_each_moment(
      {}, some_requests(8), [](World& world) { world.kill(1); },
      [&](World& world) {
        world.check_all_done();
        REQUIRE((world.record().engines[1].lost || world.record().engines[1].stopped));
        again += attempts(world);
      });
  REQUIRE(again > 0);  // at some moments it was decoding
}

TEST_CASE("A prefill engine stalls at any moment: the others finish all requests", "[engines]") {
  int again = 0;
  at_each_moment(
      {.prefill = 2}, some_requests(8), [](World& world) { world.stall(1); },
      [&](World& world) {
        world.check_all_done();
        again += attempts(world);
      });
  REQUIRE(again > 0);
}

TEST_CASE("A decode engine stalls at any moment: the others finish all requests, and it frees its blocks",
          "[engines]") {
  int again = 0;
  int sent_on = 0;
  at_each_moment(
      {}, some_requests(8), [](World& world) { world.stall(2); },
      [&](World& world) {
        world.check_all_done();
        again += attempts(world);
        if (!world.record().engines[2].stopped) {
          REQUIRE(world.record().engines[2].lost);
          for (int i = 0; i < 3; ++i) {  // it continues
            world.decode(1).step();
          }
          REQUIRE(world.decode(1).done());
          REQUIRE(disaggregated::is_clean(world.decode(1).cache()));
          ++sent_on;
        }
      });
  REQUIRE(again > 0);
  REQUIRE(sent_on > 0);
}

TEST_CASE("When no decode engine is left, requests fail and say so", "[engines]") {
  at_each_moment(
      {}, some_requests(5),
      [](World& world) {
        world.kill(1);
        world.kill(2);
      },
      [&](World& world) {
        world.check();
        for (const RequestRecord& r : world.record().requests) {
          REQUIRE((r.state == State::done || r.failure == "no decode engine is left"));
        }
      });
}

TEST_CASE("Requests wait for full decode pools, and are served", "[engines]") {
  // Room for one sequence of the longest, and a prefill pool for two.
  World world({.prefill_blocks = 24, .decode_blocks = 14}, some_requests(12));
  world.run();
  world.check_all_done();
  int refusals = 0;
  for (const RequestRecord& r : world.record().requests) {
    refusals += r.handover.refusals;
  }
  REQUIRE(refusals > 0);
}

TEST_CASE("Sequences without room for their next token are preempted, and computed again", "[engines]") {
  World world({.decode = 1, .decode_blocks = 17, .reserve_tokens = 0}, some_requests(8, 20));
  world.run();
  world.check_all_done();
  REQUIRE(attempts(world) > 0);
}

TEST_CASE("A request that fits nowhere fails, and the others are served", "[engines]") {
  std::vector<Request> requests = some_requests(6);
  requests.push_back({random_tokens(70, tiny_config().vocab_size, 1), 5});
  const auto serve = [&](const Sizes& sizes) {
    World world(sizes, requests);
    world.run();
    world.check();
    REQUIRE(in_state(world, State::done) == 6);
    REQUIRE(world.record().requests.back().state == State::failed);
    INFO(world.record().requests.back().failure);
    REQUIRE(world.record().requests.back().failure.find("fit") != std::string::npos);
  };
  serve({.decode_blocks = 14});
  serve({.prefill_blocks = 14});
  serve({.decode = 1, .decode_blocks = 18, .reserve_tokens = 0});  // the prompt fits, and its output does not
}

TEST_CASE("A request is cancelled at any moment: the others are served, and its blocks are free", "[engines]") {
  int cancelled = 0;
  at_each_moment(
      {}, some_requests(6), [](World& world) { world.router().cancel(2); },
      [&](World& world) {
        world.check();
        REQUIRE(in_state(world, State::done) + in_state(world, State::cancelled) == 6);
        REQUIRE(in_state(world, State::done) >= 5);
        cancelled += in_state(world, State::cancelled);
      });
  REQUIRE(cancelled > 10);
}

TEST_CASE("A narrow window between engines changes nothing but the time", "[engines]") {
  Sizes sizes;
  sizes.transport.window_messages = 1;
  sizes.transport.window_bytes = 1;
  World world(sizes, some_requests(8));
  world.run();
  world.check_all_done();
}

TEST_CASE("Engines in threads of their own compute the outputs of one engine", "[engines][threads]") {
  disaggregated::RunConfig config;
  config.prefill_engines = 2;
  config.decode_engines = 2;
  config.router.prefill_engines = 2;
  config.prefill.block_tokens = config.decode.block_tokens = 4;
  config.prefill.blocks = config.decode.blocks = 60;
  config.decode.reserve_tokens = 8;
  const std::vector<Request> requests = some_requests(24, 6, 9);
  const disaggregated::RunRecord record = disaggregated::run_in_process(model_of_engines(), requests, config);
  const disaggregated::Alone alone = disaggregated::run_alone(model_of_engines(), requests, config.decode);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    INFO("request " << i << ": " << record.requests[i].failure);
    REQUIRE(record.requests[i].output == alone.outputs[i]);
  }
  for (const disaggregated::EngineRecord& engine : record.engines) {
    REQUIRE(engine.figures.clean);
  }
}
