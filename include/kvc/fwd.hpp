// Forward declarations and default arguments, for headers that only name the types of kvc:
//
//   #include "kvc/fwd.hpp"
//   void step(kvc::KvCache<float, kvc::PrefixShared<>>& cache, kvc::SeqId seq);
//
// Synchronized, Mixed, DenseView, SelectedView and CompressedView are left out: their parameters are constrained by
// concepts, which a declaration would have to include. Standard library only. SeqId and BlockId are complete in
// core/types.hpp, which is as cheap.
#pragma once

#include <cstdint>

namespace kvc {
inline namespace v0 {

// core
enum class BlockId : std::int32_t;
struct SeqId;
struct PosRange;
struct SlotRun;
struct RowCopy;
struct Stats;
class TokenSpan;
template <class S>
class MatrixRef;
template <class S>
class MatrixArg;
class CapacityError;
class FormatError;
class InvariantError;

// element
template <class T>
struct Element;
template <class T>
struct KvRun;
struct Int8;
struct Fp8E4M3;
struct Int4;
struct None;

// layout, memory, parallel
struct Shape;
struct PoolExtents;
struct LayerKind;
struct LayerGroup;
class LayerGroups;
class HeadMajor;
class TokenMajor;
template <class Order = TokenMajor>
class LayerMajor;
template <class L = HeadMajor>
class ScalePlanes;
struct HostSpace;
class BorrowedSpace;
struct Sequential;
class Spmd;

// policy
class Salt;
struct OpenOptions;
struct RestoreOptions;
struct Opened;
struct Extension;
struct Forked;
struct GroupBlocks;
class ChainHash;
struct NoEvents;
class EventCallback;
class EventRing;
class AdaptiveMutex;
class SharedAdaptiveMutex;
class CostAware;
class Fifo;
class Lfu;
class Lru;
class Priority;
class ReuseHazard;
class S3Fifo;
class TinyLfu;
class Contiguous;
class Paged;
template <class Eviction = ReuseHazard, class Hash = ChainHash, class Events = NoEvents>
class PrefixShared;

// attention
struct AttentionOptions;
struct AttentionState;
struct AttentionStates;
class AttentionMask;
class AttentionOutput;
class Selection;
struct MemoryPlan;

// the cache
template <class P>
class Append;
template <class T, class P, class L>
class CacheView;
template <class T, class P, class L = HeadMajor, class S = HostSpace>
class KvCache;
struct BatchTables;
struct BatchIndex;

}  // namespace v0
}  // namespace kvc
