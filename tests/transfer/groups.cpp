// Transfers between caches with layer groups: retained rows and states arrive bit for bit under any policy and block
// size, also while they are computed; what is cached is not sent again; other layers, no room and messages of any kind
// are refused.
#include <cstring>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "any_groups.hpp"
#include "attend.hpp"
#include "failing_allocation.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "random_source.hpp"
#include "transfer/engine.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;

/// A cache with layer groups, a sender and a receiver.
struct AnyGroupEngine : AnyGroups {
  virtual transfer::Id offer(const transfer::Offer& offer) = 0;
  virtual void ready(transfer::Id id, Index layer, Pos last) = 0;
  virtual void finish(transfer::Id id) = 0;
  virtual std::size_t in_flight(transfer::Id id) const = 0;
  virtual bool poll() = 0;
  virtual std::optional<transfer::Sent> next_sent() = 0;
  virtual std::optional<transfer::Received> next_received() = 0;
  virtual std::size_t transfers() const = 0;
  /// A pass by hand: reserve, write each layer, commit.
  virtual bool begin(SeqId seq, const Tokens& all, Pos count) = 0;
  virtual void write_layer(Index layer, const Tokens& all) = 0;
  virtual void commit() = 0;
  /// Attention of the last row, which is not committed, in all layers.
  virtual std::vector<float> attended(SeqId seq) const = 0;
  virtual const LayerGroups& layers() const = 0;

  /// Decodes a token: the attention of all layers.
  std::vector<float> decode(SeqId seq, const Tokens& all) {
    REQUIRE(begin(seq, all, 1));
    for (Index layer = 0; layer < layers().layers(); ++layer) {
      write_layer(layer, all);
    }
    std::vector<float> outputs = attended(seq);
    commit();
    return outputs;
  }
  /// Computes a prompt, in passes of a few tokens.
  void prefill(SeqId seq, const Tokens& all, Pos length) {
    while (this->length(seq) < length) {
      REQUIRE(extend(seq, all, std::min<Pos>(3, length - this->length(seq))));
    }
  }
  transfer::Id send(SeqId seq, std::span<const Token> tokens, const Salt& salt = {}) {
    const transfer::Id id = offer({.to = 1, .seq = seq, .tokens = tokens, .salt = salt});
    finish(id);
    return id;
  }
  transfer::Sent expect_sent(transfer::Outcome outcome) {
    auto sent = next_sent();
    REQUIRE(sent);
    INFO(sent->reason);
    REQUIRE(to_text(sent->outcome) == to_text(outcome));
    return std::move(*sent);
  }
  transfer::Received expect_received(transfer::Outcome outcome) {
    auto received = next_received();
    REQUIRE(received);
    INFO(received->reason);
    REQUIRE(to_text(received->outcome) == to_text(outcome));
    return std::move(*received);
  }
  void expect_free() const {
    verify();
    REQUIRE(stats().blocks_referenced == 0);
    REQUIRE(stats().sequences == 0);
    REQUIRE(transfers() == 0);
  }
};

template <class P, class L>
class GroupEngine final : public GroupsOf<float, P, L, AnyGroupEngine> {
 public:
  using Base = GroupsOf<float, P, L, AnyGroupEngine>;
  using Base::cache;
  using Endpoint = transport::InProcess::Endpoint;

  GroupEngine(transport::InProcess& hub, transport::Peer self, const LayerGroups& layers,
              const typename P::Config& config, const transfer::ReceiverOptions& receiving)
      : Base(layers, config),
        endpoint_(hub, self),
        sender_(cache, endpoint_, {.timeout = std::chrono::hours(1), .message_bytes = 100}),
        receiver_(cache, endpoint_, receiving) {}

  transfer::Id offer(const transfer::Offer& offer) override { return sender_.offer(offer); }
  void ready(transfer::Id id, Index layer, Pos last) override { sender_.ready(id, layer, last); }
  void finish(transfer::Id id) override { sender_.finish(id); }
  std::size_t in_flight(transfer::Id id) const override { return sender_.in_flight(id); }
  bool poll() override {
    const bool received = receiver_.poll();
    return sender_.poll() || received;
  }
  std::optional<transfer::Sent> next_sent() override { return sender_.next(); }
  std::optional<transfer::Received> next_received() override { return receiver_.next(); }
  std::size_t transfers() const override { return sender_.transfers() + receiver_.transfers(); }
  bool begin(SeqId seq, const Tokens& all, Pos count) override {
    auto step = cache.try_extend(
        seq, std::span(all).subspan(static_cast<std::size_t>(cache.length(seq)), static_cast<std::size_t>(count)));
    if (step) {
      step_ = std::move(*step);
    }
    return step_.uncommitted();
  }
  void write_layer(Index layer, const Tokens& all) override { Base::write(layer, step_, all); }
  void commit() override { cache.commit(std::move(step_)); }
  const LayerGroups& layers() const override { return cache.layers(); }
  std::vector<float> attended(SeqId seq) const override {
    std::vector<float> all;
    for (Index layer = 0; layer < layers().layers(); ++layer) {
      if (layers().is_recurrent(layer)) {
        for (const std::byte b : cache.state(layer, seq)) {
          all.push_back(static_cast<float>(b));
        }
        continue;
      }
      const LayerGroup& group = layers().groups()[static_cast<std::size_t>(layers().place(layer).group)];
      const Pos window = group.retained.window;
      RowMatrix q(1, group.shape.kv_heads * group.shape.key_dim);
      for (Index i = 0; i < q.size(); ++i) {
        q(0, i) = 0.01F * static_cast<float>(i + layer);
      }
      RowMatrix out(1, group.shape.kv_heads * group.shape.value_dim);
      const AttentionOptions options{.window = window, .chunk = group.retained.chunk, .kept = group.retained.kept};
      Attend<float>::decode(AnyView<float>(cache.view(layer, seq)),
                            MatrixRef<const float>(q.data(), q.rows(), q.cols()),
                            AttentionOutput(out.data(), out.rows(), out.cols()), options);
      all.insert(all.end(), out.data(), out.data() + out.size());
    }
    return all;
  }

