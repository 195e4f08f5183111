// Forward declarations, for headers that only name kvc's types.
#pragma once

#include <cstdint>

namespace kvc {
inline namespace v0 {

enum class BlockId : std::int32_t;
struct SeqId;
struct PosRange;
struct SlotRun;
struct Shape;
struct Stats;
struct BatchIndex;
struct OpenOptions;
struct HostSpace;
class Salt;
class HeadMajor;
class TokenMajor;
class Contiguous;
class Paged;
class CostAware;
class Fifo;
class Lfu;
class Lru;
class Priority;
class ReuseHazard;
class S3Fifo;
class TinyLfu;
class ChainHash;
struct Int8;
struct Fp8E4M3;
struct Int4;

template <class T>
struct Element;

}  // namespace v0
}  // namespace kvc
