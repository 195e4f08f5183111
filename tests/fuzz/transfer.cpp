// A peer that sends anything to an engine that sends and receives at once: the engine goes on, its cache stays
// consistent, it reports nothing as complete that is not, and it references nothing once the peer is lost.
//
// The input is a list of steps. The first byte of each selects the action; the head of a message stands in the input as
// on the wire, so that the seeds are real exchanges. See `Script`.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/transfer/receiver.hpp"
#include "kvc/transfer/sender.hpp"
#include "kvc/transport/in_process.hpp"

namespace {
using namespace kvc;
using namespace kvc::transfer::detail;
using Endpoint = transport::InProcess::Endpoint;
constexpr Shape shape{.layers = 2, .kv_heads = 2, .key_dim = 1, .value_dim = 1};
constexpr Pos own_tokens = 10;
constexpr Pos pool_tokens = 64;
constexpr std::size_t most_body = 1 << 13;

void expect(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "broken: %s\n", what);
    std::abort();
  }
}

/// Reads the steps, to the end of the input.
class Script {
 public:
  explicit Script(std::span<const std::uint8_t> bytes) : rest_(bytes) {}
  [[nodiscard]] bool at_end() const noexcept { return rest_.empty(); }
  std::uint8_t byte() {
    const std::uint8_t b = rest_.empty() ? std::uint8_t{0} : rest_.front();
    rest_ = rest_.subspan(rest_.empty() ? 0 : 1);
    return b;
  }
  std::size_t number(std::size_t most) {
    const std::size_t low = byte();
    return std::min(most, low | std::size_t{byte()} << 8U);
  }
  std::span<const std::byte> bytes(std::size_t count) {
    const auto taken = rest_.first(std::min(count, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return std::as_bytes(taken);
  }

 private:
  std::span<const std::uint8_t> rest_;
};

template <class P>
class Exchange {
 public:
  explicit Exchange(const typename P::Config& config, const LayerGroups& layers = shape) : cache_(layers, config) {
    std::memset(static_cast<void*>(cache_.data()), 0, static_cast<std::size_t>(cache_.pool_bytes()));
    std::iota(prompt_.begin(), prompt_.end(), 1);
    written_ = cache_.open(prompt_).seq;
    cache_.commit(cache_.extend(written_, prompt_));
    growing_ = cache_.open();
    step_.emplace(cache_.extend(growing_, prompt_));
  }

  void run(Script script) {
    while (!script.at_end()) {
      step(script);
    }
    arrivals_.clear();
    peer_.drop(0);
    poll();
    time_ += std::chrono::hours(1);
    poll();
    expect(sender_.transfers() == 0 && receiver_.transfers() == 0 && receiver_.draining() == 0,
           "no transfer is in progress with a peer that is gone");
    step_.reset();
    cache_.close(growing_);
    cache_.close(written_);
    cache_.verify();
    expect(cache_.stats().blocks_referenced == 0 && cache_.stats().sequences == 0, "no block is referenced in the end");
  }

 private:
  void step(Script& script) {
    const std::uint8_t what = script.byte();
    const transfer::Id id = 1 + what / 32U;
    switch (what % 16) {
      case 0:
      case 1:
        return say(script, transfer::data_channel);
      case 2:
      case 3:
        return say(script, transfer::reply_channel);
      case 4:
        return poll();
      case 5:
        time_ += std::chrono::milliseconds(400);
        return poll();
      case 6:
      case 7:
        return offer(what);
      case 8:
        return sender_.ready(id, what / 16 % 2, static_cast<Pos>(script.byte() % (own_tokens + 1)));
      case 9:
        return sender_.finish(id, script.bytes(what / 32U));
      case 10:
        return sender_.cancel(id);
      case 11:
        return receiver_.cancel(1, script.byte());
      case 12:
        return listen(false);
      case 13:
        return listen(true);
      case 14:
        arrivals_.clear();  // their bodies count as received
        return;
      default:
        return (what & 16) != 0 ? mine_.drop(1) : peer_.drop(0);
    }
  }

  /// A message of the peer: the sizes of its head and of what the input has of its body, the size of its body.
  void say(Script& script, transport::Channel channel) {
    const std::size_t head_bytes = script.number(transport::max_message_head);
    const std::size_t given = script.number(most_body);
    const std::size_t body_bytes = script.number(most_body);
    const auto head = script.bytes(head_bytes);
    const auto from_input = script.bytes(std::min(given, body_bytes));
    std::vector<std::byte>& body = bodies_.emplace_back(body_bytes, std::byte{1});
    std::copy(from_input.begin(), from_input.end(), body.begin());
    const std::span<const std::byte> span(body);
    if (bodies_.size() < 200) {
      (void)peer_.try_send(0, channel, head, std::span(&span, body.empty() ? 0 : 1));
    }
  }
  void offer(std::uint8_t what) {
    if (sender_.transfers() < 8) {
      transfer::Offer offer;
      offer.to = 1;
      offer.seq = (what & 1) == 0 ? written_ : growing_;
      offer.tokens = (what & 16) == 0 ? std::span<const Token>(prompt_) : std::span<const Token>();
      offer.request = what;
      offer.deadline = (what & 32) == 0 ? transport::no_deadline : time_ + std::chrono::milliseconds(700);
      (void)sender_.offer(offer, time_);
    }
  }
  /// The peer polls, and accepts the bodies or keeps them for later.
  void listen(bool take) {
    while (auto arrival = peer_.poll(transfer::data_channel)) {
      HeadReader in(arrival->head());
      const auto head = in.take<MessageHead>();
      expect(head && head->magic == magic, "the engine says what the protocol has");
      if (head->kind == MessageKind::end) {
        ended_.insert(head->transfer);
      }
      if (take && arrival->body_bytes() > 0) {
        std::vector<std::byte> body(static_cast<std::size_t>(arrival->body_bytes()));
        const std::span<std::byte> span(body);
        (void)peer_.accept(std::move(*arrival), std::span(&span, 1));
      } else {
        arrivals_.push_back(std::move(*arrival));
      }
    }
    while (peer_.poll(transfer::reply_channel)) {
    }
  }

  void poll() {
    (void)receiver_.poll(time_);
    (void)sender_.poll(time_);
    cache_.verify();
    while (const auto sent = sender_.next()) {
      if (sent->outcome == transfer::Outcome::complete) {
        listen(false);
        expect(ended_.contains(sent->id), "complete without its end having been said");
        expect(!cache_.layers().is_plain() ||
                   sent->bytes == static_cast<std::uint64_t>(own_tokens - sent->cached) * shape.layers * token_bytes_,
               "complete with all rows sent");
      }
    }
    while (const auto got = receiver_.next()) {
      expect(got->from == 1, "from whom");
      if (got->outcome == transfer::Outcome::complete) {
        expect(cache_.length(got->seq) == got->length && 0 <= got->cached && got->cached < got->length,
               "a sequence of the length that was offered");
        expect(!cache_.layers().is_plain() ||
                   got->bytes == static_cast<std::uint64_t>(got->length - got->cached) * shape.layers * token_bytes_,
               "complete with all rows received");
        cache_.close(got->seq);
      } else {
        expect(got->seq == SeqId{} && !got->reason.empty(), "a failure has a reason and no sequence");
      }
    }
    expect(receiver_.transfers() <= 4, "as many transfers as it wants");
  }

  using Cache = KvCache<float, P>;
  static constexpr std::uint64_t token_bytes_ = 2 * 2 * sizeof(float);
  Cache cache_;
  std::vector<std::vector<std::byte>> bodies_;  // must outlive the hub
  transport::InProcess hub_{{.channels = 2, .window_messages = 8}};
  Endpoint mine_{hub_, 0};
  Endpoint peer_{hub_, 1};
  std::vector<Endpoint::Arrival> arrivals_;
  transfer::Sender<Cache, Endpoint> sender_{cache_, mine_, {.timeout = std::chrono::seconds(1), .message_bytes = 100}};
  transfer::Receiver<Cache, Endpoint> receiver_{cache_, mine_, {.timeout = std::chrono::seconds(1), .transfers = 4}};
  std::vector<Token> prompt_ = std::vector<Token>(own_tokens);
  SeqId written_{};
  SeqId growing_{};
  std::optional<typename Cache::Append> step_;
  std::set<transfer::Id> ended_;
  transport::TimePoint time_{};
};
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Script script(std::span(data, size));
  Exchange<PrefixShared<Lru>>({.blocks = pool_tokens / 4, .block_tokens = 4}).run(script);
  Exchange<Contiguous>({.sequences = 8, .max_tokens = 40, .pool_tokens = pool_tokens, .mode = Contiguous::Mode::grow})
      .run(script);
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 2, .window = 3});
  layers.add_state(7, 2);
  Exchange<PrefixShared<Lru>>({.blocks = pool_tokens / 4, .block_tokens = 4}, layers).run(script);
  return 0;
}
