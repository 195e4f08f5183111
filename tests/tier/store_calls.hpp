// One operation of a store, and its end.
#pragma once

#include <chrono>
#include <optional>
#include <span>
#include <vector>

#include "catch.hpp"
#include "kvc/testing/block_store_conformance.hpp"
#include "kvc/tier/block_store.hpp"

namespace kvc_test {

/// Waits for the only operation under way.
template <kvc::tier::BlockStore S>
kvc::tier::Completion end_of(S& store, kvc::tier::Ticket ticket) {
  std::optional<kvc::tier::Completion> ended;
  REQUIRE(kvc::tier::drain(store, std::chrono::steady_clock::now() + std::chrono::seconds(30),
                           [&](const kvc::tier::Completion& each) { ended = each; }));
  REQUIRE(ended);
  REQUIRE(ended->ticket == ticket);
  return *ended;
}
template <kvc::tier::BlockStore S>
kvc::tier::StoreOutcome put(S& store, const kvc::testing::detail::StoredBlock& block) {
  const kvc::io::ConstByteSpan span = block.bytes;
  return end_of(store, store.write(block.record(), std::span(&span, 1))).outcome;
}
/// Compares the bytes of a read that is done.
template <kvc::tier::BlockStore S>
kvc::tier::Completion get(S& store, const kvc::testing::detail::StoredBlock& block) {
  std::vector<std::byte> to(block.bytes.size());
  const kvc::io::ByteSpan span = to;
  const kvc::tier::Completion ended = end_of(store, store.read(block.record(), std::span(&span, 1)));
  if (ended.outcome == kvc::tier::StoreOutcome::done) {
    REQUIRE(to == block.bytes);
  }
  return ended;
}
template <kvc::tier::BlockStore S>
kvc::tier::StoreOutcome erase(S& store, const kvc::testing::detail::StoredBlock& block) {
  return end_of(store, store.erase(block.info.key)).outcome;
}

}  // namespace kvc_test
