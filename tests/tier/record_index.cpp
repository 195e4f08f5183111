// RecordIndex beside a plain model of it, and OperationQueue with several lanes.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "../random_source.hpp"
#include "catch.hpp"
#include "kvc/tier/detail/operation_queue.hpp"
#include "kvc/tier/detail/record_index.hpp"

namespace {
using namespace kvc;
using namespace kvc::tier;

/// Keys of which many have the same low bits, so that searches meet others.
BlockKey crowded_key(int number) {
  BlockKey key;
  const std::uint64_t word = static_cast<std::uint64_t>(number % 7) * 0x100000001 + (number % 3 == 0 ? 0xfffffff0U : 0);
  std::memcpy(key.bytes.data(), &word, sizeof word);
  std::memcpy(key.bytes.data() + 16, &number, sizeof number);
  return key;
}

struct ModelRecord {
  int parent;
  int value;
  int used;
};
}  // namespace

TEST_CASE("The index of records finds, counts children and chooses victims as a plain model does", "[tier][index]") {
  kvc_test::Random random(kvc_test::seed_or(11));
  tier::detail::RecordIndex<int> index;
  std::map<int, ModelRecord> model;
  int clock = 0;
  const auto victim_of_model = [&]() -> std::optional<int> {
    std::optional<int> oldest;
    for (const auto& [number, record] : model) {
      bool has_child = false;
      for (const auto& [other, child] : model) {
        has_child = has_child || (other != number && child.parent == number);
      }
      if (!has_child && (!oldest || record.used < model.at(*oldest).used)) {
        oldest = number;
      }
    }
    return oldest;
  };
  for (int i = 0; i < 3000; ++i) {
    CAPTURE(i);
    const int number = random.between(0, 59);
    const BlockKey key = crowded_key(number);
    auto* const record = index.find(key);
    REQUIRE((record != nullptr) == model.contains(number));
    if (record == nullptr) {
      const int parent = random.one_in(9) ? number : random.between(0, number);  // chains, roots, and itself
      index.insert(key, crowded_key(parent), i);
      model[number] = {parent, i, ++clock};
    } else if (random.one_in(2)) {
      REQUIRE(record->second.value == model.at(number).value);
      index.touch(*record);
      model.at(number).used = ++clock;
    } else if (auto* const victim = random.one_in(2) ? index.victim() : record) {
      for (auto each = model.begin(); each != model.end(); ++each) {
        if (crowded_key(each->first) == victim->first) {
          model.erase(each);
          break;
        }
      }
      index.erase(*victim);
    }
    REQUIRE(index.size() == model.size());
    if (i % 8 == 0) {
      const auto oldest = victim_of_model();
      REQUIRE((index.victim() != nullptr) == oldest.has_value());
      REQUIRE((!oldest || index.victim()->first == crowded_key(*oldest)));
      std::vector<BlockKey> keys;
      for (int k = 0; k < 60; ++k) {
        keys.push_back(crowded_key(k));
      }
      std::size_t asked = 0;
      index.find_all(keys, [&](std::size_t k, bool is_there) {
        REQUIRE(is_there == model.contains(static_cast<int>(k)));
        ++asked;
      });
      REQUIRE(asked == 60);
    }
  }
  std::size_t count = 0;
  index.for_each([&](auto&) { ++count; });
  REQUIRE(count == model.size());
}

TEST_CASE("Records that are one another's parents can be evicted", "[tier][index]") {
  tier::detail::RecordIndex<int> index;
  for (int i = 0; i < 3; ++i) {  // 0 <- 1 <- 2 <- 0, and 3 behind them
    index.insert(crowded_key(i), crowded_key((i + 2) % 3), i);
  }
  index.insert(crowded_key(3), crowded_key(0), 3);
  REQUIRE(index.victim()->second.value == 3);
  for (std::size_t left = 4; left > 0; --left) {
    REQUIRE(index.size() == left);
    REQUIRE(index.victim() != nullptr);
    index.erase(*index.victim());
  }
  REQUIRE(index.victim() == nullptr);
}

TEST_CASE("A lookup that several lanes share ends when all have ended, and is cancelled as one", "[tier][index]") {
  tier::detail::OperationQueue queue(3);
  const BlockKey key;
  std::uint8_t found = 0;
  const std::span<const BlockKey> keys(&key, 1);
  const std::span<std::uint8_t> answers(&found, 1);
  const Ticket first = queue.add_to_all(keys, answers);
  const Ticket second = queue.add_to_all(keys, answers);
  const Ticket third = queue.add(tier::detail::Operation::erase(key), 1);
  REQUIRE(first == 1);
  REQUIRE(third == 3);
  REQUIRE(queue.under_way() == 3);
  const auto a = queue.take(0);
  REQUIRE(a->ticket == first);
  REQUIRE(!queue.cancel(first));  // a lane is at it
  REQUIRE(queue.cancel(second));
  REQUIRE(!queue.cancel(second));
  REQUIRE(!queue.try_take(0));
  queue.end(*a, {StoreOutcome::done, {}, 1});
  REQUIRE(!queue.poll());
  const auto b = queue.take(1);
  REQUIRE(b->ticket == first);
  queue.end(*b, {});
  const auto c = queue.take(2);
  queue.end(*c, {StoreOutcome::done, {}, 0});
  const auto ended = queue.poll();
  REQUIRE(ended->ticket == first);
  REQUIRE(ended->outcome == StoreOutcome::done);
  REQUIRE(ended->count == 1);
  const auto erase = queue.take(1);
  REQUIRE(erase->ticket == third);
  queue.end(*erase, {StoreOutcome::missing, {}, 0});
  REQUIRE(queue.cancel(third));  // ended, and not polled
  REQUIRE(queue.under_way() == 0);
  REQUIRE(!queue.wait(TimePoint::max()));
  queue.stop();
  REQUIRE(!queue.take(2));
}
