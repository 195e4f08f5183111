// Writer and Reader with layer groups: layers travel one by one while the next ones are computed. A stream that ends
// early changes nothing.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "any_groups.hpp"
#include "catch.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/snapshot/snapshot.hpp"
#include "random_source.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;
using PrefixGroups = GroupsOf<float, PrefixShared<Lru>, HeadMajor>;
using PagedGroups = GroupsOf<float, Paged, TokenMajor>;
using ContiguousGroups = GroupsOf<float, Contiguous, HeadMajor>;

/// A connection: its length is not known, and there is no way back.
class Connection final : public io::ByteSource {
 public:
  explicit Connection(std::span<const std::byte> bytes) : io::ByteSource("a connection"), inner_(bytes) {}
  std::size_t read(std::span<const io::ByteSpan> spans) override { return inner_.read(spans); }

 private:
  io::MemorySource inner_;
};

/// The layers of a model but those that read the rows of another one, in some order.
std::vector<Index> owners(const LayerGroups& layers, Random& random) {
  std::vector<Index> order;
  for (Index i = 0; i < layers.layers(); ++i) {
    if (layers.is_recurrent(i) || layers.place(i).is_owner) {
      order.push_back(i);
    }
  }
  for (std::size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random.between<std::size_t>(0, i - 1)]);
  }
  return order;
}

struct Stream {
  std::vector<Index> order;
  std::vector<std::byte> bytes;
  std::vector<std::size_t> ends;  // of the contents, and of each layer
  bool has_whole_blocks;          // so that prompts can find them
};

/// Computes a pass of `count` tokens, and saves each layer as soon as it is written. The cache has one sequence.
template <class Groups>
Stream streamed(Groups& from, SeqId seq, const Tokens& tokens, Pos count, Random& random) {
  Stream stream{owners(from.cache.layers(), random), {}, {}, from.finds()};
  const auto done = static_cast<std::size_t>(from.cache.length(seq));
  auto step = from.cache.extend(seq, std::span(tokens).subspan(done, static_cast<std::size_t>(count)));
  const snapshot::SavedSequence saved{
      seq,
      from.finds() ? std::span<const Token>() : std::span(tokens).first(done + static_cast<std::size_t>(count)),
      {}};
  io::MemorySink sink;
  snapshot::Writer writer(from.cache, std::span(&saved, 1), sink, {.cached_prefixes = false, .reserved = true});
  REQUIRE(writer.contents().sequences.size() == 1);
  stream.ends.push_back(sink.bytes().size());
  for (const Index layer : stream.order) {
    REQUIRE_THROWS_WITH(writer.finish(), contains("must be written before finish"));
    from.write(layer, step, tokens);
    writer.layer(layer);
    stream.ends.push_back(sink.bytes().size());
    REQUIRE_THROWS_WITH(writer.layer(layer), contains("one that was not written yet"));
  }
  const Index layers = from.cache.layers().layers();
  for (Index layer = 0; layer < layers; ++layer) {
    if (!from.cache.layers().is_recurrent(layer) && !from.cache.layers().place(layer).is_owner) {
      writer.layer(layer);  // has no rows of its own
    }
  }
  REQUIRE_THROWS_WITH(writer.layer(layers), contains("layer is " + std::to_string(layers)));
  REQUIRE(sink.bytes().size() == stream.ends.back());
  writer.finish();
  from.cache.commit(std::move(step));
  stream.bytes = sink.take();
  return stream;
}

