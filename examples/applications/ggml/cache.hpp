// Cache: a KvCache of any policy and element type behind one interface, for an engine that is compiled once.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/parallel/spmd.hpp"
#include "kvc/policy/concept.hpp"
#include "model.hpp"

namespace ggml_engine {

/// The next tokens of one sequence, to be computed in one pass beside those of others.
struct Chunk {
  kvc::SeqId seq;
  std::span<const Token> tokens;
};

/// The size and kind of a cache.
struct CacheOptions {
  std::string policy = "paged";  ///< contiguous, paged or prefix-shared
  std::string element = "f32";   ///< f32, f16, bf16, int8, fp8 or int4
  Pos block_tokens = 16;
  Pos sequences = 1;   ///< open at the same time; with prefix-shared, also as many that stay cached
  Pos max_tokens = 0;  ///< of one sequence
  /// Tokens in one pass that there is always room for, of all sequences together; 0: max_tokens. With fewer, the pool
  /// is smaller, and a longer pass may find no room while the other sequences have all their tokens.
  Pos pass_tokens = 0;
  /// What rows depend on besides their tokens, such as a checksum of the model: prefixes of another salt are not found.
  /// For snapshots, which may be of another model with the same extents.
  std::string salt{};
};

/// Keys and values of the sequences of an engine. A pass goes: begin, attend for each layer in order, commit. Errors
/// are those of KvCache. Not for several threads at once, but for `attend`, which uses those of its team.
class Cache {
 public:
  virtual ~Cache() = default;

  /// A new sequence, with what is in place of the prompt. Throws CapacityError if there is no room.
  [[nodiscard]] virtual kvc::Opened open(std::span<const Token> prompt) = 0;
  virtual void close(kvc::SeqId seq) = 0;
  [[nodiscard]] virtual Pos length(kvc::SeqId seq) const = 0;

  /// Reserves the positions of a pass, of all sequences or, if one has no room (CapacityError), of none.
  virtual void begin(std::span<const Chunk> chunks) = 0;
  /// Stores the rows of one layer, and computes the attention of all rows of the pass, those of its sequences one after
  /// the other.   q  [rows, heads * key_dim]   k  [rows, kv_heads * key_dim]   v, out likewise with value_dim
  virtual void attend(Index layer, const float* q, const float* k, const float* v, float* out,
                      const kvc::Spmd::Team& team) = 0;
  /// Makes the positions of the pass part of their sequences.
  virtual void commit() = 0;
  /// Takes them back.
  virtual void rollback() noexcept = 0;

  /// Saves all open sequences and cached prefixes as a snapshot of kvc. Throws as snapshot::save.
  virtual void save(const std::string& path) const = 0;
  /// Adds those of a snapshot, of a cache of any policy and block size. Returns the sequences in the order of saving.
  /// Throws as snapshot::load: FormatError, which names the file, for another model or element type.
  virtual std::vector<kvc::SeqId> load(const std::string& path) = 0;

  [[nodiscard]] virtual kvc::Stats stats() const = 0;
  [[nodiscard]] virtual Index pool_bytes() const = 0;
  /// Bytes of the slots that open sequences hold, in all layers.
  [[nodiscard]] virtual Index held_bytes() const = 0;
};

/// A cache for a model. Throws std::invalid_argument for a name that it does not know, or sizes that are not allowed.
[[nodiscard]] std::unique_ptr<Cache> make_cache(const Model& model, const CacheOptions& options);

}  // namespace ggml_engine
