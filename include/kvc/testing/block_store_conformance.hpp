// The contract of BlockStore as a suite: testing::block_store_conformance([] { return MyStore(...); }).
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/testing/contract.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

namespace detail {

/// A block with bytes that follow from its number. Neighbours have a common parent, salt and format.
struct StoredBlock {
  std::vector<Token> tokens;
  tier::RecordInfo info;
  std::vector<std::byte> bytes;

  StoredBlock(int number, std::size_t size, std::uint32_t parts = 1) : bytes(size) {
    for (int i = 0; i < 4; ++i) {
      tokens.push_back(number * 10 + i);
    }
    for (std::size_t i = 0; i < 32; ++i) {
      info.key.bytes[i] = static_cast<std::byte>(i * 5 + 11 * static_cast<std::size_t>(number) + 1);
      info.parent.bytes[i] = static_cast<std::byte>(i + 100);
      info.format.bytes[i] = static_cast<std::byte>(i + 50);
      info.salt.bytes[i] = static_cast<std::byte>(i + 150);
    }
    for (std::size_t i = 0; i < 4; ++i) {
      info.key.bytes[8 + i] = static_cast<std::byte>(number >> 8 * i);  // no two blocks have the same key
    }
    info.parts = parts;
    std::uint64_t state = static_cast<std::uint64_t>(number) * 2 + 1;
    for (std::byte& byte : bytes) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      byte = static_cast<std::byte>(state >> 56);
    }
  }
  /// With the tokens of this object, wherever it lies.
  [[nodiscard]] tier::RecordInfo record() const {
    tier::RecordInfo block = info;
    block.tokens = tokens;
    return block;
  }
};

/// Cuts bytes into three spans of uneven size.
template <class Byte>
[[nodiscard]] std::vector<std::span<Byte>> cut(std::span<Byte> bytes) {
  const std::size_t first = bytes.size() / 7, second = bytes.size() / 3;
  return {bytes.first(first), bytes.subspan(first, second), bytes.subspan(first + second, 0),
          bytes.subspan(first + second)};
}

/// The laws of a store, on a store that make() returns.
template <class Make>
class BlockStoreLaws {
  using Store = decltype(std::declval<Make&>()());
  using Outcome = tier::StoreOutcome;
  using Operation = tier::StoreOperation;

 public:
  BlockStoreLaws(Make& make, std::string_view name, std::size_t block_bytes)
      : make_(make), name_(name), size_(block_bytes / 12 * 12) {}

  void run() {
    what_is_written_is_read();
    parts_are_read_alone();
    others_are_refused();
    a_key_has_one_record();
    many_are_under_way();
    arguments_may_be_gone();
    cancelled_operations_are_silent();
    the_limit_holds();
    bad_arguments_throw();
    an_end_with_operations_under_way();
  }

 private:
  void expect_that(bool ok, std::initializer_list<std::string_view> parts) const { expect(ok, name_, parts); }

  [[nodiscard]] static tier::TimePoint soon() { return std::chrono::steady_clock::now() + std::chrono::seconds(30); }

  /// Waits for this operation; no other may be under way.
  tier::Completion finish(Store& store, tier::Ticket ticket, Operation operation) const {
    expect_that(store.under_way() == 1, {"under_way() does not count an operation that was begun"});
    std::optional<tier::Completion> ended;
    (void)tier::drain(store, soon(), [&](const tier::Completion& each) {
      expect_that(!ended, {"poll() returns a completion twice, or one of no operation"});
      ended = each;
    });
    expect_that(ended.has_value(), {"an operation does not end within 30 seconds"});
    expect_that(ended->ticket == ticket, {"poll() returns another ticket than that of the operation"});
    expect_that(ended->operation == operation, {"poll() returns another kind of operation"});
    expect_that(store.under_way() == 0 && !store.poll(), {"an operation is still under way after it was polled"});
    return *ended;
  }
  tier::Completion write(Store& store, const StoredBlock& block) const {
    const auto spans = cut(std::span(block.bytes));
    return finish(store, store.write(block.record(), spans), Operation::write);
  }
  void must_write(Store& store, const StoredBlock& block) const {
    const tier::Completion ended = write(store, block);
    expect_that(ended.outcome == Outcome::done, {"a write to a store with room is not done"});
    expect_that(ended.count == block.bytes.size(), {"the completion of a write has another count of bytes"});
  }
  /// Reads `wanted`, and compares the bytes with those of `block` if it is done.
  tier::Completion read(Store& store, const tier::RecordInfo& wanted, const StoredBlock& block) const {
    std::vector<std::byte> to(block.bytes.size(), std::byte{0xee});
    const std::vector<std::span<std::byte>> spans = cut(std::span(to));
    const tier::Completion ended = finish(store, store.read(wanted, spans), Operation::read);
    expect_that(ended.outcome != Outcome::done || to == block.bytes, {"a read that is done gives wrong bytes"});
    expect_that(ended.outcome != Outcome::done || ended.count == to.size(), {"a read has another count of bytes"});
    expect_that(ended.outcome == Outcome::refused || ended.refusal == tier::Refusal::none,
                {"a completion gives a reason for a refusal that is none"});
    return ended;
  }
  [[nodiscard]] bool has(Store& store, const tier::BlockKey& key) const {
    std::uint8_t found = 7;
    const auto ended = finish(store, store.lookup(std::span(&key, 1), std::span(&found, 1)), Operation::lookup);
    expect_that(ended.outcome == Outcome::done && found <= 1 && ended.count == found, {"a lookup is not answered"});
    return found == 1;
  }

