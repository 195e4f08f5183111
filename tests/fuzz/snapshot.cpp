// Snapshots from the outside: each loads as a whole, or is refused with a FormatError and leaves the cache as it was.
//
// The first byte selects how the rest is read: as it is, or with corrected checksums, without which no input gets
// beyond the first header; and from a source of known length, or from one of unknown length in small parts.
#include "kvc/snapshot/snapshot.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "../snapshot/forge.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {
using namespace kvc;
using Bytes = std::vector<std::byte>;
constexpr Shape shape{.layers = 2, .kv_heads = 2, .key_dim = 1, .value_dim = 1};
/// Two layers of full attention and a window, of cross attention and of recurrent states where bits of the input say
/// so.
LayerGroups grouped(bool with_cross, bool with_states) {
  LayerGroups layers;
  layers.add({.kv_heads = 2, .key_dim = 1});
  layers.add({.kv_heads = 2, .key_dim = 1, .window = 3, .kept = 1});
  if (with_cross) {
    layers.add({.kv_heads = 2, .key_dim = 1, .cross_rows = 3});
  }
  if (with_states) {
    layers.add_state(5, 2);
    layers.add_state(3);
    layers.with_rewind(4);
  }
  return layers;
}

void expect(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "broken: %s\n", what);
    std::abort();
  }
}

class Trickle final : public io::ByteSource {
 public:
  explicit Trickle(std::span<const std::byte> bytes) : io::ByteSource("fuzzed"), inner_(bytes) {}
  std::size_t read(std::span<const std::span<std::byte>> spans) override { return inner_.read(spans); }

 private:
  io::MemorySource inner_;
};

/// Rows and states of one sequence as they are stored, by layer, head and position.
template <class Cache>
Bytes rows(const Cache& cache, SeqId seq) {
  Bytes all;
  for (Index layer = 0; layer < cache.layers().layers(); ++layer) {
    if (cache.layers().is_recurrent(layer)) {
      const auto state = cache.state(layer, seq);
      all.insert(all.end(), state.begin(), state.end());
      continue;
    }
    const bool is_cross =
        cache.layers().groups()[static_cast<std::size_t>(cache.layers().place(layer).group)].cross_rows > 0;
    const Pos end = is_cross ? cache.policy().positions(seq, cache.layers().place(layer).group) : cache.length(seq);
    for (Index head = 0; head < shape.kv_heads; ++head) {
      cache.view(layer, seq).for_each_run(head, {0, end}, [&](const auto& run) {
        for (Index i = 0; i < run.rows; ++i) {
          for (const auto* row : {run.k + i * run.k_stride, run.v + i * run.v_stride}) {
            const auto bytes = std::as_bytes(std::span(row, 1));
            all.insert(all.end(), bytes.begin(), bytes.end());
          }
        }
      });
    }
  }
  return all;
}

template <class Cache>
auto seen(const Cache& cache) {
  const Stats s = cache.stats();
  std::vector<Bytes> all;
  for (const SeqId seq : cache.sequences()) {
    all.push_back(rows(cache, seq));
  }
  return std::tuple(s.blocks_free, s.blocks_cached, s.blocks_referenced, s.sequences, s.tokens_stored, s.evictions,
                    all);
}

template <class T, class P, class L>
void load(const LayerGroups& layers, const typename P::Config& config, std::span<const std::byte> bytes, bool trickles,
          const snapshot::LoadOptions& options) {
  using Cache = KvCache<T, P, L>;
  Cache cache(layers, config);
  std::memset(static_cast<void*>(cache.data()), 0, static_cast<std::size_t>(cache.pool_bytes()));
  const std::vector<Token> own{1, 2, 3};
  cache.commit(cache.extend(cache.open(own).seq, own));
  const auto before = seen(cache);
  std::vector<SeqId> sequences;
  try {
    io::MemorySource memory(bytes, "fuzzed");
    Trickle trickle(bytes);
    io::ByteSource& source = trickles ? static_cast<io::ByteSource&>(trickle) : memory;
    auto loaded = snapshot::try_load(cache, source, options);
    cache.verify();
    if (!loaded) {
      expect(seen(cache) == before, "no room changes nothing");
      return;
    }
    sequences = loaded->sequences;
  } catch (const FormatError& error) {
    expect(error.source() == "fuzzed", "source of an error");
    expect(0 <= error.offset() && error.offset() <= static_cast<Index>(bytes.size()), "offset of an error");
    cache.verify();
    expect(seen(cache) == before, "what is refused changes nothing");
    return;
  }
  // The loaded cache can be saved, and comes back.
  io::MemorySink sink;
  snapshot::save(cache, std::span<const SeqId>(sequences), sink);
  KvCache<T, Paged, HeadMajor> again(layers, {.blocks = 4096, .block_tokens = 1});
  io::MemorySource source(sink.bytes());
  const auto loaded = snapshot::try_load(again, source);
  again.verify();
  expect(!loaded || loaded->sequences.size() == sequences.size(), "as many sequences");
  for (std::size_t i = 0; loaded && i < sequences.size(); ++i) {
    expect(rows(again, loaded->sequences[i]) == rows(cache, sequences[i]), "the same rows");
  }
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  const std::uint8_t how = *data;
  std::span<const std::byte> bytes = std::as_bytes(std::span(data, size)).subspan(1);
  Bytes forged;
  if ((how & 1) != 0) {
    forged = kvc_test::Forge(bytes).bytes((how & 2) != 0);
    bytes = forged;
  }
  const bool trickles = (how & 4) != 0;
  const snapshot::LoadOptions options{.cached_prefixes = (how & 8) == 0, .convert_elements = (how & 16) != 0};
  // Version 2 is for caches with layer groups.
  const bool is_grouped = bytes.size() > 8 && bytes[8] == std::byte{2};
  const LayerGroups layers = is_grouped ? grouped((how & 32) != 0, (how & 64) != 0) : LayerGroups(shape);
  load<float, PrefixShared<Lru>, HeadMajor>(layers, {.blocks = 64, .block_tokens = 2}, bytes, trickles, options);
  load<float, Paged, TokenMajor>(layers, {.blocks = 32, .block_tokens = 3}, bytes, trickles, options);
  load<float, Contiguous, HeadMajor>(
      layers, {.sequences = 8, .max_tokens = 40, .pool_tokens = 160, .mode = Contiguous::Mode::grow}, bytes, trickles,
      options);
  return 0;
}