 private:
  Endpoint endpoint_;
  transfer::Sender<typename Base::Cache, Endpoint> sender_;
  transfer::Receiver<typename Base::Cache, Endpoint> receiver_;
  typename Base::Cache::Append step_;
};

using GroupPrefix = PrefixShared<Lru>;
using MakeGroupEngine =
    std::function<std::unique_ptr<AnyGroupEngine>(transport::InProcess&, transport::Peer, const LayerGroups&)>;
template <class P, class L>
MakeGroupEngine group_engine(const typename P::Config& config, const transfer::ReceiverOptions& receiving = {}) {
  return [=](transport::InProcess& hub, transport::Peer self, const LayerGroups& layers) {
    return std::make_unique<GroupEngine<P, L>>(hub, self, layers, config, receiving);
  };
}
/// One template instance for each policy.
MakeGroupEngine paged_groups(Pos block_tokens, Index blocks = 900) {
  return group_engine<Paged, HeadMajor>({.blocks = blocks, .block_tokens = block_tokens});
}
MakeGroupEngine prefix_groups(Pos block_tokens, Index blocks = 900, const transfer::ReceiverOptions& receiving = {}) {
  return group_engine<GroupPrefix, TokenMajor>({.blocks = blocks, .block_tokens = block_tokens}, receiving);
}
MakeGroupEngine contiguous_groups(Contiguous::Mode mode) {
  return group_engine<Contiguous, HeadMajor>({.sequences = 20, .max_tokens = 80, .mode = mode});
}
std::vector<MakeGroupEngine> all_group_engines() {
  return {paged_groups(1),  paged_groups(4),  contiguous_groups(Contiguous::Mode::grow),
          prefix_groups(3), prefix_groups(8), contiguous_groups(Contiguous::Mode::reserve)};
}

/// Windows of one position, of less than a block, of a block and of more, alone and with kept positions.
LayerGroups window_layers() {
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 2, .window = 1});
  layers.add({.kv_heads = 1, .key_dim = 1, .window = 1, .kept = 3});
  layers.add({.kv_heads = 2, .key_dim = 2, .value_dim = 3, .window = 4, .kept = 5});
  layers.add({.kv_heads = 1, .key_dim = 2, .window = 17, .chunk = 12});
  return layers;
}
std::vector<LayerGroups> group_mixes() {
  return {mixed_layers(), cross_layers(),    latent_layers(), window_layers(), mixed_layers().with_rewind(3),
          states_alone(), recurrent_layers()};
}

Tokens group_tokens(Token first, int count) {
  Tokens tokens{first};
  for (int i = 1; i < count; ++i) {
    tokens.push_back((first + i * i) % 11);
  }
  return tokens;
}
void poll_all(AnyGroupEngine& a, AnyGroupEngine& b) {
  for (bool any = true; any;) {
    any = a.poll();
    any = b.poll() || any;
  }
}
}  // namespace

TEST_CASE("Sequences of layer groups go from any policy and block size to any other", "[transfer]") {
  Random random(seed_or(20));
  for (const LayerGroups& layers : group_mixes()) {
    for (const MakeGroupEngine& from : all_group_engines()) {
      for (const MakeGroupEngine& to : all_group_engines()) {
        if (random.between(1, 100) > kvc_test::cases_or(100)) {
          continue;
        }
        transport::InProcess hub({});
        const auto a = from(hub, 0, layers);
        const auto b = to(hub, 1, layers);
        CAPTURE(a->name(), b->name());
        struct One {
          SeqId seq;
          Tokens tokens;
          Pos length;
          Salt salt;  // names the rows of cross attention
        };
        std::vector<One> all;
        for (const Pos length : {1, 5, 6, 12, 31, 48}) {
          const Salt salt(SaltKind::multimodal, std::to_string(length));
          One one{a->open(salt), group_tokens(static_cast<Token>(length), 80), length, salt};
          while (a->length(one.seq) < length) {
            const Pos left = length - a->length(one.seq);
            REQUIRE(a->extend(one.seq, one.tokens, random.between(1, std::min(left, random.one_in(2) ? 20 : 3))));
          }
          if (layers.rewind() > 0 && length > 3) {
            a->truncate(one.seq, one.length -= 2);
          }
          const auto prompt = std::span(one.tokens).first(static_cast<std::size_t>(length == 12 ? 0 : one.length));
          (void)a->send(one.seq, prompt, salt);
          all.push_back(one);
        }
        poll_all(*a, *b);
        for (const One& one : all) {
          const transfer::Sent sent = a->expect_sent(transfer::Outcome::complete);
          const transfer::Received got = b->expect_received(transfer::Outcome::complete);
          REQUIRE(sent.seq == one.seq);
          REQUIRE(got.length == one.length);
          REQUIRE(got.bytes == sent.bytes);
          REQUIRE(b->length(got.seq) == one.length);
          b->verify();
          b->check(got.seq, one.tokens);
          for (int i = 0; i < 8; ++i) {  // both go on
            REQUIRE(a->decode(one.seq, one.tokens) == b->decode(got.seq, one.tokens));
            b->check(got.seq, one.tokens);
          }
          b->verify();
          b->close(got.seq);
          a->close(one.seq);
          if (b->finds()) {  // what a prompt finds of it is right
            const Opened again = b->open_prompt(one.tokens, one.salt);
            if (again.cached > 0) {
              b->check(again.seq, one.tokens);
            }
            b->close(again.seq);
          }
        }
        a->expect_free();
        b->expect_free();
      }
    }
  }
}