  void what_is_written_is_read() {
    Store store = make_();
    const StoredBlock a(1, size_), b(2, size_), empty(3, 0);
    expect_that(store.under_way() == 0 && !store.poll(), {"a new store has operations under way"});
    expect_that(!store.wait(std::chrono::steady_clock::now() + std::chrono::hours(1)),
                {"wait() says that poll() has news when no operation is under way"});
    const tier::StoreStats before = store.stats();
    expect_that(!has(store, a.info.key), {"a lookup finds a key that was never written"});
    expect_that(read(store, a.record(), a).outcome == Outcome::missing, {"a read of nothing is not `missing`"});
    expect_that(finish(store, store.erase(a.info.key), Operation::erase).outcome == Outcome::missing,
                {"an erase of nothing is not `missing`"});
    must_write(store, a);
    must_write(store, empty);
    expect_that(has(store, a.info.key), {"a lookup does not find what was written"});
    expect_that(!has(store, b.info.key), {"a lookup finds a key that was never written"});
    expect_that(read(store, a.record(), a).outcome == Outcome::done, {"what was written cannot be read"});
    expect_that(read(store, a.record(), a).outcome == Outcome::done, {"what was read cannot be read again"});
    expect_that(read(store, empty.record(), empty).outcome == Outcome::done, {"a block of no bytes cannot be read"});
    const tier::StoreStats now = store.stats();
    expect_that(now.reads - before.reads == 3 && now.bytes_read - before.bytes_read == 2 * size_ &&
                    now.writes - before.writes == 2 && now.bytes_written - before.bytes_written == size_ &&
                    now.lookups - before.lookups == 3 && now.lookups_found - before.lookups_found == 1 &&
                    now.missing - before.missing == 2 && now.failed == before.failed,
                {"stats() counts other operations than there were"});
    expect_that(finish(store, store.erase(a.info.key), Operation::erase).outcome == Outcome::done,
                {"an erase of a record is not done"});
    expect_that(!has(store, a.info.key) && read(store, a.record(), a).outcome == Outcome::missing,
                {"an erased record is found"});
    expect_that(store.stats().erases - before.erases == 1, {"stats() does not count an erase"});
    must_write(store, a);
    expect_that(read(store, a.record(), a).outcome == Outcome::done,
                {"what was written after an erase cannot be read"});
    (void)finish(store, store.erase(a.info.key), Operation::erase);
    (void)finish(store, store.erase(empty.info.key), Operation::erase);
  }

  void parts_are_read_alone() {
    Store store = make_();
    const StoredBlock block(4, size_, 4);
    must_write(store, block);
    for (std::uint32_t first = 0; first < 4; ++first) {
      for (std::uint32_t count = 1; first + count <= 4; ++count) {
        std::vector<std::byte> to(size_ / 4 * count);
        const auto spans = cut(std::span(to));
        const tier::Completion ended =
            finish(store, store.read(block.record(), spans, {first, count}), Operation::read);
        expect_that(ended.outcome == Outcome::done && ended.count == to.size(), {"a part of a record cannot be read"});
        const auto part = std::span(block.bytes).subspan(size_ / 4 * first, to.size());
        expect_that(std::equal(to.begin(), to.end(), part.begin()), {"a read of parts gives wrong bytes"});
      }
    }
    (void)finish(store, store.erase(block.info.key), Operation::erase);
  }