template <class Groups>
void receive(const Stream& stream, const LayerGroups& layers, const typename Groups::Cache::PolicyType::Config& config,
             const Tokens& tokens, Pos length) {
  Groups to(layers, config);
  CAPTURE(to.name());
  const Stats before = to.stats();
  const auto is_unchanged = [&] {
    to.verify();
    return to.stats().blocks_free == before.blocks_free && to.stats().sequences == 0;
  };
  for (std::size_t i = 0; i < stream.ends.size(); ++i) {  // the sender dies in each of the layers
    Connection source(std::span(stream.bytes).first(stream.ends[i] + 10));
    snapshot::Reader reader(to.cache, source);
    REQUIRE(reader.try_reserve());
    REQUIRE_THROWS_WITH(reader.try_reserve(), contains("called once"));
    for (std::size_t layer = 0; layer < i; ++layer) {
      REQUIRE(reader.next_layer() == stream.order[layer]);
      REQUIRE(to.match(tokens, {}) == 0);
    }
    REQUIRE_THROWS_AS(reader.next_layer(), FormatError);
    REQUIRE_THROWS_WITH(reader.commit(), contains("before the end was read"));
  }
  REQUIRE(is_unchanged());
  std::optional<SeqId> seq;
  {
    Connection source(stream.bytes);
    snapshot::Reader reader(to.cache, source);
    REQUIRE(reader.contents().sequences.size() == 1);
    REQUIRE(reader.tokens() == length);
    REQUIRE_THROWS_WITH(reader.next_layer(), contains("before try_reserve"));
    REQUIRE(reader.try_reserve());
    for (const Index layer : stream.order) {
      REQUIRE(reader.next_layer() == layer);
      REQUIRE(to.match(tokens, {}) == 0);
    }
    REQUIRE_FALSE(reader.next_layer());
    REQUIRE_THROWS_WITH(reader.next_layer(), contains("after the end"));
    const snapshot::Loaded loaded = reader.commit();
    REQUIRE_THROWS_WITH(reader.commit(), contains("before the end was read"));
    REQUIRE(loaded.sequences.size() == 1);
    seq = loaded.sequences[0];
  }
  const bool has_cross =  // found under a salt alone
      std::ranges::any_of(layers.groups(), [](const LayerGroup& group) { return group.cross_rows > 0; });
  to.verify();
  to.check(*seq, tokens);
  REQUIRE(to.length(*seq) == length);
  REQUIRE(to.extend(*seq, tokens, 3));
  to.check(*seq, tokens);
  if (to.finds() && stream.has_whole_blocks) {
    REQUIRE((to.match(tokens, {}) > 0 || has_cross));
  }
}

/// A pipe that another process writes.
class PipeSource final : public io::ByteSource {
 public:
  explicit PipeSource(int file) : io::ByteSource("a pipe"), file_(file) {}
  std::size_t read(std::span<const io::ByteSpan> spans) override {
    std::size_t sum = 0;
    for (io::ByteSpan span : spans) {
      while (!span.empty()) {
        const ssize_t count = ::read(file_, span.data(), span.size());
        if (count <= 0) {
          return sum;
        }
        span = span.subspan(static_cast<std::size_t>(count));
        sum += static_cast<std::size_t>(count);
      }
    }
    return sum;
  }

 private:
  int file_;
};
class PipeSink final : public io::ByteSink {
 public:
  explicit PipeSink(int file) : file_(file) {}
  void write(std::span<const io::ConstByteSpan> spans) override {
    for (io::ConstByteSpan span : spans) {
      while (!span.empty()) {
        const ssize_t count = ::write(file_, span.data(), span.size());
        if (count < 0) {
          ::_exit(1);
        }
        span = span.subspan(static_cast<std::size_t>(count));
      }
    }
  }

 private:
  int file_;
};
}  // namespace

TEST_CASE("Layers of a cache with groups travel while the next ones are computed", "[io]") {
  Random random(seed_or(11));
  for (const LayerGroups& layers : {mixed_layers(), cross_layers(), latent_layers(), mixed_layers().with_rewind(3),
                                    recurrent_layers(), states_alone(), recurrent_layers().with_rewind(9)}) {
    Tokens tokens;
    for (int i = 0; i < 40; ++i) {
      tokens.push_back(random.between(0, 9));
    }
    const Pos pass = random.between(1, 12), before = random.one_in(3) ? 0 : random.between(1, 14);
    const auto from_and_to = [&](auto&& from) {
      const SeqId seq = from.open({});
      REQUIRE((before == 0 || from.extend(seq, tokens, before)));
      const Stream stream = streamed(from, seq, tokens, pass, random);
      from.check(seq, tokens);
      CAPTURE(from.name(), before, pass);
      receive<PrefixGroups>(stream, layers, {.blocks = 200, .block_tokens = 1}, tokens, before + pass);
      receive<PagedGroups>(stream, layers, {.blocks = 100, .block_tokens = 3}, tokens, before + pass);
      receive<ContiguousGroups>(stream, layers, {.sequences = 2, .max_tokens = 40, .mode = Contiguous::Mode::grow},
                                tokens, before + pass);
    };
    from_and_to(PrefixGroups(layers, {.blocks = 100, .block_tokens = 4}));
    from_and_to(PagedGroups(layers, {.blocks = 200, .block_tokens = 1}));
    from_and_to(ContiguousGroups(layers, {.sequences = 2, .max_tokens = 40, .mode = Contiguous::Mode::grow}));
  }
}

