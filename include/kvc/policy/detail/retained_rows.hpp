// RetainedRows: which rows of a sequence are still there in one layer group.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "kvc/core/error.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The positions that one sequence has in one group, whatever the policy and wherever its rows lie: positions in
/// [rule().kept, from()) are gone, and in none if from() <= rule().kept. O(1) throughout.
class RetainedRows {
 public:
  RetainedRows() = default;
  explicit RetainedRows(const Retained& rule) : rule_(rule) {}

  [[nodiscard]] const Retained& rule() const noexcept { return rule_; }
  [[nodiscard]] Pos from() const noexcept { return from_; }
  /// Whether a position is gone.
  [[nodiscard]] bool drops() const noexcept { return from_ > rule_.kept; }
  /// The first position behind the kept ones that is not gone.
  [[nodiscard]] Pos first() const noexcept { return std::max(from_, rule_.kept); }

  /// The smallest length to which the sequence can be cut, whatever it was cut to before.
  [[nodiscard]] Pos retained_from() const noexcept { return rule_.sees_only_from(from_); }
  /// Whether all positions that a row at `length` sees are there.
  [[nodiscard]] bool can_end_at(Pos length) const noexcept {
    return !drops() || length <= rule_.kept || rule_.first_seen(length) >= from_;
  }
  /// Throws std::invalid_argument, which names the group and a position, unless can_end_at(length).
  void require_end_at(Pos length, std::size_t group, std::string_view argument) const {
    if (!can_end_at(length)) [[unlikely]] {
      throw_invalid(argument, length,
                    concat({"at least ", std::to_string(retained_from()), ": group ", std::to_string(group),
                            " does not retain position ",
                            std::to_string(std::max(rule_.first_seen(length), rule_.kept)), " any more"}));
    }
  }

  /// Says that a sequence of `length` keeps nothing that no row from there on sees.
  void retain(Pos length) noexcept { from_ = std::max(from_, rule_.first_seen(length)); }
  /// Says that the rows before `from` are gone, too, but for kept ones; no row that is still to come sees them.
  void lose(Pos from) noexcept { from_ = std::max(from_, from); }
  /// After the sequence was cut to `length`, at which it can end.
  void cut(Pos length) noexcept { from_ = length <= rule_.kept ? 0 : from_; }
  /// A sequence of `length` that has only what the next row sees.
  void begin_at(Pos length) noexcept { from_ = length > rule_.kept ? rule_.first_seen(length) : 0; }
  /// Nothing is gone.
  void clear() noexcept { from_ = 0; }

 private:
  Retained rule_{};
  Pos from_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
