// PrefixIndex: finds the block that holds the rows of a prefix.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/memory/large_vector.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/detail/prefix_roots.hpp"

namespace kvc {
inline namespace v0 {

/// A hash table from a parent and the tokens of one block to that block. The parent of a block is the block before it
/// in its prefix, or the root of its salt. A cached block never changes, and its parent is cached; by induction its key
/// stands for the whole prefix, exactly. A hash only finds candidates: parent and tokens are always compared, and keys
/// with equal hashes are stored side by side.
///
/// Everything but the roots is allocated at construction: for each block 4 * block_tokens + 32 bytes, and 2 to 4
/// buckets of 16 bytes.
///
/// `Hash` computes the hash of a prefix from its parent's and the tokens of its last block; see ChainHash.
template <class Hash>
class PrefixIndex {
 public:
  using Parent = detail::PrefixParent;

  /// Of children with a common beginning, how many of the newest are compared.
  static constexpr int children_scanned = 32;
  /// Blocks of a prompt that are looked up at once.
  static constexpr std::size_t looked_ahead = 16;

  /// An index for blocks 0 .. blocks-1 of block_tokens tokens, none of them cached. Throws std::bad_alloc. O(blocks *
  /// block_tokens).
  PrefixIndex(Index blocks, Pos block_tokens, Hash hash)
      : hash_(hash), block_tokens_(static_cast<std::size_t>(block_tokens)), entries_(blocks), roots_(hash) {
    tokens_.resize(static_cast<std::size_t>(blocks) * block_tokens_);
    buckets_.assign(std::bit_ceil(2 * static_cast<std::size_t>(blocks)), Bucket{});
  }

  /// Tokens of a block, for writing while it is not in the index.
  [[nodiscard]] std::span<Token> tokens(BlockId block) noexcept { return {first_token(block), block_tokens_}; }
  /// Tokens of a block.
  [[nodiscard]] std::span<const Token> tokens(BlockId block) const noexcept {
    return {first_token(block), block_tokens_};
  }

  /// Whether the block is in the index. O(1), as the members up to `roots`.
  [[nodiscard]] bool contains(BlockId block) const noexcept { return entries_[block].cached; }
  /// Whether a cached block follows this one in a prefix.
  [[nodiscard]] bool has_children(BlockId block) const noexcept { return entries_[block].first_child != no_block; }
  [[nodiscard]] bool has_children(Parent parent) const noexcept { return first_child(parent) != no_block; }
  /// Of a block with cached children, the one that was inserted last.
  [[nodiscard]] BlockId newest_child(BlockId block) const noexcept { return entries_[block].first_child; }
  /// Whether the block is cached and has this parent.
  [[nodiscard]] bool is_child(BlockId block, Parent parent) const noexcept {
    return entries_[block].cached && entries_[block].parent == parent;
  }
  /// The parent of a cached block.
  [[nodiscard]] Parent parent(BlockId block) const noexcept { return entries_[block].parent; }
  /// The hash of the prefix that ends with a cached block.
  [[nodiscard]] std::uint64_t hash(BlockId block) const noexcept { return entries_[block].hash; }
  /// Cached blocks.
  [[nodiscard]] Index size() const noexcept { return size_; }
  /// The roots of the salts in use.
  [[nodiscard]] const detail::PrefixRoots<Hash>& roots() const noexcept { return roots_; }
  /// The roots of the salts in use.
  [[nodiscard]] detail::PrefixRoots<Hash>& roots() noexcept { return roots_; }

  /// The hash of the prefix that ends with `parent` and one more block of these tokens.
  [[nodiscard]] std::uint64_t chain_hash(Parent parent, std::span<const Token> tokens) const noexcept {
    return hash_(parent_hash(parent), tokens);
  }
  /// The same, with the hash of the prefix before the block.
  [[nodiscard]] std::uint64_t chain_hash(std::uint64_t parent, std::span<const Token> tokens) const noexcept {
    return hash_(parent, tokens);
  }
  /// The hash of the prefix that ends with `parent`.
  [[nodiscard]] std::uint64_t parent_hash(Parent parent) const noexcept {
    return parent.is_root() ? roots_.hash(parent) : entries_[parent.block()].hash;
  }

  /// The cached block with this key, or no_block. `tokens` is a full block; `hash` is its chain_hash. Expected O(1).
  [[nodiscard]] BlockId find(Parent parent, std::span<const Token> tokens, std::uint64_t hash) const noexcept {
    for (std::size_t i = home(hash); buckets_[i].block != no_block; i = next(i)) {
      const Bucket& bucket = buckets_[i];
      if (bucket.hash == hash && bucket.parent == parent && same_tokens(bucket.block, tokens)) {
        return bucket.block;
      }
    }
    return no_block;
  }

  /// f(block) for the cached blocks that `tokens` begin with, in order; returns the last one, or `root`.
  ///
  /// The hash of a prefix does not depend on the blocks that are found: the hashes of several blocks are computed, and
  /// their memory is prefetched, before the first of them is compared. Expected O(tokens).
  ///
  /// `prefetch_more(block)` is called for blocks that f will perhaps be called with, some time before.
  template <class F, class Prefetch>
  Parent find_prefix(Parent root, std::span<const Token> tokens, F&& f, Prefetch&& prefetch_more) const noexcept {
    std::array<std::uint64_t, looked_ahead> hashes;
    std::array<const Bucket*, looked_ahead> candidates;
    Parent parent = root;
    std::uint64_t hash = parent_hash(root);
    while (tokens.size() >= block_tokens_) {
      const std::size_t count = std::min(looked_ahead, tokens.size() / block_tokens_);
      for (std::size_t i = 0; i < count; ++i) {
        hash = hash_(hash, tokens.subspan(i * block_tokens_, block_tokens_));
        hashes[i] = hash;
        prefetch(&buckets_[home(hash)]);
      }
      for (std::size_t i = 0; i < count; ++i) {
        std::size_t bucket = home(hashes[i]);
        while (buckets_[bucket].block != no_block && buckets_[bucket].hash != hashes[i]) {
          bucket = next(bucket);
        }
        candidates[i] = &buckets_[bucket];
        if (candidates[i]->block == no_block) {
          break;  // and nothing behind it can be cached
        }
        prefetch(this->tokens(candidates[i]->block).data());
        prefetch_more(candidates[i]->block);
      }
      for (std::size_t i = 0; i < count; ++i) {
        const auto chunk = tokens.subspan(i * block_tokens_, block_tokens_);
        BlockId block = candidates[i]->block;
        if (block == no_block) {
          return parent;
        }
        if (candidates[i]->parent != parent || !same_tokens(block, chunk)) [[unlikely]] {
          block = find(parent, chunk, hashes[i]);  // another prefix has the same hash
          if (block == no_block) {
            return parent;
          }
        }
        f(block);
        parent = Parent(block);
      }
      tokens = tokens.subspan(count * block_tokens_);
    }
    return parent;
  }

  /// The same without more.
  template <class F>
  Parent find_prefix(Parent root, std::span<const Token> tokens, F&& f) const noexcept {
    return find_prefix(root, tokens, f, [](BlockId) {});
  }

  struct Partial {
    BlockId block = no_block;
    Pos count = 0;
  };
  /// The child of `parent` that begins with the most of `tokens` (at least one), among the newest `children_scanned`.
  [[nodiscard]] Partial find_longest(Parent parent, std::span<const Token> tokens) const noexcept {
    Partial best;
    for_each_partial(parent, tokens, [&](const Partial& child) { best = child.count > best.count ? child : best; });
    return best;
  }
  /// f(Partial) for the newest `children_scanned` children of `parent`, each with the number of tokens at its beginning
  /// that it has in common with `tokens`; newest first.
  template <class F>
  void for_each_partial(Parent parent, std::span<const Token> tokens, F&& f) const noexcept {
    BlockId child = first_child(parent);
    for (int i = 0; i < children_scanned && child != no_block; ++i, child = entries_[child].next_sibling) {
      const auto end = std::ranges::mismatch(this->tokens(child), tokens).in2;
      f(Partial{child, static_cast<Pos>(end - tokens.begin())});
    }
  }

  /// Prefetches the memory that find and insert will read.
  void prefetch(std::uint64_t hash) const noexcept { prefetch(&buckets_[home(hash)]); }

  /// Adds a full block under its tokens and returns no_block; if a block with its key is there, returns that one
  /// instead. Expected O(1).
  BlockId insert(BlockId block, Parent parent, std::uint64_t hash) noexcept {
    const std::span<const Token> own = std::as_const(*this).tokens(block);
    std::size_t i = home(hash);
    for (; buckets_[i].block != no_block; i = next(i)) {
      if (buckets_[i].hash == hash && buckets_[i].parent == parent && same_tokens(buckets_[i].block, own)) {
        return buckets_[i].block;
      }
    }
    buckets_[i] = {hash, block, parent};
    Entry& entry = entries_[block];
    KVC_ASSERT(!entry.cached);
    entry.hash = hash;
    entry.parent = parent;
    entry.cached = true;
    BlockId& first = first_child(parent);
    entry.next_sibling = first;
    entry.previous_sibling = no_block;
    if (first != no_block) {
      entries_[first].previous_sibling = block;
    }
    first = block;
    ++size_;
    return no_block;
  }

  /// Removes a block without children. Expected O(1).
  void erase(BlockId block) noexcept {
    Entry& entry = entries_[block];
    KVC_ASSERT(entry.cached && !has_children(block));
    if (entry.next_sibling != no_block) {
      entries_[entry.next_sibling].previous_sibling = entry.previous_sibling;
    }
    (entry.previous_sibling != no_block ? entries_[entry.previous_sibling].next_sibling : first_child(entry.parent)) =
        entry.next_sibling;
    entry.cached = false;
    empty_bucket_of(block);
    --size_;
    if (entry.parent.is_root()) {
      roots_.forget_if_unused(entry.parent);
    }
  }

  /// f(root, parent, block) for every cached block, parents before their children. O(blocks + roots).
  template <class F>
  void for_each(F&& f) const {
    roots_.for_each([&](Parent root) {
      BlockId block = roots_.first_child(root);
      while (block != no_block) {
        f(root, entries_[block].parent, block);
        BlockId next_block = entries_[block].first_child;
        while (next_block == no_block) {  // the next sibling of it, or of the closest ancestor that has one
          next_block = entries_[block].next_sibling;
          if (entries_[block].parent.is_root()) {
            break;
          }
          if (next_block == no_block) {
            block = entries_[block].parent.block();
          }
        }
        block = next_block;
      }
    });
  }

  /// Removes all blocks. O(blocks + buckets).
  void clear() noexcept {
    for (Entry& entry : entries_.values()) {
      entry.cached = false;
      entry.first_child = no_block;
    }
    std::ranges::fill(buckets_, Bucket{});
    size_ = 0;
    roots_.for_each([&](Parent root) {
      if (roots_.first_child(root) != no_block) {
        roots_.first_child(root) = no_block;
        roots_.forget_if_unused(root);
      }
    });
  }

  /// Every cached block is found under its key, its parent is cached, and it is among its parent's children. O(blocks).
  /// Throws InvariantError.
  void verify() const {
    Index cached = 0;
    Index listed = 0;
    entries_.for_each([&](BlockId block, const Entry& entry) {
      if (!entry.cached) {
        check(entry.first_child == no_block, block, "is not cached, and its children are");
        return;
      }
      ++cached;
      check(entry.parent.is_root() || entries_[entry.parent.block()].cached, block, "is cached, and its parent is not");
      check(entry.hash == chain_hash(entry.parent, tokens(block)), block, "changed its tokens while it was cached");
      check(find(entry.parent, tokens(block), entry.hash) == block, block, "is not found under its key");
      listed += count_children(Parent(block));
    });
    roots_.for_each([&](Parent root) { listed += count_children(root); });
    check(cached == size_, no_block, "(none): the number of cached blocks is wrong");
    check(listed == size_, no_block, "(none): lists of children and cached blocks differ");
    check(static_cast<Index>(buckets_.size()) - std::ranges::count(buckets_, no_block, &Bucket::block) == size_,
          no_block, "(none): buckets and cached blocks differ");
  }

 private:
  struct Entry {
    std::uint64_t hash = 0;
    Parent parent{no_block};
    BlockId first_child = no_block;
    BlockId next_sibling = no_block;
    BlockId previous_sibling = no_block;
    bool cached = false;
  };
  struct Bucket {
    std::uint64_t hash = 0;
    BlockId block = no_block;
    Parent parent{no_block};
  };

  [[nodiscard]] Token* first_token(BlockId block) noexcept {
    return tokens_.data() + static_cast<std::size_t>(block) * block_tokens_;
  }
  [[nodiscard]] const Token* first_token(BlockId block) const noexcept {
    return tokens_.data() + static_cast<std::size_t>(block) * block_tokens_;
  }
  [[nodiscard]] std::size_t home(std::uint64_t hash) const noexcept {
    return static_cast<std::size_t>(hash) & (buckets_.size() - 1);
  }
  [[nodiscard]] std::size_t next(std::size_t bucket) const noexcept { return (bucket + 1) & (buckets_.size() - 1); }

  /// Without an early end, so that whole vectors are compared: nearly always all are equal.
  [[nodiscard]] bool same_tokens(BlockId block, std::span<const Token> tokens) const noexcept {
    const Token* theirs = first_token(block);
    Token difference = 0;
    for (std::size_t i = 0; i < block_tokens_; ++i) {
      difference |= theirs[i] ^ tokens[i];
    }
    return difference == 0;
  }
  static void prefetch(const void* address) noexcept { __builtin_prefetch(address); }

  [[nodiscard]] BlockId& first_child(Parent parent) noexcept {
    return parent.is_root() ? roots_.first_child(parent) : entries_[parent.block()].first_child;
  }
  [[nodiscard]] BlockId first_child(Parent parent) const noexcept {
    return parent.is_root() ? roots_.first_child(parent) : entries_[parent.block()].first_child;
  }

  /// Linear probing without tombstones: entries that were displaced over the emptied bucket move up (Knuth, TAOCP 3,
  /// 6.4, algorithm R).
  void empty_bucket_of(BlockId block) noexcept {
    std::size_t hole = home(entries_[block].hash);
    while (buckets_[hole].block != block) {
      hole = next(hole);
    }
    const std::size_t mask = buckets_.size() - 1;
    for (std::size_t i = next(hole); buckets_[i].block != no_block; i = next(i)) {
      const std::size_t wanted = home(buckets_[i].hash);
      if (((i - wanted) & mask) >=
          ((i - hole) & mask)) {  // the hole lies between where it wanted to be and where it is
        buckets_[hole] = buckets_[i];
        hole = i;
      }
    }
    buckets_[hole] = Bucket{};
  }

  [[nodiscard]] Index count_children(Parent parent) const {
    Index count = 0;
    for (BlockId b = first_child(parent); b != no_block; b = entries_[b].next_sibling) {
      check(entries_[b].cached && entries_[b].parent == parent, b, "is in the list of a parent that is not its own");
      ++count;
    }
    return count;
  }
  static void check(bool ok, BlockId block, const char* what) {
    if (!ok) [[unlikely]] {
      throw_error(InvariantError("kvc: block " + std::to_string(to_index(block)) + " " + what));
    }
  }

  Hash hash_;
  std::size_t block_tokens_;
  BlockArray<Entry> entries_;
  detail::LargeVector<Token> tokens_;    // [blocks, block_tokens]
  detail::LargeVector<Bucket> buckets_;  // open addressing, at most half full
  detail::PrefixRoots<Hash> roots_;
  Index size_ = 0;
};

}  // namespace v0
}  // namespace kvc