TEST_CASE("A process that is killed while it streams layer groups leaves its reader all or nothing", "[io]") {
  const LayerGroups layers = recurrent_layers();
  PrefixGroups from(layers, {.blocks = 300, .block_tokens = 4});
  Tokens tokens(400, 5);
  std::iota(tokens.begin(), tokens.end(), 1);
  const SeqId seq = from.open({});
  REQUIRE(from.extend(seq, tokens, 380));
  Random random(seed_or(12));
  int whole = 0, cut = 0;
  const int kills = std::max(10, kvc_test::cases_or(60));
  for (int kill = 0; kill < kills; ++kill) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      ::close(ends[0]);
      PipeSink sink(ends[1]);
      for (;;) {  // one snapshot after the other
        snapshot::save(from.cache, std::span(&seq, 1), sink);
      }
    }
    ::close(ends[1]);
    PagedGroups to(layers, {.blocks = 400, .block_tokens = 4});
    PipeSource source(ends[0]);
    std::atomic<bool> read_one = kill % 2 == 0;  // each second child lives until it has sent one
    std::thread killer([&, wait = random.between(0, 4000)] {
      read_one.wait(false);
      std::this_thread::sleep_for(std::chrono::microseconds(wait));
      ::kill(child, SIGKILL);
    });
    try {
      for (;;) {
        const snapshot::Loaded loaded = snapshot::load(to.cache, source);
        to.check(loaded.sequences.at(0), tokens);
        to.close(loaded.sequences[0]);
        ++whole;
        read_one = true;
        read_one.notify_one();
      }
    } catch (const FormatError&) {
      ++cut;
    }
    read_one = true;
    read_one.notify_one();
    killer.join();
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    ::close(ends[0]);
    to.verify();
    REQUIRE(to.stats().sequences == 0);
    REQUIRE(to.stats().blocks_free == 400);
  }
  CAPTURE(whole, cut);
  REQUIRE(cut == kills);
  REQUIRE(whole > 0);
}

TEST_CASE("A stream of layer groups that finds no room changes nothing, also where blocks are cached",
          "[io][failure]") {
  const LayerGroups layers = mixed_layers();
  PrefixGroups from(layers, {.blocks = 100, .block_tokens = 4});
  const Tokens tokens(60, 3);
  const SeqId seq = from.open({});
  REQUIRE(from.extend(seq, tokens, 50));
  io::MemorySink sink;
  snapshot::save(from.cache, std::span(&seq, 1), sink);
  for (const bool has_cached : {false, true}) {
    PrefixGroups to(layers, {.blocks = 12, .block_tokens = 4});
    if (has_cached) {
      const SeqId own = to.open({});
      REQUIRE(to.extend(own, Tokens(20, 8), 8));
      to.close(own);
    }
    const Stats before = to.stats();
    io::MemorySource source(sink.bytes());
    snapshot::Reader reader(to.cache, source);
    REQUIRE_FALSE(reader.try_reserve());
    REQUIRE_THROWS_WITH(reader.next_layer(), contains("before try_reserve"));
    to.verify();
    REQUIRE(to.stats().blocks_free == before.blocks_free);
    REQUIRE(to.stats().blocks_cached == before.blocks_cached);
    REQUIRE(to.stats().sequences == 0);
  }
}
