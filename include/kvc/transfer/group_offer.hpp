// The part of an OFFER about layer groups: version 2 of the protocol.
//
// Its body begins with a record for each group and one for each layer of the model, which must be those of the
// receiver. Of a group that drops rows only those travel that the sender still has when the sequence has its whole
// length: it says which are `gone` then. So it does not matter which rows the sender drops while the transfer is in
// progress. The same holds for states of recurrent layers: it names the lengths of which it will have them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/detail/stored_runs.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/snapshot/recurrent_layers.hpp"
#include "kvc/transfer/offer.hpp"
#include "kvc/transfer/protocol.hpp"
#include "kvc/transfer/stored_layers.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// Which of the first `end` positions of a sequence a policy does not retain in a group: one range, which begins where
/// the rows from the first position on end; {0, 0} if none. O(blocks).
template <HoldsGroups P>
[[nodiscard]] PosRange not_retained(const P& policy, SeqId seq, Index group, Pos end) {
  PosRange gone{0, 0};
  Pos next = 0;
  kvc::detail::for_each_stored_run(policy, seq, group, {0, end}, [&](const SlotRun& run) {
    if (run.first != next) {
      gone = {gone.empty() ? next : gone.first, run.first};
    }
    next = run.first + run.count;
  });
  return next == end ? gone : PosRange{gone.empty() ? next : gone.first, end};
}

/// Which positions of a sequence have no row in a group now, or will have none when it has `length` positions; {0, 0}
/// if all have. O(blocks).
template <HoldsGroups P>
[[nodiscard]] PosRange gone_at(const P& policy, SeqId seq, Index group, Pos length) {
  const GroupRules& rules = policy.group_rules();
  const Retained& retained = rules.groups[static_cast<std::size_t>(group)].retained;
  if (retained.everything()) {
    return {0, 0};
  }
  const PosRange now = detail::not_retained(policy, seq, group, std::min(length, policy.reserved(seq)));
  if (policy.length(seq) >= length) {
    return now;
  }
  PosRange then{retained.kept, retained.first_seen(std::max(length - rules.rewind, 0))};
  if constexpr (GroupTablePolicy<P>) {  // blocks are dropped whole
    const Pos size = policy.block_tokens(group);
    then = {static_cast<Pos>(std::min(ceil_div(Index{then.first}, Index{size}) * size, Index{max_pos})),
            then.last - then.last % size};
  }
  if (then.empty() || now.empty()) {
    return then.empty() ? now : then;
  }
  return {std::min(now.first, then.first), std::max(now.last, then.last)};
}

/// The lengths of which a sequence has recurrent states now, and will have when it has `length` positions; the greatest
/// 64 of them, that of `length` last. Throws std::invalid_argument if it has no state of `length`. O(states).
template <HoldsGroups P>
[[nodiscard]] std::vector<Pos> states_at(const P& policy, SeqId seq, Pos length) {
  std::vector<Pos> lengths;
  if constexpr (HoldsStates<P>) {
    if (policy.group_rules().states.empty()) {
      return lengths;
    }
    if (policy.reserved(seq) < length) {
      return {length};  // what else there will be, the extensions will say
    }
    const bool is_committed = policy.length(seq) >= length;
    for (const Pos states : policy.state_lengths(seq)) {
      if (states == length || (states < length && (is_committed || policy.keeps_state(seq, states)))) {
        lengths.push_back(states);
      }
    }
    require(!lengths.empty() && lengths.back() == length, "offer.length", length,
            "one of which the sequence has recurrent states");
    lengths.erase(lengths.begin(),
                  lengths.end() - std::min(std::ssize(lengths), static_cast<std::ptrdiff_t>(most_states)));
  }
  return lengths;
}

template <snapshot::format::Plain Record>
void append_record(std::vector<std::byte>& to, const Record& record) {
  const auto bytes = std::as_bytes(std::span(&record, 1));
  to.insert(to.end(), bytes.begin(), bytes.end());
}

/// The promises of an OFFER about a sequence of a cache with layer groups.
struct Promised {
  std::vector<PosRange> gone;  // [groups] positions that are not sent
  std::vector<Pos> states;     // lengths of which states are
};

/// Adds the description of the groups and states to the body of an OFFER. Throws std::invalid_argument if the sequence
/// has no state of `length`. O(layers + blocks).
template <HoldsGroups P>
Promised append_groups(std::vector<std::byte>& body, const StoredLayers& layers, const P& policy, SeqId seq,
                       Pos length) {
  Promised promised{{}, detail::states_at(policy, seq, length)};
  std::vector<PosRange>& gone = promised.gone;
  for (std::size_t g = 0; g < layers.groups().size(); ++g) {
    const auto group = static_cast<Index>(g);
    gone.push_back(detail::gone_at(policy, seq, group, length));
    append_record(body, OfferedGroupRecord{layers.groups()[g], policy.block_tokens(group), gone.back().first,
                                           gone.back().last, 0});
  }
  for (const snapshot::format::LayerRecord& layer : layers.model_layers()) {
    append_record(body, layer);
  }
  for (const snapshot::format::StateKindRecord& kind : layers.recurrent().kinds()) {
    append_record(body, kind);
  }
  for (const Pos states : promised.states) {
    append_record(body, states);
  }
  return promised;
}

/// Takes a record from the beginning of `bytes`, which has it.
template <snapshot::format::Plain Record>
[[nodiscard]] Record take_record(std::span<const std::byte>& bytes) noexcept {
  Record record;
  std::memcpy(&record, bytes.data(), sizeof record);
  bytes = bytes.subspan(sizeof record);
  return record;
}

