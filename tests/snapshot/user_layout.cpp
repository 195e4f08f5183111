// Caches of a user's own layout travel through snapshots, to and from the layouts of kvc.
#include "user_layout.hpp"

#include <Eigen/Core>
#include <filesystem>

#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/snapshot/snapshot.hpp"
#include "temp_files.hpp"

namespace {
using namespace kvc;
using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr Shape shape{.layers = 3, .kv_heads = 2, .key_dim = 6, .value_dim = 5};

template <class From, class To>
void travels() {
  const kvc_test::TempFolder folder;
  const std::filesystem::path file = folder / "cache.kvc";
  From from(shape, {.blocks = 20, .block_tokens = 4});
  To to(shape, {.blocks = 30, .block_tokens = 4});
  const SeqId seq = from.open();
  auto step = from.extend(seq, 11);
  for (Index layer = 0; layer < 3; ++layer) {
    from.write(layer, step, Rows::Random(11, 12), Rows::Random(11, 10));
  }
  from.commit(std::move(step));
  snapshot::save(from, file);
  const SeqId loaded = snapshot::load(to, file).sequences.at(0);
  for (Index layer = 0; layer < 3; ++layer) {
    Rows k(11, 12), v(11, 10), k_loaded(11, 12), v_loaded(11, 10);
    from.gather(layer, seq, {0, 11}, k, v);
    to.gather(layer, loaded, {0, 11}, k_loaded, v_loaded);
    REQUIRE(k_loaded == k);
    REQUIRE(v_loaded == v);
  }
}
}  // namespace

TEMPLATE_TEST_CASE("A user's layout travels through a snapshot", "[snapshot][layout]", kvc_test::Interleaved,
                   kvc_test::LayersFirst) {
  using Own = KvCache<Int8, Paged, TestType>;
  travels<Own, Own>();
  travels<Own, KvCache<Int8, Paged>>();
  travels<KvCache<Int8, Paged, TokenMajor>, Own>();
}
