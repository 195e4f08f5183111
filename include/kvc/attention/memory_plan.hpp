// MemoryPlan: how decode prefetches keys and values. No plan changes a bit of a result.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace kvc {
inline namespace v0 {

/// How decode prefetches what it reads next. Results have the same bits with every plan; how fast memory answers
/// depends on the processor. Text: LEVEL[:LINES[:HEADS]], such as "second:208".
///
///   level   the cache that requests bring lines to: "first", "second"; "none" leaves memory to the prefetchers of the
///           processor
///   lines   from the line that is read to the line that is requested; 0: the rule of the element type, which is about
///           as many as memory has in flight, or the tile of 64 positions that comes next
///   heads   the order of kv heads: "in_turn" for each tile of 64 positions, or "one_by_one"; "by_layout" is the latter
///           where the positions of a head are contiguous
struct MemoryPlan {
  enum class Level : std::uint8_t { none, first, second };
  enum class Heads : std::uint8_t { by_layout, in_turn, one_by_one };

  Level level = Level::first;
  std::int32_t lines = 0;  ///< in [0, max_lines]
  Heads heads = Heads::by_layout;

  static constexpr std::int32_t max_lines = 4096;

  friend bool operator==(const MemoryPlan&, const MemoryPlan&) = default;
};

/// The plans that decode chooses from. The first is the default: it is used where nothing was measured.
inline constexpr MemoryPlan memory_plans[] = {
    {},
    {.level = MemoryPlan::Level::second},
    {.level = MemoryPlan::Level::second, .lines = 208},
    {.level = MemoryPlan::Level::second, .lines = 0, .heads = MemoryPlan::Heads::in_turn},
    {.level = MemoryPlan::Level::none},
};

namespace detail {
inline constexpr std::string_view memory_level_names[] = {"none", "first", "second"};
inline constexpr std::string_view memory_heads_names[] = {"by_layout", "in_turn", "one_by_one"};

/// The index of a name among `names`; nothing if it is none of them.
template <std::size_t count>
[[nodiscard]] std::optional<std::uint8_t> index_of(std::string_view name, const std::string_view (&names)[count]) {
  for (std::size_t i = 0; i < count; ++i) {
    if (name == names[i]) {
      return static_cast<std::uint8_t>(i);
    }
  }
  return std::nullopt;
}
}  // namespace detail

/// The text of a plan, the shortest that parse_memory_plan reads.
[[nodiscard]] inline std::string to_string(const MemoryPlan& plan) {
  std::string text(detail::memory_level_names[static_cast<std::size_t>(plan.level)]);
  if (plan.lines != 0 || plan.heads != MemoryPlan::Heads::by_layout) {
    text += ":" + std::to_string(plan.lines);
  }
  if (plan.heads != MemoryPlan::Heads::by_layout) {
    text += ":" + std::string(detail::memory_heads_names[static_cast<std::size_t>(plan.heads)]);
  }
  return text;
}

/// The plan with this text; nothing if there is none.
[[nodiscard]] inline std::optional<MemoryPlan> parse_memory_plan(std::string_view text) {
  bool more = true;
  const auto next_part = [&] {
    const std::size_t end = text.find(':');
    const std::string_view part = text.substr(0, end);
    more = end != std::string_view::npos;
    text.remove_prefix(more ? end + 1 : text.size());
    return part;
  };
  MemoryPlan plan;
  const auto level = detail::index_of(next_part(), detail::memory_level_names);
  if (!level) {
    return std::nullopt;
  }
  plan.level = static_cast<MemoryPlan::Level>(*level);
  if (more) {
    const std::string_view lines = next_part();
    const char* const end = lines.data() + lines.size();
    const auto [at, error] = std::from_chars(lines.data(), end, plan.lines);
    if (error != std::errc() || at != end || plan.lines < 0 || plan.lines > MemoryPlan::max_lines) {
      return std::nullopt;
    }
  }
  if (more) {
    const auto heads = detail::index_of(next_part(), detail::memory_heads_names);
    if (!heads || more) {
      return std::nullopt;
    }
    plan.heads = static_cast<MemoryPlan::Heads>(*heads);
  }
  return plan;
}

}  // namespace v0
}  // namespace kvc