TEST_CASE("A received sequence of layer groups is found by its tokens", "[transfer]") {
  for (const LayerGroups& layers : group_mixes()) {
    if (!layers.states().empty()) {
      continue;  // found as far as there are states: see below
    }
    transport::InProcess hub({});
    const auto a = prefix_groups(4)(hub, 0, layers);
    const auto b = prefix_groups(4)(hub, 1, layers);
    const Salt salt(SaltKind::multimodal, "an input");
    const Tokens tokens = group_tokens(7, 60);
    const SeqId seq = a->open(salt);
    REQUIRE(a->extend(seq, tokens, 33));
    REQUIRE(b->match(tokens, salt) == 0);
    (void)a->send(seq, std::span(tokens).first(33), salt);
    poll_all(*a, *b);
    const SeqId got = b->expect_received(transfer::Outcome::complete).seq;
    REQUIRE(b->match(tokens, salt) == a->match(tokens, salt));
    REQUIRE(b->match(tokens, salt) >= 32);
    REQUIRE(b->match(tokens, {}) == 0);
    for (const bool is_closed : {false, true}) {
      const Opened opened = b->open_prompt(tokens, salt);
      REQUIRE(opened.cached >= 32);
      b->check(opened.seq, tokens);
      b->close(opened.seq);
      if (!is_closed) {
        b->close(got);
      }
    }
    b->expect_free();
  }
}

TEST_CASE("Only rows that a group retains travel, and of these what the receiver lacks", "[transfer]") {
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 2, .window = 8, .kept = 4}, 2);
  layers.add({.kv_heads = 1, .key_dim = 2}, 2);
  constexpr std::uint64_t windowed = 2 * 4 * sizeof(float);
  constexpr std::uint64_t full = 2 * 4 * sizeof(float);
  const Tokens tokens = group_tokens(3, 100);
  const auto sent_bytes = [&](AnyGroupEngine& a, AnyGroupEngine& b, const Tokens& prompt, Pos cached) {
    const Opened opened = a.open_prompt(prompt, {});
    REQUIRE(a.extend(opened.seq, prompt, static_cast<Pos>(prompt.size()) - opened.cached));
    (void)a.send(opened.seq, prompt);
    poll_all(a, b);
    const transfer::Sent sent = a.expect_sent(transfer::Outcome::complete);
    const transfer::Received got = b.expect_received(transfer::Outcome::complete);
    REQUIRE(sent.cached == cached);
    REQUIRE(got.cached == cached);
    b.check(got.seq, prompt);
    b.verify();
    a.close(opened.seq);
    b.close(got.seq);
    return sent.bytes;
  };
  {
    transport::InProcess hub({});
    const auto a = paged_groups(1)(hub, 0, layers);
    const auto b = paged_groups(1)(hub, 1, layers);
    REQUIRE(sent_bytes(*a, *b, tokens, 0) == 100 * full + (4 + 7) * windowed);
  }
  transport::InProcess hub({});
  const auto a = prefix_groups(1)(hub, 0, layers);
  const auto b = prefix_groups(1)(hub, 1, layers);
  (void)sent_bytes(*a, *b, tokens, 0);
  Tokens longer = tokens;
  longer.insert(longer.end(), {20, 21, 22});
  REQUIRE(sent_bytes(*a, *b, longer, 100) == 3 * full + 3 * windowed);
  REQUIRE(sent_bytes(*a, *b, longer, 102) <= full + windowed);  // at least one token is sent
  // With larger blocks, the rest of the block that a hit ends in travels too.
  transport::InProcess other({});
  const auto c = prefix_groups(4)(other, 0, layers);
  const auto d = prefix_groups(4)(other, 1, layers);
  (void)sent_bytes(*c, *d, tokens, 0);
  REQUIRE(sent_bytes(*c, *d, longer, 100) < 20 * full);
  d->expect_free();
}

