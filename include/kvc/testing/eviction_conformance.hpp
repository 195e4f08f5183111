// The contract of EvictionPolicy as a suite: testing::eviction_conformance<MyEviction>().
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/retention.hpp"
#include "kvc/testing/contract.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

namespace detail {

/// Sequences that reference cached blocks, in every order of calls that a cache may make.
template <EvictionPolicy E>
class EvictionCalls {
 public:
  EvictionCalls(Index blocks, const typename E::Config& config, std::uint32_t seed)
      : subject_(kvc::detail::concat({"eviction policy ", E::name})),
        policy_(blocks, config),
        state_(seed),
        blocks_(blocks) {}

  void step() {
    now_ += random(3);
    switch (random(10)) {
      case 0:
      case 1:
        open();
        break;
      case 2:
      case 3:
      case 4:
        compute();
        break;
      case 5:
        close();
        break;
      case 6:
        truncate();
        break;
      case 7:
        merge();
        break;
      case 8:
        reclaim();
        break;
      default:
        if (random(100) == 0) {
          clear();
        } else if (policy_.size() > 0) {
          (void)checked_victim();
        }
    }
    check_size();
  }

  /// All sequences end, and all blocks go.
  void finish() {
    while (!open_.empty()) {
      close();
    }
    while (evictable() > 0) {
      check_size();
      (void)evict();
    }
    check_size();
  }

 private:
  struct Block {
    bool cached = false;
    int references = 0;
  };
  struct Sequence {
    typename E::SequenceContext context{};
    std::vector<BlockId> referenced;
  };

  [[nodiscard]] std::uint32_t random(std::uint32_t below) noexcept {
    state_ = state_ * 1664525U + 1013904223U;
    return static_cast<std::uint32_t>(std::uint64_t{state_} * below >> 32);
  }
  template <class V>
  [[nodiscard]] auto& any_of(V& values) noexcept {
    return values[random(static_cast<std::uint32_t>(values.size()))];
  }
  [[nodiscard]] bool is_evictable(BlockId block) const {
    return blocks_[block].cached && blocks_[block].references == 0;
  }
  [[nodiscard]] Index evictable() const {
    return std::ssize(blocks_that([&](BlockId block) { return is_evictable(block); }));
  }
  template <class F>
  [[nodiscard]] std::vector<BlockId> blocks_that(F&& f) const {
    std::vector<BlockId> blocks;
    blocks_.for_each([&](BlockId block, const Block&) {
      if (f(block)) {
        blocks.push_back(block);
      }
    });
    return blocks;
  }
  void check_size() const {
    expect(
        policy_.size() == evictable(), subject_,
        {"size() is ", std::to_string(policy_.size()), ", and ", std::to_string(evictable()), " blocks are evictable"});
  }

  void acquire(Sequence& s, BlockId block) {
    if (blocks_[block].references++ == 0) {
      policy_.on_acquired(block);
    }
    s.referenced.push_back(block);
  }
  void release_last(Sequence& s) {
    const BlockId block = s.referenced.back();
    s.referenced.pop_back();
    if (--blocks_[block].references == 0 && blocks_[block].cached) {
      policy_.on_evictable(s.context, block, now_);
    }
  }