  void others_are_refused() {
    Store store = make_();
    const StoredBlock block(5, size_, 2);
    std::vector<Token> others = block.tokens;
    others.back() ^= 1;
    const auto refuses = [&](auto change, tier::Refusal reason, std::size_t bytes) {
      must_write(store, block);  // a store may remove what it refused
      const std::uint64_t refused = store.stats().refused;
      tier::RecordInfo wanted = block.record();
      change(wanted);
      std::vector<std::byte> to(bytes);
      const std::span<std::byte> span = to;
      const tier::Completion ended = finish(store, store.read(wanted, std::span(&span, 1)), Operation::read);
      const std::string text(tier::to_text(reason));
      expect_that(ended.outcome != Outcome::done, {"a read is done although ", text});
      expect_that(ended.outcome == Outcome::refused && ended.refusal == reason,
                  {"a read is not refused with the reason that ", text});
      expect_that(store.stats().refused == refused + 1, {"stats() does not count what was refused"});
    };
    refuses([](tier::RecordInfo& r) { r.format.bytes[31] ^= std::byte{1}; }, tier::Refusal::format, size_);
    refuses([](tier::RecordInfo& r) { r.salt.bytes[0] ^= std::byte{1}; }, tier::Refusal::salt, size_);
    refuses([](tier::RecordInfo& r) { r.group = 1; }, tier::Refusal::group, size_);
    refuses([](tier::RecordInfo& r) { r.parent.bytes[9] ^= std::byte{1}; }, tier::Refusal::parent, size_);
    refuses([&](tier::RecordInfo& r) { r.tokens = others; }, tier::Refusal::tokens, size_);
    refuses([&](tier::RecordInfo& r) { r.tokens = r.tokens.first(3); }, tier::Refusal::tokens, size_);
    refuses([](tier::RecordInfo& r) { r.parts = 1; }, tier::Refusal::size, size_);
    refuses([](tier::RecordInfo&) {}, tier::Refusal::size, size_ - 2);
    refuses([](tier::RecordInfo&) {}, tier::Refusal::size, size_ + 2);
    (void)finish(store, store.erase(block.info.key), Operation::erase);
  }

  void a_key_has_one_record() {
    Store store = make_();
    const StoredBlock first(6, size_);
    StoredBlock second(7, size_ / 2);
    second.info.key = first.info.key;
    must_write(store, first);
    must_write(store, first);
    expect_that(read(store, first.record(), first).outcome == Outcome::done, {"what was written twice cannot be read"});
    must_write(store, second);
    expect_that(read(store, second.record(), second).outcome == Outcome::done,
                {"a record is not replaced by that of another block"});
    expect_that(read(store, first.record(), first).outcome != Outcome::done, {"a record that was replaced is read"});
    expect_that(finish(store, store.erase(first.info.key), Operation::erase).outcome != Outcome::failed &&
                    !has(store, first.info.key),
                {"a key is found after an erase"});
  }

  void many_are_under_way() {
    Store store = make_();
    std::vector<StoredBlock> blocks;
    for (int i = 0; i < 8; ++i) {
      blocks.emplace_back(20 + i, size_ / 8 / 12 * 12 + static_cast<std::size_t>(i) * 12, 3);
    }
    std::map<tier::Ticket, int> under_way;
    tier::Ticket last = 0;
    const auto is_begun = [&](tier::Ticket ticket, int i) {
      expect_that(ticket > last, {"tickets do not grow"});
      last = ticket;
      under_way.emplace(ticket, i);
      expect_that(store.under_way() == under_way.size(), {"under_way() does not count the operations"});
    };
    const auto all_end = [&](Operation operation) {
      const bool all = tier::drain(store, soon(), [&](const tier::Completion& ended) {
        expect_that(under_way.erase(ended.ticket) == 1, {"poll() returns a completion twice, or one of no operation"});
        expect_that(ended.operation == operation && ended.outcome == Outcome::done,
                    {"one of several operations under way is not done"});
      });
      expect_that(all && under_way.empty(), {"operations do not end within 30 seconds, or are lost"});
    };
    for (int i = 0; i < 8; ++i) {
      const io::ConstByteSpan span = blocks[static_cast<std::size_t>(i)].bytes;
      is_begun(store.write(blocks[static_cast<std::size_t>(i)].record(), std::span(&span, 1)), i);
    }
    all_end(Operation::write);
    std::vector<std::vector<std::byte>> to;
    for (int round = 0; round < 3; ++round) {
      for (int i = 0; i < 8; ++i) {
        const StoredBlock& block = blocks[static_cast<std::size_t>(i)];
        to.emplace_back(block.bytes.size());
        const io::ByteSpan span = to.back();
        is_begun(store.read(block.record(), std::span(&span, 1)), i);
      }
    }
    all_end(Operation::read);
    for (std::size_t i = 0; i < to.size(); ++i) {
      expect_that(to[i] == blocks[i % 8].bytes, {"one of several reads under way gives wrong bytes"});
    }
    std::vector<tier::BlockKey> keys{StoredBlock(19, 0).info.key};
    for (const StoredBlock& block : blocks) {
      keys.push_back(block.info.key);
    }
    std::vector<std::uint8_t> found(keys.size(), 9);
    const tier::Completion looked = finish(store, store.lookup(keys, found), Operation::lookup);
    expect_that(looked.count == 8 && found[0] == 0 && std::count(found.begin(), found.end(), 1) == 8,
                {"a lookup of several keys gives wrong answers"});
    for (int i = 0; i < 8; ++i) {
      is_begun(store.erase(keys[static_cast<std::size_t>(i) + 1]), i);
    }
    all_end(Operation::erase);
  }