TEST_CASE("Layers of groups travel while they are computed, and chunks are committed meanwhile", "[transfer]") {
  Random random(seed_or(21));
  const Salt salt(SaltKind::multimodal, "an input");
  for (const LayerGroups& layers : group_mixes()) {
    for (const MakeGroupEngine& from : {paged_groups(4), prefix_groups(3), contiguous_groups(Contiguous::Mode::grow)}) {
      for (const MakeGroupEngine& to : {paged_groups(1), prefix_groups(8)}) {
        for (const bool answers : {true, false}) {  // while the prompt is computed, or later
          transport::InProcess hub({});
          const auto a = from(hub, 0, layers);
          const auto b = to(hub, 1, layers);
          CAPTURE(a->name(), b->name(), answers);
          const Tokens tokens = group_tokens(5, 80);
          constexpr Pos length = 45;
          const SeqId seq = a->open(salt);
          const transfer::Id id = a->offer({.to = 1,
                                            .seq = seq,
                                            .tokens = std::span(tokens).first(std::size_t{length}),
                                            .salt = salt,
                                            .length = length});
          while (a->length(seq) < length) {
            const Pos done = a->length(seq);
            const Pos count = random.between(1, std::min<Pos>(length - done, 17));
            REQUIRE(a->begin(seq, tokens, count));
            for (Index layer = 0; layer < layers.layers(); ++layer) {
              a->write_layer(layer, tokens);
              a->ready(id, layer, done + count);
              if (answers && random.one_in(2)) {
                poll_all(*a, *b);
              }
            }
            while (answers && a->in_flight(id) > 0) {
              poll_all(*a, *b);
            }
            a->commit();
          }
          REQUIRE(b->stats().tokens_stored == 0);
          REQUIRE(b->match(tokens, salt) == 0);
          a->finish(id);
          poll_all(*a, *b);
          (void)a->expect_sent(transfer::Outcome::complete);
          const transfer::Received got = b->expect_received(transfer::Outcome::complete);
          b->check(got.seq, tokens);
          REQUIRE(a->decode(seq, tokens) == b->decode(got.seq, tokens));
          b->close(got.seq);
          a->close(seq);
          a->expect_free();
          b->expect_free();
        }
      }
    }
  }
}

TEST_CASE("States of recurrent layers travel, and those that the receiver has do not", "[transfer][states]") {
  for (const LayerGroups& layers : {recurrent_layers(), states_alone()}) {
    transport::InProcess hub({});
    const auto a = prefix_groups(4)(hub, 0, layers);
    const auto b = prefix_groups(4)(hub, 1, layers);
    std::uint64_t state_bytes = 0;
    for (const StateGroup& kind : layers.states()) {
      state_bytes += static_cast<std::uint64_t>(kind.layers * kind.bytes);
    }
    const std::uint64_t row_bytes = layers.groups().empty() ? 0 : (2 * 5 + 4) * sizeof(float);
    const Tokens all = group_tokens(3, 80);
    const auto send = [&](Pos length, bool streams) {
      const Tokens prompt(all.begin(), all.begin() + length);
      const Opened opened = a->open_prompt(prompt, {});
      transfer::Id id = 0;
      if (streams) {  // offered before a row or a state is written
        REQUIRE(a->begin(opened.seq, prompt, length - opened.cached));
        id = a->offer({.to = 1, .seq = opened.seq, .tokens = prompt});
        for (Index layer = 0; layer < layers.layers(); ++layer) {
          a->write_layer(layer, prompt);
          a->ready(id, layer, length);
          poll_all(*a, *b);
        }
        a->commit();
        a->finish(id);
      } else {
        REQUIRE(a->extend(opened.seq, prompt, length - opened.cached));
        id = a->send(opened.seq, prompt);
      }
      poll_all(*a, *b);
      const transfer::Sent sent = a->expect_sent(transfer::Outcome::complete);
      const transfer::Received got = b->expect_received(transfer::Outcome::complete);
      REQUIRE(got.bytes == sent.bytes);
      b->check(got.seq, prompt);
      b->verify();
      REQUIRE(a->decode(opened.seq, all) == b->decode(got.seq, all));
      b->check(got.seq, all);
      a->close(opened.seq);
      b->close(got.seq);
      return sent;
    };
    // Those of the end, and of the last whole node, from which prompts go on.
    const Pos whole = 32;
    const transfer::Sent first = send(33, false);
    REQUIRE(first.cached == 0);
    REQUIRE(first.bytes >= 2 * state_bytes);
    REQUIRE(first.bytes <= 2 * state_bytes + 33 * row_bytes);
    REQUIRE(b->match(all, {}) == whole);
    REQUIRE(a->match(all, {}) == whole);
    const transfer::Sent second = send(46, true);
    REQUIRE(second.cached == whole);
    REQUIRE(second.bytes <= 2 * state_bytes + (46 - 24) * row_bytes);
    REQUIRE(b->match(all, {}) == 44);
    // The receiver has the states of the last whole node of this one.
    const transfer::Sent third = send(47, false);
    REQUIRE(third.cached == 44);
    REQUIRE(third.bytes <= state_bytes + (47 - 36) * row_bytes);
    a->expect_free();
    b->expect_free();
  }
}

