// Snapshots: the keys and values of sequences, or of a whole cache, in a file or any other place of bytes.
//
//   save(cache, "sessions.kvc");                          all open sequences, and what is cached
//   save(cache, std::span(&seq, 1), "one.kvc");           one sequence, or several
//   Loaded loaded = load(other, "sessions.kvc");  loaded.sequences, in the order of saving
//
// A block that several sequences share is stored once, and shared again after loading, if the policy shares. The other
// cache may have another policy, block size and layout; the same shape and, unless LoadOptions says otherwise, the same
// element type. Rows come back bit for bit. What was cached for later prompts is found again; the order of eviction
// begins anew, and pins are not saved: their blocks are, as cached ones.
//
// A file is replaced at once or not at all, whenever the process is killed. Bytes that are not right give a FormatError
// that names source, offset and expectation; a load that fails changes nothing, and takes no more memory than the bytes
// that are there justify. The format is in docs/format.md.
//
// Threads: saving reads the cache, as its const members do; loading is a writer's work.
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
#include "kvc/core/types.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/io/file.hpp"
#include "kvc/snapshot/collect.hpp"
#include "kvc/snapshot/reader.hpp"
#include "kvc/snapshot/writer.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

/// Writes sequences to a sink, with their committed positions. O(bytes). Throws what the sink throws, and
/// std::invalid_argument for a sequence that is not open.
template <class Cache>
void save(const Cache& cache, std::span<const SavedSequence> sequences, io::ByteSink& sink,
          const SaveOptions& options = {}) {
  Writer<Cache> writer(cache, sequences, sink, options);
  for (Index layer = 0; layer < cache.shape().layers; ++layer) {
    writer.layer(layer);
  }
  writer.finish();
}
/// Makes or replaces a file: see io::replace_file.
template <class Cache>
void save(const Cache& cache, std::span<const SavedSequence> sequences, const std::filesystem::path& path,
          const SaveOptions& options = {}) {
  io::replace_file(path, [&](io::ByteSink& sink) { save(cache, sequences, sink, options); });
}
/// Sequences whose tokens and salts are those that the policy knows. `to` is a sink or a path.
template <class Cache, class To>
void save(const Cache& cache, std::span<const SeqId> sequences, To&& to, const SaveOptions& options = {}) {
  std::vector<SavedSequence> saved;
  for (const SeqId seq : sequences) {
    saved.push_back({seq, {}, {}});
  }
  save(cache, std::span<const SavedSequence>(saved), std::forward<To>(to), options);
}
/// The whole cache: all open sequences, in the order of Cache::sequences(), and what is cached.
template <class Cache, class To>
  requires(std::derived_from<std::remove_cvref_t<To>, io::ByteSink> || std::convertible_to<To, std::filesystem::path>)
void save(const Cache& cache, To&& to, const SaveOptions& options = {}) {
  save(cache, std::span<const SeqId>(cache.sequences()), std::forward<To>(to), options);
}

/// Adds to the cache what is in a snapshot. Empty if there is no room for all of it: nothing has changed then.
/// Throws FormatError if the bytes are not right; nothing has changed then either, unless room had to be made by
/// evicting and the source cannot be read twice. O(bytes).
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
template <class Cache>
[[nodiscard]] std::optional<Loaded> try_load(Cache& cache, const std::filesystem::path& path,
                                             const LoadOptions& options = {}) {
  io::FileSource source(path);
  return try_load(cache, source, options);
}

/// The same, but throws CapacityError where there is no room.
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
template <class Cache>
Loaded load(Cache& cache, const std::filesystem::path& path, const LoadOptions& options = {}) {
  io::FileSource source(path);
  return load(cache, source, options);
}

}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
