// The memory that models with several layer groups hold, in the policies themselves: docs/layer-groups.md has the
// table.
#include "held_memory.hpp"

#include "catch.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "random_source.hpp"

namespace {

/// `more_states`: the policy keeps the states of one length more, that of the last whole node of its index.
template <class P>
void check_held(const kvc_bench::HeldMemory& memory, kvc::Pos block_tokens, bool more_states = false) {
  for (const kvc_bench::GroupedModel& model : kvc_bench::grouped_models()) {
    CAPTURE(model.name, block_tokens, memory.length);
    const std::optional<kvc::Index> held = memory.held_bytes<P>(model.layers, block_tokens);
    REQUIRE(held);
    CHECK(*held >= memory.needed_bytes(model.layers));
    const kvc::Index more = more_states ? memory.state_bytes(model.layers) * 103 / 100 : 0;
    CHECK(*held <= memory.bound_bytes(model.layers, block_tokens) + more);
  }
}

}  // namespace

TEST_CASE("Models hold at most 1.03 times what they need and a block for each group and sequence in Paged",
          "[groups][memory]") {
  check_held<kvc::Paged>({.sequences = kvc_test::cases_or(64)}, 16);
  check_held<kvc::Paged>({.sequences = 8, .length = 24'001, .pass = 512}, 8);
}

TEST_CASE("Models hold at most 1.03 times what they need and a block for each group and sequence in PrefixShared",
          "[groups][memory]") {
  check_held<kvc::PrefixShared<kvc::Lru>>({.sequences = kvc_test::cases_or(64)}, 16);
  check_held<kvc::PrefixShared<kvc::Lru>>({.sequences = 8, .length = 24'001, .pass = 512}, 8, true);
}
