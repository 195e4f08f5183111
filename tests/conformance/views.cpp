// The contract of KvView: ours keep it, a minimal model does, and the suite rejects wrong ones.
#include <array>
#include <vector>

#include "catch.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/testing/kv_view_conformance.hpp"

namespace conformance_views_test {

namespace {
using namespace kvc;
using kvc_test::contains;
using testing::kv_view_conformance;

/// A minimal view: two heads of 50 positions that lie in an array, cut into runs of at most three.
struct Threes {
  using Element = float;
  std::array<float, 2 * 2 * 50> rows{};  // [heads, positions, K | V]
  Index kv_heads() const { return 2; }
  Index key_dim() const { return 1; }
  Index value_dim() const { return 1; }
  Pos length() const { return 50; }
  template <class F>
  void for_each_run(Index head, PosRange range, F&& f) const {
    for (Pos p = range.first; p < range.last; p += 3) {
      f(run(head, p, std::min(p + 3, range.last)));
    }
  }
  KvRun<float> run(Index head, Pos first, Pos last) const {
    const float* const k = rows.data() + (head * 50 + first) * 2;
    return {k, k + 1, last - first, 2, 2, first};
  }
};
static_assert(KvView<Threes>);
/// Shows the rows of another, so that copies show the same.
template <class Runs>
struct Of {
  using Element = float;
  const Threes* rows;
  Index kv_heads() const { return 2; }
  Index key_dim() const { return 1; }
  Index value_dim() const { return 1; }
  Pos length() const { return 50; }
  template <class F>
  void for_each_run(Index head, PosRange range, F&& f) const {
    Runs{}([&](Pos first, Pos last) { f(rows->run(head, first, last)); }, range);
  }
};

struct Whole {
  void operator()(auto run, PosRange range) const {
    if (!range.empty()) {
      run(range.first, range.last);
    }
  }
};
struct OverlappingRuns {
  void operator()(auto run, PosRange range) const {
    for (Pos p = range.first; p < range.last; p += 2) {
      run(p, std::min(p + 3, range.last));
    }
  }
};
struct WithGaps {
  void operator()(auto run, PosRange range) const {
    for (Pos p = range.first; p < range.last; ++p) {
      if (p != 7) {
        run(p, p + 1);
      }
    }
  }
};
struct Descending {
  void operator()(auto run, PosRange range) const {
    for (Pos p = range.last; p-- > range.first;) {
      run(p, p + 1);
    }
  }
};
struct WithEmptyRuns {
  void operator()(auto run, PosRange range) const { run(range.first, range.last); }
};
struct Beyond {  // whole blocks of four
  void operator()(auto run, PosRange range) const {
    if (!range.empty()) {
      run(range.first, std::min((range.last + 3) / 4 * 4, 50));
    }
  }
};
struct Short {
  void operator()(auto run, PosRange range) const {
    if (range.last > range.first + 1) {
      run(range.first, range.last - 1);
    }
  }
};

/// Says that its heads lie further apart than they do, or as they do.
template <Index distance>
struct Apart : Of<Whole> {
  HeadStrides head_strides() const { return {distance, distance}; }
};

/// The rows of a range lie where it begins.
struct Moving : Of<Whole> {
  template <class F>
  void for_each_run(Index head, PosRange range, F&& f) const {
    if (!range.empty()) {
      KvRun<float> run = rows->run(head, 0, range.last - range.first);
      run.first = range.first;
      f(run);
    }
  }
};
struct WithoutLength {
  using Element = float;
  Index kv_heads() const;
  Index key_dim() const;
  Index value_dim() const;
  void for_each_run(Index, PosRange, auto&&) const;
};
static_assert(!KvView<WithoutLength>);
struct ForDoubles : Threes {
  using Element = double;
};
static_assert(!KvView<ForDoubles>);

template <class Cache>
void check_cache(const typename Cache::PolicyType::Config& config) {
  Cache cache({.layers = 2, .kv_heads = 3, .key_dim = 4, .value_dim = 2}, config);
  std::vector<SeqId> open;
  for (const int length : {0, 1, 5, 39, 70}) {
    open.push_back(cache.open());
    cache.commit(cache.extend_without_tokens(open.back(), length));
  }
  const auto under_way = cache.extend_without_tokens(open[1], 20);  // its rows lie behind those of others
  for (const SeqId seq : open) {
    kv_view_conformance(cache.view(1, seq));
  }
}
}  // namespace

TEST_CASE("The views of caches keep the contract", "[view][contract]") {
  check_cache<KvCache<float, Paged>>({.blocks = 100, .block_tokens = 3});
  check_cache<KvCache<Int8, Paged, TokenMajor>>({.blocks = 100, .block_tokens = 4});
  check_cache<KvCache<float, PrefixShared<>>>({.blocks = 20, .block_tokens = 16});
  check_cache<KvCache<float, Contiguous>>({.sequences = 6, .max_tokens = 100});
}

TEST_CASE("A view of the caller's keeps the contract", "[view][contract]") {
  static const Threes rows;
  kv_view_conformance(Of<Whole>{&rows});
  std::vector<float> k(30 * 8), v(30 * 6);
  kv_view_conformance(DenseView<float>({k.data(), 30, 8}, {v.data(), 30, 6}, 2));
}

TEST_CASE("A view that retains some positions keeps the contract", "[view][contract]") {
  static const Threes rows;
  const std::vector<PosRange> all_but_seven{{0, 7}, {8, 50}};
  kv_view_conformance(Of<WithGaps>{&rows}, all_but_seven);
  REQUIRE_THROWS_WITH(kv_view_conformance(Of<WithGaps>{&rows}, std::vector<PosRange>{{0, 7}, {9, 50}}),
                      contains("a run begins at position 8 instead of 9"));
  REQUIRE_THROWS_WITH(kv_view_conformance(Of<Whole>{&rows}, all_but_seven),
                      contains("a run has position 7, which is not retained"));
  REQUIRE_THROWS_WITH(kv_view_conformance(Of<WithGaps>{&rows}, std::vector<PosRange>{{0, 4}, {20, 50}}),
                      contains("a run begins at position 4 instead of 20"));
  REQUIRE_THROWS_WITH(kv_view_conformance(Of<WithGaps>{&rows}, std::vector<PosRange>{}),
                      contains("a run begins at position 0 instead of"));
}

TEST_CASE("A view that breaks the contract is found", "[view][contract]") {
  static const Threes rows;
  REQUIRE_THROWS_WITH(kv_view_conformance(Of<OverlappingRuns>{&rows}),
                      contains("a run begins at position 2 instead of 3"));
  REQUIRE_THROWS_WITH(kv_view_conformance(Of<WithGaps>{&rows}), contains("a run begins at position 8 instead of 7"));
  REQUIRE_THROWS_WITH(kv_view_conformance(Of<Descending>{&rows}), contains("a run begins at position 49 instead of 0"));
  REQUIRE_THROWS_WITH(kv_view_conformance(Of<WithEmptyRuns>{&rows}), contains("a run has 0 rows"));
  REQUIRE_THROWS_WITH(kv_view_conformance(Of<Beyond>{&rows}), contains("a run ends at position 4 when [0, 1)"));
  REQUIRE_THROWS_WITH(kv_view_conformance(Of<Short>{&rows}), contains("the runs end at position 49"));
  kv_view_conformance(Apart<100>{{&rows}});
  REQUIRE_THROWS_WITH(kv_view_conformance(Apart<101>{{&rows}}),
                      contains("position 0 of head 1 does not lie head_strides()"));
  REQUIRE_THROWS_WITH(kv_view_conformance(Moving{{&rows}}), contains("the row of position 1 lies elsewhere"));
  // A copy that owns its rows shows other memory.
  REQUIRE_THROWS_WITH(kv_view_conformance(rows), contains("lies elsewhere"));
}

}  // namespace conformance_views_test