  void arguments_may_be_gone() {
    Store store = make_();
    const StoredBlock block(40, size_);
    std::vector<std::byte> to(size_);
    for (const bool writes : {true, false}) {
      tier::Ticket ticket = 0;
      {
        StoredBlock copy = block;  // the call sees these lists; only the bytes stay
        std::vector<io::ConstByteSpan> from = cut(std::span(block.bytes));
        std::vector<io::ByteSpan> into = cut(std::span(to));
        ticket = writes ? store.write(copy.record(), from) : store.read(copy.record(), into);
        std::fill(copy.tokens.begin(), copy.tokens.end(), -1);
        std::fill(from.begin(), from.end(), io::ConstByteSpan());
        std::fill(into.begin(), into.end(), io::ByteSpan());
      }
      const tier::Completion ended = finish(store, ticket, writes ? Operation::write : Operation::read);
      expect_that(ended.outcome == Outcome::done, {"an operation uses its arguments after the call"});
    }
    expect_that(to == block.bytes, {"an operation uses its lists of spans after the call"});
    expect_that(read(store, block.record(), block).outcome == Outcome::done,
                {"a write uses its tokens after the call"});
    (void)finish(store, store.erase(block.info.key), Operation::erase);
  }

  void cancelled_operations_are_silent() {
    Store store = make_();
    const StoredBlock block(50, size_);
    expect_that(!store.cancel(0) && !store.cancel(12345), {"cancel() of no operation is true"});
    must_write(store, block);
    const io::ConstByteSpan from = block.bytes;
    const tier::Ticket polled = store.write(block.record(), std::span(&from, 1));
    (void)finish(store, polled, Operation::write);
    expect_that(!store.cancel(polled), {"cancel() of an operation that was polled is true"});
    std::vector<std::vector<std::byte>> to(6, std::vector<std::byte>(size_));
    std::map<tier::Ticket, std::size_t> reads;
    for (std::size_t i = 0; i < to.size(); ++i) {
      const io::ByteSpan span = to[i];
      reads.emplace(store.read(block.record(), std::span(&span, 1)), i);
    }
    std::vector<std::size_t> gone;
    for (auto each = reads.begin(); each != reads.end();) {
      if (each->second % 2 == 1 && store.cancel(each->first)) {
        expect_that(!store.cancel(each->first), {"cancel() is true twice for an operation"});
        std::fill(to[each->second].begin(), to[each->second].end(), std::byte{0x55});
        gone.push_back(each->second);
        each = reads.erase(each);
      } else {
        ++each;
      }
    }
    expect_that(store.under_way() == reads.size(), {"a cancelled operation is still under way"});
    const bool all = tier::drain(store, soon(), [&](const tier::Completion& ended) {
      expect_that(reads.erase(ended.ticket) == 1, {"poll() returns an operation that was cancelled"});
      expect_that(ended.outcome == Outcome::done, {"an operation that was not cancelled is not done"});
    });
    expect_that(all && reads.empty(), {"an operation that was not cancelled does not end"});
    for (std::size_t i = 0; i < to.size(); ++i) {
      const bool is_gone = std::find(gone.begin(), gone.end(), i) != gone.end();
      expect_that(
          is_gone ? std::count(to[i].begin(), to[i].end(), std::byte{0x55}) == std::ssize(to[i]) : to[i] == block.bytes,
          {is_gone ? "a cancelled read writes to its spans" : "a read beside a cancelled one gives wrong bytes"});
    }
    (void)finish(store, store.erase(block.info.key), Operation::erase);
  }

