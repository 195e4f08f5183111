// Snapshots: keys and values of sequences, or of a whole cache, saved to a file or any other sink of bytes.
//
//   snapshot::save(cache, "sequences.kvc");                         all open sequences, and the cached blocks
//   snapshot::save(cache, std::span(&seq, 1), "one.kvc");            one sequence, or several
//   snapshot::Loaded loaded = snapshot::load(other, "sequences.kvc");  loaded.sequences, in the order of saving
//
// A block that several sequences share is stored once, and is shared again after loading if the policy shares. The
// other cache may have another policy, block size and layout; its shape must be the same and, unless LoadOptions says
// otherwise, its element type. Rows come back bit for bit. Cached prefixes are found again. The order of eviction
// starts anew. Pins are not saved; their blocks are, as cached ones.
//
// With layer groups a snapshot has the rows and recurrent states that the groups hold; the other cache must have the
// same groups. It then finds the loaded sequences by their tokens, and the cached prefixes. Writer and Reader are the
// two halves for streams.
//
// A file is replaced as a whole or not at all, whenever the process is killed (io::replace_file). Damaged bytes give a
// FormatError that names source, offset and expectation. A load that fails changes nothing, and never allocates more
// than the bytes that are there justify. docs/format.md describes the format.
//
// Threads: saving reads the cache as its const members do; loading has the rights of a writer.
//
// Needs xxhash.h: see snapshot/checksum.hpp.
#pragma once

#include <concepts>
#include <filesystem>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/io/file.hpp"
#include "kvc/snapshot/collect.hpp"
#include "kvc/snapshot/options.hpp"
#include "kvc/snapshot/reader.hpp"
#include "kvc/snapshot/writer.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

/// Saves the committed positions of sequences, with tokens and salts that the caller gives (see SavedSequence), to a
/// sink. O(bytes). Throws std::invalid_argument for a sequence that is not open, and what the sink throws.
template <class Cache>
void save(const Cache& cache, std::span<const SavedSequence> sequences, io::ByteSink& sink,
          const SaveOptions& options = {}) {
  Writer<Cache> writer(cache, sequences, sink, options);
  for (Index layer = 0; layer < cache.layers().layers(); ++layer) {
    writer.layer(layer);
  }
  writer.finish();
}
/// The same to a file, which is made or replaced. Throws as above, and as io::replace_file does.
template <class Cache>
void save(const Cache& cache, std::span<const SavedSequence> sequences, const std::filesystem::path& path,
          const SaveOptions& options = {}) {
  io::replace_file(path, [&](io::ByteSink& sink) { snapshot::save(cache, sequences, sink, options); });
}
/// The same with the tokens and salts that the policy knows. `to` is a sink or a path.
template <class Cache, class To>
void save(const Cache& cache, std::span<const SeqId> sequences, To&& to, const SaveOptions& options = {}) {
  std::vector<SavedSequence> saved;
  for (const SeqId seq : sequences) {
    saved.push_back({seq, {}, {}});
  }
  snapshot::save(cache, std::span<const SavedSequence>(saved), std::forward<To>(to), options);
}
/// Saves the whole cache: all open sequences in the order of Cache::sequences(), and the cached blocks. `to` is a sink
/// or a path.
template <class Cache, class To>
  requires(std::derived_from<std::remove_cvref_t<To>, io::ByteSink> || std::convertible_to<To, std::filesystem::path>)
void save(const Cache& cache, To&& to, const SaveOptions& options = {}) {
  snapshot::save(cache, std::span<const SeqId>(cache.sequences()), std::forward<To>(to), options);
}

/// Adds the sequences and cached blocks of a snapshot to a cache. Empty if there is no room for all of them; nothing
/// has changed then. O(bytes).
///
/// Throws FormatError if the bytes are damaged or do not fit the cache. Nothing has changed then, unless room had to be
/// made by evicting and the source cannot rewind. Throws std::invalid_argument for layer groups of a policy that cannot
/// restore sequences (RestoresSequences).
template <class Cache>
[[nodiscard]] std::optional<Loaded> try_load(Cache& cache, io::ByteSource& source, const LoadOptions& options = {}) {
  Reader<Cache> reader(cache, source, options);
  if (!reader.try_reserve()) {
    return std::nullopt;
  }
  while (reader.next_layer()) {
  }
  return reader.commit();
}
/// The same from a file. Throws FormatError also if it cannot be read.
template <class Cache>
[[nodiscard]] std::optional<Loaded> try_load(Cache& cache, const std::filesystem::path& path,
                                             const LoadOptions& options = {}) {
  io::FileSource source(path);
  return snapshot::try_load(cache, source, options);
}

/// As try_load, but throws CapacityError if there is no room.
template <class Cache>
Loaded load(Cache& cache, io::ByteSource& source, const LoadOptions& options = {}) {
  Reader<Cache> reader(cache, source, options);
  if (!reader.try_reserve()) {
    const Stats now = cache.stats();
    throw_error(CapacityError("load a snapshot", reader.tokens(), now));
  }
  while (reader.next_layer()) {
  }
  return reader.commit();
}
/// The same from a file.
template <class Cache>
Loaded load(Cache& cache, const std::filesystem::path& path, const LoadOptions& options = {}) {
  io::FileSource source(path);
  return snapshot::load(cache, source, options);
}

}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
