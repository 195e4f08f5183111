// Options of saving and loading a snapshot, and what loading returns.
#pragma once

#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/snapshot/contents.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

/// Options of saving: what goes into the snapshot beside the committed positions of the sequences.
struct SaveOptions {
  /// The blocks that the policy has cached for later prompts, if it caches any.
  bool cached_prefixes = true;
  bool reserved = false;  ///< the positions of an uncommitted extension
};

/// Options of loading.
struct LoadOptions {
  /// Load what was cached and no sequence references, if the policy keeps such.
  bool cached_prefixes = true;
  bool convert_elements = false;  ///< allow f32, f16 and bf16 for each other, rounding to nearest
};

/// The result of loading a snapshot.
struct Loaded {
  std::vector<SeqId> sequences;  ///< in the order in which they were saved
  /// contents.tokens_of(i): the known tokens of sequence i. With layer groups, `shape` is that of the first one, and
  /// `blocks` has one for each sequence, and for each prefix that was cached.
  Contents contents;
};

}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