TEST_CASE("A received sequence goes back as far as both reserves for speculation allow", "[transfer][states]") {
  for (const Pos theirs : {0, 2, 5}) {
    for (const MakeGroupEngine& to : all_group_engines()) {
      transport::InProcess hub({});
      const auto a = paged_groups(4)(hub, 0, recurrent_layers().with_rewind(3));
      const auto b = to(hub, 1, recurrent_layers().with_rewind(theirs));
      CAPTURE(b->name(), theirs);
      const Tokens tokens = group_tokens(5, 80);
      const SeqId seq = a->open({});
      a->prefill(seq, tokens, 12);  // in passes of 3
      for (int i = 0; i < 4; ++i) {
        REQUIRE(a->extend(seq, tokens, 1));
      }
      (void)a->send(seq, {});
      poll_all(*a, *b);
      const SeqId got = b->expect_received(transfer::Outcome::complete).seq;
      b->check(got, tokens);
      const Pos least = 16 - std::min<Pos>(3, theirs);
      b->truncate(got, least);
      REQUIRE(b->length(got) == least);
      b->check(got, tokens);
      REQUIRE(b->extend(got, tokens, 9));
      b->check(got, tokens);
      b->close(got);
      b->expect_free();
    }
  }
}

TEST_CASE("A sequence that drops states before they have left ends its transfer", "[transfer][states]") {
  transport::InProcess hub({});
  const auto a = paged_groups(4)(hub, 0, states_alone());
  const auto b = paged_groups(4)(hub, 1, states_alone());
  const Tokens tokens = group_tokens(5, 80);
  const SeqId seq = a->open({});
  REQUIRE(a->extend(seq, tokens, 20));
  const transfer::Id id = a->offer({.to = 1, .seq = seq});
  REQUIRE(a->extend(seq, tokens, 1));
  a->finish(id);
  poll_all(*a, *b);
  REQUIRE_THAT(a->expect_sent(transfer::Outcome::cancelled).reason, contains("no recurrent states of length 20"));
  (void)b->expect_received(transfer::Outcome::cancelled);
  b->expect_free();
  REQUIRE_THROWS_WITH(a->offer({.to = 1, .seq = seq, .length = 20}),
                      contains("offer.length is 20, must be one of which the sequence has recurrent states"));
}

TEST_CASE("A sequence that drops rows before they have left ends its transfer", "[transfer]") {
  for (const MakeGroupEngine& from : all_group_engines()) {
    transport::InProcess hub({});
    const auto a = from(hub, 0, mixed_layers());
    const auto b = paged_groups(4)(hub, 1, mixed_layers());
    CAPTURE(a->name());
    const Tokens tokens = group_tokens(5, 80);
    const SeqId seq = a->open({});
    REQUIRE(a->extend(seq, tokens, 20));
    const transfer::Id id = a->offer({.to = 1, .seq = seq});
    REQUIRE(a->extend(seq, tokens, 40));  // one pass more than was offered
    a->finish(id);
    poll_all(*a, *b);
    REQUIRE_THAT(a->expect_sent(transfer::Outcome::cancelled).reason, contains("has dropped rows of stored layer"));
    (void)b->expect_received(transfer::Outcome::cancelled);
    b->expect_free();
    REQUIRE_THROWS_WITH(a->offer({.to = 1, .seq = seq, .length = 30}),
                        contains("offer.length is 30, must be at least"));
    a->check(seq, tokens);
    a->close(seq);
    a->expect_free();
  }
}

