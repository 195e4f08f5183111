// KeyTable: finds nodes by their keys. Standard library only.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "kvc/memory/large_vector.hpp"
#include "kvc/tier/key.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

#if defined(__GNUC__) || defined(__clang__)
inline void prefetch_line(const void* p) noexcept { __builtin_prefetch(p); }
#else
inline void prefetch_line(const void*) noexcept {}
#endif

/// A hash table of nodes, which stay where they are. A bucket has 32 bits of the hash and the number of a node, so a
/// search reads one line of the table and one node, and `find_all` waits for those of many keys at once. Linear
/// probing; an erase moves the buckets behind it up (Knuth, TAOCP 3, 6.4, algorithm R). Node is a std::pair<const
/// BlockKey, ...> that can be made from a key alone.
template <class Node>
class KeyTable {
 public:
  KeyTable() = default;
  KeyTable(const KeyTable&) = delete;
  KeyTable& operator=(const KeyTable&) = delete;
  ~KeyTable() {
    for_each([](Node& node) { std::destroy_at(&node); });
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Makes room for so many nodes. Throws std::bad_alloc; nothing has changed then.
  void reserve(std::size_t nodes) {
    const std::size_t wanted = std::bit_ceil(nodes + nodes / 2 + 16);
    if (wanted > buckets_.size()) {
      grow(wanted);
    }
  }

  [[nodiscard]] Node* find(const BlockKey& key) const noexcept {
    return buckets_.empty() ? nullptr : find_from(hash(key), key);
  }
  /// Calls each(i, node) for every key, with nullptr if it has none.
  template <class F>
  void find_all(std::span<const BlockKey> keys, F&& each) const {
    constexpr std::size_t together = 16;
    for (std::size_t begin = 0; begin < keys.size(); begin += together) {
      const std::size_t end = std::min(keys.size(), begin + together);
      if (!buckets_.empty()) {
        for (std::size_t i = begin; i < end; ++i) {
          prefetch_line(&buckets_[hash(keys[i]) & mask()]);
        }
        for (std::size_t i = begin; i < end; ++i) {
          const std::uint32_t tag = hash(keys[i]);
          if (const Bucket bucket = buckets_[tag & mask()]; bucket.node != 0 && bucket.tag == tag) {
            prefetch_line(&node(bucket.node));
          }
        }
      }
      for (std::size_t i = begin; i < end; ++i) {
        each(i, find(keys[i]));
      }
    }
  }
  /// The node of a key; makes it if there is none, and says so. Throws std::bad_alloc; nothing has changed then.
  std::pair<Node*, bool> emplace(const BlockKey& key) {
    if (Node* const found = find(key)) {
      return {found, false};
    }
    if ((size_ + 1) * 4 > buckets_.size() * 3) {
      grow(std::max<std::size_t>(64, 2 * buckets_.size()));
    }
    if (free_.empty() && used_ % chunk_nodes == 0) {
      chunks_.push_back(std::unique_ptr<Chunk>(new Chunk));  // its bytes need no zeros
      free_.reserve(chunks_.size() * chunk_nodes);           // so that an erase needs no memory
    }
    std::uint32_t number = 0;
    if (free_.empty()) {
      number = static_cast<std::uint32_t>(++used_);
    } else {
      number = free_.back();
      free_.pop_back();
    }
    Node* const made = ::new (place(number)) Node(std::piecewise_construct, std::forward_as_tuple(key), std::tuple<>());
    put({hash(key), number});
    ++size_;
    return {made, true};
  }
  /// Removes a node, which is of this table.
  void erase(Node& gone) noexcept {
    std::size_t at = hash(gone.first) & mask();
    while (buckets_[at].node == 0 || &node(buckets_[at].node) != &gone) {
      at = (at + 1) & mask();
    }
    const std::uint32_t number = buckets_[at].node;
    for (std::size_t next = (at + 1) & mask(); buckets_[next].node != 0; next = (next + 1) & mask()) {
      if (((next - buckets_[next].tag) & mask()) >= ((next - at) & mask())) {  // may stand before its present place
        buckets_[at] = buckets_[next];
        at = next;
      }
    }
    buckets_[at] = {};
    std::destroy_at(&gone);
    free_.push_back(number);
    --size_;
  }
  /// Calls each(node) for all, in any order; it must not make or erase any.
  template <class F>
  void for_each(F&& each) {
    for (const Bucket& bucket : buckets_) {
      if (bucket.node != 0) {
        each(node(bucket.node));
      }
    }
  }

 private:
  static constexpr std::size_t chunk_nodes = std::size_t{1} << 10;
  struct Bucket {
    std::uint32_t tag = 0;
    std::uint32_t node = 0;  // its number, from 1; 0: empty
  };
  struct Chunk {
    alignas(Node) std::byte bytes[chunk_nodes * sizeof(Node)];
  };

  [[nodiscard]] static std::uint32_t hash(const BlockKey& key) noexcept {
    return static_cast<std::uint32_t>(BlockKeyHash{}(key));
  }
  [[nodiscard]] std::size_t mask() const noexcept { return buckets_.size() - 1; }
  [[nodiscard]] Node& node(std::uint32_t number) const noexcept {
    return *std::launder(reinterpret_cast<Node*>(place(number)));
  }
  [[nodiscard]] std::byte* place(std::uint32_t number) const noexcept {
    const std::size_t index = number - std::size_t{1};
    return chunks_[index / chunk_nodes]->bytes + index % chunk_nodes * sizeof(Node);
  }
  [[nodiscard]] Node* find_from(std::uint32_t tag, const BlockKey& key) const noexcept {
    for (std::size_t at = tag & mask(); buckets_[at].node != 0; at = (at + 1) & mask()) {
      if (buckets_[at].tag == tag && node(buckets_[at].node).first == key) {
        return &node(buckets_[at].node);
      }
    }
    return nullptr;
  }
  void put(Bucket bucket) noexcept {
    std::size_t at = bucket.tag & mask();
    while (buckets_[at].node != 0) {
      at = (at + 1) & mask();
    }
    buckets_[at] = bucket;
  }
  void grow(std::size_t count) {
    kvc::detail::LargeVector<Bucket> old(count);
    old.swap(buckets_);
    for (const Bucket& bucket : old) {
      if (bucket.node != 0) {
        put(bucket);
      }
    }
  }

  kvc::detail::LargeVector<Bucket> buckets_;  // a power of two, or none
  std::vector<std::unique_ptr<Chunk>> chunks_;
  std::vector<std::uint32_t> free_;  // numbers of nodes
  std::size_t used_ = 0;             // numbers that were ever given out
  std::size_t size_ = 0;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
