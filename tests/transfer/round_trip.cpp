// Sequences arrive bit for bit: from every policy, layout and block size, and some element types, into every other.
#include <algorithm>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#include "element_types.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "transfer/engine.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;
using MakeEngine = std::function<std::unique_ptr<AnyEngine>(transport::InProcess&, transport::Peer)>;

template <class T, class Case, class L>
MakeEngine maker(Pos tokens = 256) {
  return [tokens](transport::InProcess& hub, transport::Peer self) {
    return make_engine<T, Case, L>(hub, self, tokens, small_messages);
  };
}

/// One type has its scales in planes of their own in the one, and in rows in the other.
template <class T>
std::vector<MakeEngine> kinds() {
  using OfPaged = std::conditional_t<std::is_same_v<T, TypeWithPlanes>, ScalePlanes<TokenMajor>, TokenMajor>;
  return {maker<T, Paged4, OfPaged>(), maker<T, Prefix4, HeadMajor>()};
}

const Salt tenant(SaltKind::tenant, "a tenant");

/// Sequences of many lengths, with and without tokens, at once over one connection.
void check_pair(const MakeEngine& from, const MakeEngine& to) {
  transport::InProcess hub({});
  const auto a = from(hub, 0);
  const auto b = to(hub, 1);
  INFO(a->cache().name() << " -> " << b->cache().name());
  struct One {
    Tokens tokens;
    Values values;
    Salt salt;
    SeqId seq;
  };
  std::vector<One> all;
  for (const int length : {1, 3, 4, 7, 28, 45}) {
    const Tokens tokens = counting(1000 * length, length);
    const bool salted = length == 7;
    const bool with_tokens = length != 45;
    One one{tokens, values_of(tokens, salted ? 5 : 0), salted ? tenant : Salt(), {}};
    one.seq = a->cache().try_open({}, one.salt).value().seq;
    REQUIRE(a->cache().append(one.seq, with_tokens ? tokens : Tokens(), one.values));
    one.tokens.resize(with_tokens ? tokens.size() : 0);
    all.push_back(one);
  }
  std::vector<transfer::Id> ids;
  for (std::size_t i = 0; i < all.size(); ++i) {
    ids.push_back(a->send(1, all[i].seq, all[i].tokens, all[i].salt, 100 + i));
  }
  run(*a, *b);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const transfer::Sent sent = expect_sent(*a, transfer::Outcome::complete);
    REQUIRE_NOTHROW(transfer::require_complete(sent));
    const transfer::Received got = expect_received(*b, transfer::Outcome::complete);
    const One& one = all[got.request - 100];
    REQUIRE(got.id == ids[got.request - 100]);
    REQUIRE(got.from == 0);
    REQUIRE(got.length == static_cast<Pos>(one.values.size()));
    REQUIRE(b->cache().length(got.seq) == got.length);
    REQUIRE((b->cache().rows(got.seq) == b->cache().rows_of(one.values)));
    if (b->cache().caches_prefixes()) {
      Tokens longer = one.tokens;
      longer.push_back(1);
      const Pos block = b->cache().block_tokens();
      REQUIRE(b->cache().match_length(longer, one.salt) == static_cast<Pos>(one.tokens.size()) / block * block);
      REQUIRE((one.tokens.empty() || b->cache().match_length(longer, Salt(SaltKind::lora, "other")) == 0));
    }
    // The receiving cache stays usable.
    const Value next = next_value(one.values.back(), 77);
    Values longer = one.values;
    longer.push_back(next);
    REQUIRE(b->cache().append(got.seq, one.tokens.empty() ? Tokens() : Tokens{77}, {next}));
    REQUIRE((b->cache().rows(got.seq) == b->cache().rows_of(longer)));
    b->cache().verify();
    b->cache().close(got.seq);
  }
  for (const One& one : all) {
    REQUIRE((a->cache().rows(one.seq) == a->cache().rows_of(one.values)));
    a->cache().close(one.seq);
  }
  require_free(*a);
  require_free(*b);
}
}  // namespace

TEMPLATE_TEST_CASE("A sequence arrives bit for bit", "[transfer]", KVC_OTHER_ELEMENTS) {
  for (const MakeEngine& from : kinds<TestType>()) {
    for (const MakeEngine& to : kinds<TestType>()) {
      check_pair(from, to);
    }
  }
}

TEST_CASE("A sequence goes from any policy, block size and layout to any other", "[transfer]") {
  const std::vector<MakeEngine> all = {maker<float, Reserve, HeadMajor>(800), maker<float, GrowBest, TokenMajor>(400),
                                       maker<float, Paged4, TokenMajor>(),    maker<float, Prefix4, HeadMajor>(),
                                       maker<float, Paged1, HeadMajor>(),     maker<float, Paged7, HeadMajor>(),
                                       maker<float, Paged7, TokenMajor>(),    maker<float, Prefix1, TokenMajor>(),
                                       maker<float, Prefix7, HeadMajor>(),    maker<float, Colliding4, TokenMajor>()};
  for (const MakeEngine& from : all) {
    for (const MakeEngine& to : all) {
      check_pair(from, to);
    }
  }
}

TEST_CASE("Full blocks of pools with the same layout leave and arrive as one span", "[transfer]") {
  using Cache = KvCache<float, Paged, HeadMajor>;
  Cache cache(snapshot_shape, {.blocks = 8, .block_tokens = 4});
  const SeqId seq = cache.open();
  auto step = cache.extend(seq, 14);
  transfer::detail::RowFinder finder;
  io::SpanList<const std::byte> spans;
  finder.add(cache, std::as_const(cache).data(), seq, 1, {4, 12}, layout::RowOrder::head_major, 4, spans);
  REQUIRE(spans.spans().size() == 2);
  REQUIRE(spans.spans()[0].size() == 4U * 3 * (5 + 3) * sizeof(float));
  spans.clear();
  finder.add(cache, std::as_const(cache).data(), seq, 1, {12, 14}, layout::RowOrder::head_major, 4, spans);
  REQUIRE(spans.spans().size() == 6);  // a partly full block: keys and values of three heads
}

TEST_CASE("A payload travels with END, and a request number with the offer", "[transfer]") {
  transport::InProcess hub({});
  const auto a = make_engine<float, Paged4>(hub, 0);
  const auto b = make_engine<float, Prefix4>(hub, 1);
  const Tokens prompt = counting(1, 9);
  const SeqId seq = a->cache().serve(prompt);
  transfer::Offer offer;
  offer.to = 1;
  offer.seq = seq;
  offer.tokens = prompt;
  offer.request = 1234567890123;
  const transfer::Id id = a->offer(offer);
  run(*a, *b);
  REQUIRE(!b->next_received());  // all rows are there, but END is missing
  REQUIRE(b->cache().match_length(counting(1, 10), {}) == 0);
  const std::vector<std::byte> payload(488, std::byte{7});
  REQUIRE_THROWS_WITH(a->finish(id, std::vector<std::byte>(489)), contains("payload.size() is 489"));
  a->finish(id, payload);
  run(*a, *b);
  const transfer::Received got = expect_received(*b, transfer::Outcome::complete);
  REQUIRE(got.request == 1234567890123);
  REQUIRE(got.payload == payload);
  REQUIRE(got.bytes == 9U * 2 * 3 * (5 + 3) * sizeof(float));
  REQUIRE(expect_sent(*a, transfer::Outcome::complete).bytes == got.bytes);
  REQUIRE(b->cache().match_length(counting(1, 10), {}) == 8);
}