  void the_limit_holds() {
    Store store = make_();
    const std::uint64_t most = store.capacity();
    if (most > std::uint64_t{64} << 20) {
      return;  // takes too long to fill
    }
    const StoredBlock large(60, static_cast<std::size_t>(most) + 1);
    const std::uint64_t full = store.stats().full;
    expect_that(write(store, large).outcome == Outcome::full, {"a record that is larger than the store is not `full`"});
    expect_that(!has(store, large.info.key), {"a record that was `full` is found"});
    expect_that(store.stats().full == full + 1, {"stats() does not count what was `full`"});
    const std::size_t count = static_cast<std::size_t>(most) / size_ + 3;
    std::vector<bool> written;
    for (std::size_t i = 0; i < count; ++i) {
      const tier::Completion ended = write(store, StoredBlock(static_cast<int>(100 + i), size_));
      expect_that(ended.outcome == Outcome::done || ended.outcome == Outcome::full,
                  {"a write to a store that has no room is neither done nor `full`"});
      written.push_back(ended.outcome == Outcome::done);
      expect_that(store.stats().bytes <= most, {"a store uses more bytes than its capacity"});
    }
    expect_that(written.front(), {"the first write to a store is not done"});
    for (std::size_t i = 0; i < count; ++i) {
      const StoredBlock block(static_cast<int>(100 + i), size_);
      const Outcome outcome = read(store, block.record(), block).outcome;
      expect_that(outcome == Outcome::done ? written[i] : outcome == Outcome::missing,
                  {"a record of a full store is neither there nor missing"});
      expect_that(i + 1 < count || !written[i] || outcome == Outcome::done, {"the latest write is lost"});
      (void)finish(store, store.erase(block.info.key), Operation::erase);
    }
    const StoredBlock block(99, size_);
    must_write(store, block);
    (void)finish(store, store.erase(block.info.key), Operation::erase);
  }

  void bad_arguments_throw() {
#if KVC_HAS_EXCEPTIONS
    Store store = make_();
    const StoredBlock block(70, size_);
    std::vector<std::byte> to(size_);
    const io::ByteSpan into = to;
    const io::ConstByteSpan from = block.bytes;
    std::uint8_t found[2] = {};
    const auto throws = [&](std::string_view what, auto call) {
      bool is_thrown = false;
      try {
        (void)call();
      } catch (const std::invalid_argument&) {
        is_thrown = true;
      }
      expect_that(is_thrown, {what, " does not throw std::invalid_argument"});
      expect_that(store.under_way() == 0, {what, " begins an operation"});
    };
    throws("a lookup with fewer answers than keys",
           [&] { return store.lookup(std::span(&block.info.key, 1), std::span(found, 0)); });
    tier::RecordInfo wrong = block.record();
    wrong.parts = 0;
    throws("a write of a block without parts", [&] { return store.write(wrong, std::span(&from, 1)); });
    throws("a read of a block without parts", [&] { return store.read(wrong, std::span(&into, 1)); });
    wrong.parts = 5;
    const io::ConstByteSpan odd = from.first(size_ - 1 - (size_ - 1) % 5 + 1);
    throws("a write of parts of unequal size", [&] { return store.write(wrong, std::span(&odd, 1)); });
    throws("a read of parts beyond the last", [&] { return store.read(block.record(), std::span(&into, 1), {1, 1}); });
#endif
  }

  void an_end_with_operations_under_way() {
    const StoredBlock block(80, size_);
    std::vector<std::byte> to(size_);
    const io::ByteSpan into = to;
    const io::ConstByteSpan from = block.bytes;
    {
      Store store = make_();
      for (int i = 0; i < 4; ++i) {
        (void)store.write(block.record(), std::span(&from, 1));
        (void)store.read(block.record(), std::span(&into, 1));
      }
    }
    std::fill(to.begin(), to.end(), std::byte{0x33});  // a sanitizer sees who else touches it
  }

  Make& make_;
  std::string_view name_;
  std::size_t size_;
};

}  // namespace detail

/// Checks the contract of BlockStore on stores that `make()` returns by value: each is used and destroyed before the
/// next is made. They may be stores of the same records, if nobody else uses them: the suite erases what it wrote.
/// `name` is what errors call the store. `block_bytes`: the size of the blocks that it writes, at least 960; the store
/// must have room for eight of them. Where capacity() is at most 64 MiB, the suite fills it. Throws ContractError for
/// the first law that does not hold. Damage on the way is not checked here: only the store knows where its bytes lie.
template <class Make>
void block_store_conformance(Make&& make, std::string_view name = "the store", std::size_t block_bytes = 4800) {
  static_assert(tier::BlockStore<decltype(make())>, "kvc: make() must return a BlockStore");
  require(block_bytes >= 960, "block_bytes", block_bytes, "at least 960");
  detail::BlockStoreLaws<std::remove_reference_t<Make>>(make, name, block_bytes).run();
}

}  // namespace testing
}  // namespace v0
}  // namespace kvc
