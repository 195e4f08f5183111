// PrefixRoots: the salts in use. A prefix index has one tree of blocks for each of them, and these are their roots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/salt.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The parent of a cached block: the block before it, or the root of a salt.
class PrefixParent {
 public:
  constexpr explicit PrefixParent(BlockId block) noexcept : id_(static_cast<std::int32_t>(block)) {}
  static constexpr PrefixParent root(std::int32_t root) noexcept { return PrefixParent(BlockId{-1 - root}); }
  [[nodiscard]] constexpr bool is_root() const noexcept { return id_ < 0; }
  /// The block; not of a root.
  [[nodiscard]] constexpr BlockId block() const noexcept { return BlockId{id_}; }
  /// The number of a root; not of a block.
  [[nodiscard]] constexpr std::size_t root_index() const noexcept { return static_cast<std::size_t>(-1 - id_); }
  friend constexpr bool operator==(PrefixParent, PrefixParent) = default;

 private:
  std::int32_t id_;
};

/// A root is in use as long as a sequence references it or a block is its child; then its number is used again. The
/// root of the empty salt is always in use. `Hash` is that of PrefixIndex.
template <class Hash>
class PrefixRoots {
 public:
  using Parent = PrefixParent;

  explicit PrefixRoots(const Hash& hash) : hash_(hash) { (void)acquire(Salt{}); }

  /// Roots in use.
  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(root_of_.size()); }
  /// Numbers of roots are less than this.
  [[nodiscard]] std::size_t entries() const noexcept { return roots_.size(); }

  /// The root of a salt, with one reference more. Throws std::bad_alloc; nothing has changed then.
  [[nodiscard]] Parent acquire(const Salt& salt) {
    if (const auto found = root_of_.find(salt.bytes()); found != root_of_.end()) {
      ++roots_[static_cast<std::size_t>(found->second)].ref_count;
      return Parent::root(found->second);
    }
    if (free_roots_.empty()) {
      free_roots_.reserve(roots_.size() + 1);  // so that release cannot fail
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
  /// The root of a salt that is in use, without a reference.
  [[nodiscard]] std::optional<Parent> find(const Salt& salt) const {
    const auto found = root_of_.find(salt.bytes());
    return found == root_of_.end() ? std::nullopt : std::optional(Parent::root(found->second));
  }
  void ref(Parent root) noexcept { ++roots_[root.root_index()].ref_count; }
  void release(Parent root) noexcept {
    --roots_[root.root_index()].ref_count;
    forget_if_unused(root);
  }
  /// After the last child of a root was removed.
  void forget_if_unused(Parent parent) noexcept {
    Root& root = roots_[parent.root_index()];
    if (root.ref_count == 0 && root.first_child == no_block) {
      root_of_.erase(root_of_.find(*root.salt));
      free_roots_.push_back(static_cast<std::int32_t>(parent.root_index()));
    }
  }

  /// Salt::bytes() of a root that is in use.
  [[nodiscard]] const std::string& salt(Parent root) const noexcept { return *roots_[root.root_index()].salt; }
  /// The hash that the chain of a prefix begins with.
  [[nodiscard]] std::uint64_t hash(Parent root) const noexcept { return roots_[root.root_index()].hash; }
  /// The child that was inserted last, or no_block.
  [[nodiscard]] BlockId& first_child(Parent root) noexcept { return roots_[root.root_index()].first_child; }
  [[nodiscard]] BlockId first_child(Parent root) const noexcept { return roots_[root.root_index()].first_child; }

  /// f(root) for every number, in use or not.
  template <class F>
  void for_each(F&& f) const {
    for (std::size_t r = 0; r < roots_.size(); ++r) {
      f(Parent::root(static_cast<std::int32_t>(r)));
    }
  }

  /// Compares the reference count of each root with `expected` [entries()]. Throws InvariantError.
  void verify(std::span<const Index> expected) const {
    Index in_use = 0;
    for (std::size_t r = 0; r < roots_.size(); ++r) {
      const Root& root = roots_[r];
      const Index ref_count = expected[r] + (r == 0 ? 1 : 0);  // the root of the empty salt is always referenced
      const bool used = ref_count > 0 || root.first_child != no_block;
      const auto known = used ? root_of_.find(*root.salt) : root_of_.end();
      if ((used &&
           (root.ref_count != ref_count || known == root_of_.end() || known->second != static_cast<std::int32_t>(r)))) {
        throw_error(InvariantError("kvc: salt " + std::to_string(r) + " counts " + std::to_string(root.ref_count) +
                                   " references, and has " + std::to_string(ref_count)));
      }
      in_use += used ? 1 : 0;
    }
    if (in_use != size() || static_cast<std::size_t>(in_use) + free_roots_.size() != roots_.size()) {
      throw_error(InvariantError("kvc: salts that nothing references are remembered, or used ones are not"));
    }
  }

 private:
  struct Root {
    const std::string* salt = nullptr;  // the key in root_of_
    std::uint64_t hash = 0;
    Index ref_count = 0;  // of open sequences
    BlockId first_child = no_block;
  };

  Hash hash_;
  std::vector<Root> roots_;
  std::vector<std::int32_t> free_roots_;
  std::unordered_map<std::string, std::int32_t> root_of_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