/// A refusal, which names the first difference, unless two groups are alike.
[[nodiscard]] inline std::optional<Refusal> compare_group(std::size_t group, const snapshot::format::GroupRecord& own,
                                                          const snapshot::format::GroupRecord& found) {
  struct Member {
    std::string_view what;
    std::uint64_t expected;
    std::uint64_t actual;
  };
  const auto pos = [](std::int32_t p) { return static_cast<std::uint64_t>(static_cast<std::uint32_t>(p)); };
  for (const Member& m :
       {Member{"layers", own.layers, found.layers},
        Member{"tokens_per_row", std::uint64_t{own.more_tokens} + 1, std::uint64_t{found.more_tokens} + 1},
        Member{"kv_heads", own.kv_heads, found.kv_heads}, Member{"key_dim", own.key_dim, found.key_dim},
        Member{"value_dim", own.value_dim, found.value_dim},
        Member{"bytes of a key", own.key_row_bytes, found.key_row_bytes},
        Member{"bytes of a value", own.value_row_bytes, found.value_row_bytes},
        Member{"window", pos(own.window), pos(found.window)}, Member{"chunk", pos(own.chunk), pos(found.chunk)},
        Member{"kept", pos(own.kept), pos(found.kept)},
        Member{"cross_rows", pos(own.cross_rows), pos(found.cross_rows)}}) {
    if (m.expected != m.actual) {
      return different(m.what, kvc::detail::concat({std::to_string(m.expected), " in group ", std::to_string(group)}),
                       std::to_string(m.actual));
    }
  }
  return std::nullopt;
}

/// A refusal unless a layer of the model has its rows where the own one has them.
[[nodiscard]] inline std::optional<Refusal> compare_layer(std::size_t layer, const snapshot::format::LayerRecord& own,
                                                          const snapshot::format::LayerRecord& found) {
  const auto text = [](const snapshot::format::LayerRecord& r) {
    return kvc::detail::concat({r.reads == 0 ? "layer " : "a reader of layer ", std::to_string(r.layer), " of group ",
                                std::to_string(r.group)});
  };
  if (own.group == found.group && own.layer == found.layer && own.reads == found.reads) {
    return std::nullopt;
  }
  return different(kvc::detail::concat({"layer ", std::to_string(layer), " to be"}), text(own), text(found));
}

/// A refusal, which names the first difference, unless two kinds of recurrent states are alike.
[[nodiscard]] inline std::optional<Refusal> compare_states(std::size_t kind,
                                                           const snapshot::format::StateKindRecord& own,
                                                           const snapshot::format::StateKindRecord& found) {
  const std::string of_kind = kvc::detail::concat({" in kind ", std::to_string(kind), " of states"});
  if (own.bytes != found.bytes) {
    return different("bytes", std::to_string(own.bytes) + of_kind, std::to_string(found.bytes));
  }
  if (own.layers != found.layers) {
    return different("layers", std::to_string(own.layers) + of_kind, std::to_string(found.layers));
  }
  return std::nullopt;
}

/// Reads the description of the groups and states, which `body` begins with: read_offer has checked how long it is. A
/// refusal if it is invalid, or the groups or layers are not those of the cache.
[[nodiscard]] inline std::optional<Refusal> read_groups(std::span<const std::byte> body, const StoredLayers& layers,
                                                        Offered& offered) {
  offered.groups.clear();
  for (std::size_t g = 0; g < layers.groups().size(); ++g) {
    const snapshot::format::GroupRecord& own = layers.groups()[g];
    const auto found = take_record<OfferedGroupRecord>(body);
    if (std::optional<Refusal> refusal = compare_group(g, own, found.group)) {
      return refusal;
    }
    const Retained retained{own.window, own.chunk, own.kept};
    const PosRange gone{found.gone_first, found.gone_last};
    const bool is_possible = (gone.first == 0 && gone.last == 0) ||
                             (!retained.everything() && retained.kept <= gone.first && gone.first < gone.last &&
                              gone.last <= retained.first_seen(offered.length));
    if (found.block_tokens < 1 || !is_possible) {
      return Refusal{Outcome::broken, kvc::detail::concat({"group ", std::to_string(g), " without positions ",
                                                           std::to_string(gone.first), " to ",
                                                           std::to_string(gone.last), ", which a row may see"})};
    }
    offered.groups.push_back({found.block_tokens, gone});
  }
  for (std::size_t i = 0; i < layers.model_layers().size(); ++i) {
    const auto found = take_record<snapshot::format::LayerRecord>(body);
    if (std::optional<Refusal> refusal = compare_layer(i, layers.model_layers()[i], found)) {
      return refusal;
    }
  }
  for (std::size_t k = 0; k < layers.recurrent().kinds().size(); ++k) {
    const auto found = take_record<snapshot::format::StateKindRecord>(body);
    if (std::optional<Refusal> refusal = compare_states(k, layers.recurrent().kinds()[k], found)) {
      return refusal;
    }
  }
  offered.states.clear();
  for (std::size_t i = 0; i < offered.state_lengths; ++i) {
    const Pos before = offered.states.empty() ? 0 : offered.states.back();
    offered.states.push_back(take_record<Pos>(body));
    if (offered.states.back() <= before) {
      return Refusal{Outcome::broken, "states whose lengths do not ascend"};
    }
  }
  if (!offered.states.empty() && offered.states.back() != offered.length) {
    return Refusal{Outcome::broken, "no states of the length of the sequence"};
  }
  return std::nullopt;
}

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