TEST_CASE("Layers that differ are recognised, and the sender learns which", "[transfer]") {
  const auto refused = [](const LayerGroups& own, const LayerGroups& theirs, const char* reason) {
    transport::InProcess hub({});
    const auto a = paged_groups(4)(hub, 0, own);
    const auto b = prefix_groups(4)(hub, 1, theirs);
    const Tokens tokens = group_tokens(5, 80);
    const SeqId seq = a->open({});
    REQUIRE(a->extend(seq, tokens, 9));
    (void)a->send(seq, {});
    poll_all(*a, *b);
    const transfer::Sent sent = a->expect_sent(transfer::Outcome::incompatible);
    REQUIRE_THAT(sent.reason, contains(reason));
    REQUIRE_THROWS_AS(transfer::require_complete(sent), FormatError);
    REQUIRE(!b->next_received());
    b->expect_free();
  };
  const auto one = [](LayerKind kind) {
    LayerGroups layers;
    layers.add({.kv_heads = 1, .key_dim = 2});
    layers.add(kind, 2);
    return layers;
  };
  const LayerKind kind{.kv_heads = 2, .key_dim = 4, .window = 8, .kept = 2};
  const auto changed = [&](auto change) {
    LayerKind other = kind;
    change(other);
    return one(other);
  };
  using K = LayerKind&;
  refused(changed([](K k) { k.window = 4; }), one(kind), "expected window 8 in group 1, found 4");
  refused(changed([](K k) { k.kept = 3; }), one(kind), "expected kept 2 in group 1, found 3");
  refused(changed([](K k) { k.chunk = 5; }), one(kind), "expected chunk 0 in group 1, found 5");
  refused(changed([](K k) { k.kv_heads = 1; }), one(kind), "expected kv_heads 2 in group 1, found 1");
  refused(changed([](K k) { k.key_dim = k.value_dim = 3; }), one(kind), "expected key_dim 4 in group 1, found 3");
  refused(changed([](K k) { k.value_dim = 3; }), one(kind), "expected value_dim 4 in group 1, found 3");
  refused(changed([](K k) { k = {.kv_heads = 2, .key_dim = 4, .tokens_per_row = 2}; }),
          changed([](K k) { k = {.kv_heads = 2, .key_dim = 2, .window = 1 << 20}; }),
          "expected tokens_per_row 1 in group 1, found 2");
  refused(changed([](K k) { k.latent = true; }), one(kind), "expected bytes of a value 16 in group 1, found 0");
  refused(changed([](K k) { k = {.kv_heads = 2, .key_dim = 4, .cross_rows = 3}; }), one(kind),
          "expected window 8 in group 1, found 0");
  refused(one({.key_dim = 2, .cross_rows = 3}), one({.key_dim = 2, .cross_rows = 4}),
          "expected cross_rows 4 in group 1, found 3");
  LayerGroups more = one(kind);
  more.add(kind);
  refused(more, one(kind), "expected layers 3, found 4");
  LayerGroups reads = one(kind);
  reads.add_reader_of(1);
  refused(more, reads, "expected layers 2 in group 1, found 3");
  LayerGroups reads_another = one(kind);
  reads_another.add_reader_of(0);
  refused(reads, reads_another,
          "expected layer 3 to be a reader of layer 0 of group 0, found a reader of layer 0 of group 1");
  LayerGroups third = one(kind);
  third.add({.key_dim = 2, .window = 9});
  refused(third, one(kind), "expected layer groups 2, found 3");
  LayerGroups plain;
  plain.add({.kv_heads = 1, .key_dim = 2});
  refused(one(kind), plain, "expected version 1, found 2, of a cache with layer groups");
  refused(plain, one(kind), "expected version 2, found 1, of a cache without layer groups");
  refused(mixed_layers(), cross_layers(), "expected layer groups 2, found 4");

  const auto states = [&](Index bytes, Index count) {
    LayerGroups model;
    model.add({.kv_heads = 1, .key_dim = 2, .window = 8});
    model.add_state(64);
    model.add_state(bytes, count);
    return model;
  };
  refused(states(128, 2), states(256, 2), "expected bytes 256 in kind 1 of states, found 128");
  refused(states(128, 2), states(128, 3), "expected layers 5, found 4");
  refused(states(64, 2), states(128, 2), "expected kinds of recurrent states 2, found 1");
  refused(states(128, 1), one(kind), "expected layer groups 2, found 1");

  LayerGroups many;
  for (Pos window = 1; window <= 33; ++window) {
    many.add({.key_dim = 1, .window = window});
  }
  transport::InProcess hub({});
  REQUIRE_THROWS_WITH(paged_groups(4)(hub, 0, many), contains("is 33, must be at most 32"));
}

TEST_CASE("A pool of layer groups without room refuses a sequence, and takes it later", "[transfer]") {
  const auto check = [](const MakeGroupEngine& to, const LayerGroups& layers, Pos resident, Pos length, bool ever) {
    transport::InProcess hub({});
    const auto a = paged_groups(4)(hub, 0, layers);
    const auto b = to(hub, 1, layers);
    CAPTURE(b->name(), resident, length);
    const Tokens tokens = group_tokens(5, 300);
    const Tokens other = group_tokens(6, 300);
    const SeqId seq = a->open({});
    a->prefill(seq, tokens, length);
    const SeqId held = b->open({});
    b->prefill(held, other, resident);
    const Stats before = b->stats();
    const auto prompt = std::span(tokens).first(static_cast<std::size_t>(length));
    (void)a->send(seq, prompt);
    poll_all(*a, *b);
    const transfer::Sent sent = a->expect_sent(ever ? transfer::Outcome::no_room : transfer::Outcome::never_fits);
    REQUIRE(sent.bytes == 0);
    REQUIRE(!b->next_received());
    REQUIRE(b->stats().blocks_free == before.blocks_free);
    REQUIRE(b->stats().blocks_cached == before.blocks_cached);
    REQUIRE(b->stats().sequences == 1);
    b->check(held, other);
    b->verify();
    b->close(held);
    const Pos found = b->match(other, {});
    (void)a->send(seq, prompt);
    poll_all(*a, *b);
    if (!ever) {
      (void)a->expect_sent(transfer::Outcome::never_fits);
      REQUIRE(b->match(other, {}) == found);  // and nothing was evicted for it
      b->expect_free();
      return;
    }
    (void)a->expect_sent(transfer::Outcome::complete);
    const SeqId got = b->expect_received(transfer::Outcome::complete).seq;
    b->check(got, tokens);
    REQUIRE(a->decode(seq, tokens) == b->decode(got, tokens));
    b->close(got);
    b->expect_free();
  };
  for (const MakeGroupEngine& to : {paged_groups(4, 30), prefix_groups(4, 30)}) {
    check(to, mixed_layers(), 60, 60, true);
    check(to, mixed_layers(), 20, 200, false);
  }
  LayerGroups windows;
  windows.add({.key_dim = 8, .window = 20, .kept = 3});
  windows.add({.key_dim = 8, .chunk = 24});
  for (const MakeGroupEngine& to : {paged_groups(4, 16), prefix_groups(4, 16)}) {
    check(to, windows, 60, 290, true);  // longer than the pool: most of it is dropped
  }
  LayerGroups wide;
  wide.add({.key_dim = 2, .window = 200});
  check(prefix_groups(4, 20), wide, 60, 290, false);
}