  void open() {
    if (open_.size() == 4) {
      return;
    }
    const std::vector<BlockId> found =
        blocks_that([&](BlockId block) { return blocks_[block].cached && random(4) == 0; });
    Sequence s;
    const Retention retention{static_cast<int>(random(101)), random(51)};
    policy_.on_open(s.context, found, random(2) == 0 ? retention : Retention{}, now_);
    for (const BlockId block : found) {
      acquire(s, block);
    }
    open_.push_back(s);
  }
  void compute() {
    if (open_.empty()) {
      return;
    }
    Sequence& s = any_of(open_);
    std::vector<BlockId> free =
        blocks_that([&](BlockId block) { return !blocks_[block].cached && blocks_[block].references == 0; });
    if (free.empty()) {
      if (policy_.size() == 0) {
        return;
      }
      free.push_back(evict());
    }
    const BlockId block = any_of(free);
    blocks_[block] = {.cached = true, .references = 1};
    s.referenced.push_back(block);
    // Few names, so that many keys come again.
    const std::uint64_t name = random(3 * static_cast<std::uint32_t>(blocks_.size()) + 1);
    policy_.on_cached(s.context, {block, (name + 1) * 0x9e3779b97f4a7c15U, static_cast<Pos>(s.referenced.size())},
                      now_);
  }
  void close() {
    if (open_.empty()) {
      return;
    }
    const std::size_t i = random(static_cast<std::uint32_t>(open_.size()));
    std::vector<BlockId> referenced;
    std::ranges::copy_if(open_[i].referenced, std::back_inserter(referenced),
                         [&](BlockId block) { return blocks_[block].cached; });
    policy_.on_close(open_[i].context, referenced, ++now_);
    while (!open_[i].referenced.empty()) {
      release_last(open_[i]);
    }
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  void truncate() {
    if (!open_.empty()) {
      ++now_;
      Sequence& s = any_of(open_);
      for (std::size_t count = s.referenced.size() / 2; count > 0; --count) {
        release_last(s);
      }
    }
  }
  /// A sequence references a block that it did not find when it was opened.
  void merge() {
    const std::vector<BlockId> all = blocks_that([&](BlockId block) { return blocks_[block].cached; });
    if (!open_.empty() && !all.empty()) {
      Sequence& s = any_of(open_);
      const BlockId block = any_of(all);
      if (std::ranges::find(s.referenced, block) == s.referenced.end()) {
        acquire(s, block);
      }
    }
  }
  /// A referenced block is to be written again.
  void reclaim() {
    const std::vector<BlockId> own =
        blocks_that([&](BlockId block) { return blocks_[block].cached && blocks_[block].references == 1; });
    if (!own.empty()) {
      const BlockId block = any_of(own);
      blocks_[block].cached = false;
      policy_.on_uncached(block);
    }
  }
  void clear() {
    for (const BlockId block : blocks_that([&](BlockId b) { return blocks_[b].cached; })) {
      if (is_evictable(block)) {
        policy_.on_acquired(block);
      }
      policy_.on_uncached(block);
      blocks_[block].cached = false;
    }
  }
  [[nodiscard]] BlockId checked_victim() {
    const BlockId victim = policy_.victim(now_);
    const std::string name = std::to_string(to_index(victim));
    expect(0 <= to_index(victim) && to_index(victim) < blocks_.size(), subject_,
           {"victim() is ", name, ", which is no block"});
    expect(is_evictable(victim), subject_,
           {"victim() is block ", name, ", which is ", blocks_[victim].cached ? "referenced" : "not cached"});
    expect(policy_.victim(now_) == victim, subject_, {"victim() changes its mind without a call in between"});
    return victim;
  }
  /// The victim, or another block as its deepest descendant.
  [[nodiscard]] BlockId evict() {
    BlockId evicted = checked_victim();
    if (random(3) == 0) {
      const std::vector<BlockId> all = blocks_that([&](BlockId block) { return is_evictable(block); });
      evicted = any_of(all);
    }
    policy_.on_acquired(evicted);
    blocks_[evicted].cached = false;
    policy_.on_uncached(evicted);
    return evicted;
  }

  std::string subject_;
  E policy_;
  std::uint32_t state_;
  std::uint64_t now_ = 0;
  BlockArray<Block> blocks_;
  std::vector<Sequence> open_;
};

}  // namespace detail

/// Checks an eviction policy against the contract of policy/eviction/concept.hpp, in any order of calls that a cache
/// may make: every victim is evictable, size() is the number of evictable blocks, and each block goes in the end. Which
/// of the evictable blocks is the right victim is the policy's own. Takes milliseconds. Throws ContractError for the
/// first law that does not hold.
template <EvictionPolicy E>
void eviction_conformance(const typename E::Config& config = {}) {
  for (const Index blocks : {1, 2, 7, 40}) {
    detail::EvictionCalls<E> calls(blocks, config, static_cast<std::uint32_t>(blocks));
    for (int i = 0; i < 5000; ++i) {
      calls.step();
    }
    calls.finish();
  }
}

}  // namespace testing
}  // namespace v0
}  // namespace kvc
