// PrefixIndex: from (parent, tokens of one block) to the block that holds them.
//
// The parent of a block is the block before it in its prefix, or the root of its salt. A cached block never changes and
// has its parent cached, so by induction its key stands for the whole prefix, exactly. A hash only finds candidates:
// parent and tokens are always compared, and keys with equal hashes live side by side.
//
// Everything but the roots is allocated at construction: 4 * block_tokens + 32 bytes per block, and 2 to 4 buckets of
// 16.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/memory/large_vector.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/salt.hpp"

namespace kvc {
inline namespace v0 {

/// `Hash` computes the hash of a prefix from its parent's and the tokens of its last block; see ChainHash.
template <class Hash>
class PrefixIndex {
 public:
  /// A block, or the root of a salt.
  class Parent {
   public:
    constexpr explicit Parent(BlockId block) noexcept : id_(static_cast<std::int32_t>(block)) {}
    static constexpr Parent root(std::int32_t root) noexcept { return Parent(BlockId{-1 - root}); }
    [[nodiscard]] constexpr bool is_root() const noexcept { return id_ < 0; }
    /// The block; not of a root.
    [[nodiscard]] constexpr BlockId block() const noexcept { return BlockId{id_}; }
    /// The number of a root; not of a block.
    [[nodiscard]] constexpr std::size_t root_index() const noexcept { return static_cast<std::size_t>(-1 - id_); }
    friend constexpr bool operator==(Parent, Parent) = default;

   private:
    std::int32_t id_;
  };

  /// Of children with a common beginning, how many of the newest are compared.
  static constexpr int children_scanned = 32;
  /// Blocks of a prompt that are looked up at once.
  static constexpr std::size_t looked_ahead = 16;

  PrefixIndex(Index blocks, Pos block_tokens, Hash hash)
      : hash_(hash), block_tokens_(static_cast<std::size_t>(block_tokens)), entries_(blocks) {
    tokens_.resize(static_cast<std::size_t>(blocks) * block_tokens_);
    buckets_.assign(std::bit_ceil(2 * static_cast<std::size_t>(blocks)), Bucket{});
    (void)acquire_root(Salt{});  // the root of those who give no salt stays
  }

  /// Tokens of a block, for writing while it is not in the index.
  [[nodiscard]] std::span<Token> tokens(BlockId block) noexcept { return {first_token(block), block_tokens_}; }
  [[nodiscard]] std::span<const Token> tokens(BlockId block) const noexcept {
    return {first_token(block), block_tokens_};
  }

  [[nodiscard]] bool contains(BlockId block) const noexcept { return entries_[block].cached; }
  [[nodiscard]] bool has_children(BlockId block) const noexcept { return entries_[block].first_child != no_block; }
  /// Of a block with cached children, the one that was inserted last.
  [[nodiscard]] BlockId newest_child(BlockId block) const noexcept { return entries_[block].first_child; }
  [[nodiscard]] bool is_child(BlockId block, Parent parent) const noexcept {
    return entries_[block].cached && entries_[block].parent == parent;
  }
  [[nodiscard]] Parent parent(BlockId block) const noexcept { return entries_[block].parent; }
  [[nodiscard]] std::uint64_t hash(BlockId block) const noexcept { return entries_[block].hash; }
  [[nodiscard]] Index size() const noexcept { return size_; }
  /// Salts that are remembered: those of an open sequence or of a cached block, and "no salt".
  [[nodiscard]] Index roots() const noexcept { return static_cast<Index>(root_of_.size()); }
  [[nodiscard]] std::size_t root_slots() const noexcept { return roots_.size(); }

  /// The root of a salt, with one reference more. Throws std::bad_alloc; nothing has changed then.
  [[nodiscard]] Parent acquire_root(const Salt& salt) {
    if (const auto found = root_of_.find(salt.bytes()); found != root_of_.end()) {
      ++roots_[static_cast<std::size_t>(found->second)].ref_count;
      return Parent::root(found->second);
    }
    if (free_roots_.empty()) {
      free_roots_.reserve(roots_.size() + 1);  // so that release_root cannot fail
      roots_.push_back(Root{});
      free_roots_.push_back(static_cast<std::int32_t>(roots_.size() - 1));
    }
    const std::int32_t id = free_roots_.back();
    Root& root = roots_[static_cast<std::size_t>(id)];
    root.salt = &root_of_.emplace(salt.bytes(), id).first->first;
    free_roots_.pop_back();
    root.ref_count = 1;
    root.hash = hash_(0, std::span<const Token>(&id, 1));
    return Parent::root(id);
  }
  /// The root of a salt that is in use, without holding it.
  [[nodiscard]] std::optional<Parent> find_root(const Salt& salt) const {
    const auto found = root_of_.find(salt.bytes());
    return found == root_of_.end() ? std::nullopt : std::optional(Parent::root(found->second));
  }
  /// Salt::bytes() of a root that is in use.
  [[nodiscard]] const std::string& salt(Parent root) const noexcept { return *roots_[root.root_index()].salt; }
  void ref_root(Parent root) noexcept { ++roots_[root.root_index()].ref_count; }
  void release_root(Parent root) noexcept {
    --roots_[root.root_index()].ref_count;
    forget_root_if_unused(root);
  }

  /// The hash of the prefix that ends with `parent` and one more block of these tokens.
  [[nodiscard]] std::uint64_t chain_hash(Parent parent, std::span<const Token> tokens) const noexcept {
    return hash_(parent_hash(parent), tokens);
  }
  [[nodiscard]] std::uint64_t chain_hash(std::uint64_t parent, std::span<const Token> tokens) const noexcept {
    return hash_(parent, tokens);
  }
  [[nodiscard]] std::uint64_t parent_hash(Parent parent) const noexcept {
    return parent.is_root() ? roots_[parent.root_index()].hash : entries_[parent.block()].hash;
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
  template <class F>
  Parent find_prefix(Parent root, std::span<const Token> tokens, F&& f) const noexcept {
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

  struct Partial {
    BlockId block = no_block;
    Pos count = 0;
  };
  /// The child of `parent` that begins with the most of `tokens` (at least one), among the newest `children_scanned`.
  [[nodiscard]] Partial find_longest(Parent parent, std::span<const Token> tokens) const noexcept {
    Partial best;
    BlockId child = first_child(parent);
    for (int i = 0; i < children_scanned && child != no_block; ++i, child = entries_[child].next_sibling) {
      const std::span<const Token> theirs = this->tokens(child);
      const auto end = std::ranges::mismatch(theirs, tokens).in2;
      if (const auto count = static_cast<Pos>(end - tokens.begin()); count > best.count) {
        best = {child, count};
      }
    }
    return best;
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
      forget_root_if_unused(entry.parent);
    }
  }

  /// f(root, parent, block) for every cached block, parents before their children. O(blocks + roots).
  template <class F>
  void for_each(F&& f) const {
    for (std::size_t r = 0; r < roots_.size(); ++r) {
      const auto root = Parent::root(static_cast<std::int32_t>(r));
      BlockId block = roots_[r].first_child;
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
    }
  }

  /// Removes all blocks. O(blocks + buckets).
  void clear() noexcept {
    for (Entry& entry : entries_.values()) {
      entry.cached = false;
      entry.first_child = no_block;
    }
    std::ranges::fill(buckets_, Bucket{});
    size_ = 0;
    for (std::size_t r = 0; r < roots_.size(); ++r) {
      if (roots_[r].first_child != no_block) {
        roots_[r].first_child = no_block;
        forget_root_if_unused(Parent::root(static_cast<std::int32_t>(r)));
      }
    }
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
    for (std::size_t r = 0; r < roots_.size(); ++r) {
      listed += count_children(Parent::root(static_cast<std::int32_t>(r)));
    }
    check(cached == size_, no_block, "(none): the number of cached blocks is wrong");
    check(listed == size_, no_block, "(none): lists of children and cached blocks differ");
    check(static_cast<Index>(buckets_.size()) - std::ranges::count(buckets_, no_block, &Bucket::block) == size_,
          no_block, "(none): buckets and cached blocks differ");
  }

  /// Compares the reference count of each root with `expected` [root_slots()]. Throws InvariantError.
  void verify_roots(std::span<const Index> expected) const {
    Index in_use = 0;
    for (std::size_t r = 0; r < roots_.size(); ++r) {
      const Root& root = roots_[r];
      const Index ref_count = expected[r] + (r == 0 ? 1 : 0);  // the root of "no salt" is always referenced
      const bool used = ref_count > 0 || root.first_child != no_block;
      const auto known = used ? root_of_.find(*root.salt) : root_of_.end();
      if ((used &&
           (root.ref_count != ref_count || known == root_of_.end() || known->second != static_cast<std::int32_t>(r)))) {
        throw_error(InvariantError("kvc: salt " + std::to_string(r) + " counts " + std::to_string(root.ref_count) +
                                   " references, and has " + std::to_string(ref_count)));
      }
      in_use += used ? 1 : 0;
    }
    if (in_use != roots() || static_cast<std::size_t>(in_use) + free_roots_.size() != roots_.size()) {
      throw_error(InvariantError("kvc: salts that nobody uses are remembered, or used ones are not"));
    }
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
  struct Root {
    const std::string* salt = nullptr;  // the key in root_of_
    std::uint64_t hash = 0;
    Index ref_count = 0;  // open sequences
    BlockId first_child = no_block;
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
    return parent.is_root() ? roots_[parent.root_index()].first_child : entries_[parent.block()].first_child;
  }
  [[nodiscard]] BlockId first_child(Parent parent) const noexcept {
    return parent.is_root() ? roots_[parent.root_index()].first_child : entries_[parent.block()].first_child;
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

  void forget_root_if_unused(Parent parent) noexcept {
    Root& root = roots_[parent.root_index()];
    if (root.ref_count == 0 && root.first_child == no_block) {
      root_of_.erase(root_of_.find(*root.salt));
      free_roots_.push_back(static_cast<std::int32_t>(parent.root_index()));
    }
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
  std::vector<Root> roots_;
  std::vector<std::int32_t> free_roots_;
  std::unordered_map<std::string, std::int32_t> root_of_;
  Index size_ = 0;
};

}  // namespace v0
}  // namespace kvc