TEST_CASE("A reservation of layer groups that cannot allocate changes nothing", "[transfer]") {
  namespace d = transfer::detail;
  KvCache<float, GroupPrefix, TokenMajor> cache(mixed_layers(), {.blocks = 100, .block_tokens = 4});
  const Tokens tokens = group_tokens(5, 40);
  const SeqId source = cache.open();
  cache.commit(cache.extend(source, std::span(tokens).first(30)));
  const d::StoredLayers layers(cache);
  std::vector<std::byte> body;
  d::append_groups(body, layers, cache.policy(), source, 30);
  d::Offered offered;
  offered.length = offered.tokens = 40;
  offered.groups_bytes = body.size();
  const auto token_bytes = std::as_bytes(std::span(tokens));
  body.insert(body.end(), token_bytes.begin(), token_bytes.end());
  const Stats before = cache.stats();
  int failures = 0;
  for (bool failed = true; failed; ++failures) {
    {
      const FailAllocation fail(failures);
      try {
        auto reserved = d::reserve_groups(cache, layers, offered, body, 0, {});
        auto& room = std::get<d::Reservation<decltype(cache)>>(reserved);
        REQUIRE(room.cached == 30);
        room.step.rollback();
        cache.close(room.seq);
      } catch (const std::bad_alloc&) {
      }
      failed = fail.failed();
    }
    cache.verify();
    REQUIRE(cache.stats().sequences == before.sequences);
    REQUIRE(cache.stats().blocks_referenced == before.blocks_referenced);
    REQUIRE(cache.stats().blocks_free == before.blocks_free);
  }
  REQUIRE(failures > 5);
}

namespace {
/// Carries messages between two engines that do not know that they are on different hubs, and damages some.
class GroupRelay {
 public:
  GroupRelay(transport::InProcess& of_sender, transport::InProcess& of_receiver)
      : near_(of_sender, 1), far_(of_receiver, 0) {}

  /// damage(head, body) for each message; true if there was any.
  template <class F>
  bool carry(F damage) {
    const bool any = carry(near_, far_, 1, transfer::data_channel, damage);
    return carry(far_, near_, 0, transfer::reply_channel, damage) || any;
  }
  void drop() {
    near_.drop(0);
    far_.drop(1);
  }

 private:
  using Endpoint = transport::InProcess::Endpoint;

  template <class F>
  bool carry(Endpoint& from, Endpoint& to, transport::Peer peer, transport::Channel channel, F& damage) {
    bool any = false;
    while (auto arrival = from.poll(channel)) {
      std::vector<std::byte> head(arrival->head().begin(), arrival->head().end());
      auto& body = bodies_.emplace_back(arrival->body_bytes());
      const io::ByteSpan place(body);
      (void)from.accept(std::move(*arrival), std::span(&place, body.empty() ? 0 : 1));
      damage(head, body);
      const io::ConstByteSpan bytes(body);
      REQUIRE(to.try_send(peer, channel, head, std::span(&bytes, body.empty() ? 0 : 1)));
      any = true;
    }
    return any;
  }

  Endpoint near_;
  Endpoint far_;
  std::list<std::vector<std::byte>> bodies_;
};

void set_number(std::vector<std::byte>& bytes, std::size_t at, std::int32_t value) {
  if (at + sizeof value <= bytes.size()) {
    std::memcpy(bytes.data() + at, &value, sizeof value);
  }
}
}  // namespace

