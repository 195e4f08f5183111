// CrossBlocks: the cached rows of other inputs, for cross attention.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/prefix_roots.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// A root of the prefix index, which stands for a salt, has all blocks with rows of the other input, or none; it is in
/// use as long as it has them. The empty salt has none: it does not say which input it is. O(1) unless stated
/// otherwise.
class CrossBlocks {
 public:
  /// Makes room, so that `add` cannot fail. Throws std::bad_alloc.
  void reserve(PrefixParent root, std::size_t blocks) {
    if (root.root_index() >= of_.size()) {
      of_.resize(root.root_index() + 1);
    }
    of_[root.root_index()].reserve(blocks);
  }
  /// The blocks of a root, group after group.
  [[nodiscard]] std::span<const BlockId> of(PrefixParent root) const noexcept {
    return root.root_index() < of_.size() ? std::span<const BlockId>(of_[root.root_index()])
                                          : std::span<const BlockId>();
  }
  /// One block more of a root, within the room that was reserved.
  void add(PrefixParent root, BlockId block) noexcept { of_[root.root_index()].push_back(block); }
  /// The root has no blocks any more.
  void clear(PrefixParent root) noexcept { of_[root.root_index()].clear(); }
  /// Nor has any root; f(root) for those that had some. O(roots).
  template <class F>
  void clear_all(F&& f) noexcept {
    for (std::size_t r = 0; r < of_.size(); ++r) {
      if (!of_[r].empty()) {
        of_[r].clear();
        f(PrefixParent::root(static_cast<std::int32_t>(r)));
      }
    }
  }

  /// Checks that nodes.cross_root(block) is the root of each block; returns how many blocks there are. O(roots +
  /// blocks). Throws InvariantError.
  template <class Nodes>
  [[nodiscard]] Index verify(const Nodes& nodes) const {
    Index blocks = 0;
    for (std::size_t r = 0; r < of_.size(); ++r) {
      for (const BlockId block : of_[r]) {
        ++blocks;
        if (!nodes.is_cross(block) || nodes.cross_root(block).root_index() != r) {
          throw_error(InvariantError("kvc: a block with rows of another input is not that of its salt"));
        }
      }
    }
    return blocks;
  }

 private:
  std::vector<std::vector<BlockId>> of_;  // [roots]
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