TEST_CASE("Random changes to messages about layer groups leave both engines whole", "[transfer]") {
  Random random(seed_or(22));
  const std::vector<MakeGroupEngine> engines = {paged_groups(4, 60), prefix_groups(4, 60), prefix_groups(3, 90)};
  int complete = 0;
  int failed = 0;
  const int rounds = operations_or(30'000) / 100;
  for (int round = 0; round < rounds; ++round) {
    const LayerGroups layers = group_mixes()[random.between<std::size_t>(0, group_mixes().size() - 1)];
    transport::InProcess near({});
    transport::InProcess far({});
    const auto a = engines[random.between<std::size_t>(0, 2)](near, 0, layers);
    const auto b = engines[random.between<std::size_t>(0, 2)](far, 1, layers);
    GroupRelay relay(near, far);
    const Tokens tokens = group_tokens(5, 80);
    const Tokens resident = group_tokens(random.between(5, 6), 80);
    const SeqId held = b->open({});
    REQUIRE(b->extend(held, resident, random.between(1, 20)));
    const SeqId seq = a->open({});
    const Pos length = random.between(1, 25);
    REQUIRE(a->extend(seq, tokens, length));
    for (int i = 0; i < 3; ++i) {
      (void)a->send(seq, std::span(tokens).first(random.one_in(3) ? 0 : static_cast<std::size_t>(length)));
    }
    const int rarely = random.between(2, 40);
    const auto damage = [&](std::vector<std::byte>& head, std::vector<std::byte>& body) {
      if (!random.one_in(rarely) || head.empty()) {
        return;
      }
      const auto kind = static_cast<int>(head[8]);
      std::vector<std::byte>& bytes = kind == 1 && !body.empty() && random.one_in(2) ? body : head;
      switch (random.between(0, 3)) {
        case 0:
          bytes[random.between<std::size_t>(0, bytes.size() - 1)] = static_cast<std::byte>(random.between(0, 255));
          break;
        case 1: {
          constexpr std::int32_t values[] = {-1, 0, 1, 4, 7, 26, 1 << 20, max_pos};
          set_number(bytes, random.between<std::size_t>(0, bytes.size() / 4) * 4, values[random.between(0, 7)]);
          break;
        }
        case 2:
          bytes.resize(random.between<std::size_t>(0, bytes.size()));
          break;
        default:
          bytes.resize(std::min<std::size_t>(bytes.size() + random.between<std::size_t>(1, 20), 512));
      }
    };
    for (bool any = true; any;) {
      any = a->poll();
      any = relay.carry(damage) || any;
      any = b->poll() || any;
      b->verify();
    }
    relay.drop();
    poll_all(*a, *b);
    while (const auto got = b->next_received()) {
      ++(got->outcome == transfer::Outcome::complete ? complete : failed);
      if (got->outcome == transfer::Outcome::complete) {
        b->close(got->seq);
      }
    }
    while (a->next_sent()) {
    }
    b->check(held, resident);
    b->close(held);
    b->expect_free();
    a->check(seq, tokens);
    a->close(seq);
    a->expect_free();
  }
  REQUIRE(complete > rounds / 8);
  REQUIRE(failed > rounds / 20);
}

TEST_CASE("An offer of layer groups that promises too little or too much is refused at once", "[transfer]") {
  LayerGroups layers;
  layers.add({.key_dim = 2, .window = 6});
  layers.add({.key_dim = 2, .chunk = 8});
  const auto reply_to = [&](auto change) {
    transport::InProcess near({});
    transport::InProcess far({});
    const auto a = paged_groups(4)(near, 0, layers);
    const auto b = prefix_groups(4, 40)(far, 1, layers);
    GroupRelay relay(near, far);
    const Tokens tokens = group_tokens(5, 30);
    const SeqId seq = a->open({});
    REQUIRE(a->extend(seq, tokens, 30));
    (void)a->send(seq, {});
    for (bool any = true; any;) {
      any = a->poll();
      any = relay.carry([&](std::vector<std::byte>& head, std::vector<std::byte>& body) {
        if (static_cast<int>(head[8]) == 1) {
          change(head, body);
        }
      }) || any;
      any = b->poll() || any;
    }
    const auto sent = a->next_sent();
    relay.drop();
    poll_all(*a, *b);
    while (const auto got = b->next_received()) {
      if (got->outcome == transfer::Outcome::complete) {
        b->close(got->seq);
      }
    }
    b->expect_free();
    return std::string(to_text(sent.value().outcome)) + ": " + sent->reason;
  };
  using transfer::detail::OfferedGroupRecord;
  constexpr std::size_t length_at =
      sizeof(transfer::detail::MessageHead) + offsetof(transfer::detail::OfferRecord, length);
  const auto gone = [](std::size_t group, std::int32_t first, std::int32_t last) {
    return [=](std::vector<std::byte>&, std::vector<std::byte>& body) {
      set_number(body, group * sizeof(OfferedGroupRecord) + offsetof(OfferedGroupRecord, gone_first), first);
      set_number(body, group * sizeof(OfferedGroupRecord) + offsetof(OfferedGroupRecord, gone_last), last);
    };
  };
  REQUIRE_THAT(reply_to(gone(0, 0, 24)), contains("complete"));  // as it is
  REQUIRE_THAT(reply_to(gone(0, 0, 26)), contains("broken: group 0 without positions 0 to 26, which a row may see"));
  REQUIRE_THAT(reply_to(gone(1, 0, 25)), contains("broken: group 1 without positions 0 to 25"));
  REQUIRE_THAT(reply_to(gone(0, -1, 20)), contains("broken: group 0"));
  REQUIRE_THAT(reply_to(gone(0, 20, 10)), contains("broken: group 0"));
  REQUIRE_THAT(reply_to(gone(0, 10, 10)), contains("broken: group 0"));
  REQUIRE_THAT(reply_to([](auto&, auto& body) { set_number(body, offsetof(OfferedGroupRecord, block_tokens), 0); }),
               contains("broken: group 0"));
  // A sequence of any length has room where all groups drop rows, but this sender does not have it.
  REQUIRE_THAT(reply_to([&](auto& head, auto&) { set_number(head, length_at, max_pos); }), contains("broken"));
  // The receiver wants rows that this sender has not offered.
  REQUIRE_THAT(reply_to(gone(0, 0, 0)), contains("broken"));
}
