// author.hpp: the parts that an eviction policy is made of, for those who write one.
//
//   EvictionDefaults   an empty Config and SequenceContext, and empty members for calls that a policy ignores
//   BlockLists         lists of blocks through one array, the oldest first
//   BlockHeap<Key>     blocks by a key, when lists cannot express the order
//   BlockArray<T>      a value for each block
//   Retention          what a caller says of how long blocks are wanted
//
// The contract is the table in policy/eviction/concept.hpp; testing/eviction_conformance.hpp checks a policy against
// it. policy/eviction/lru.hpp is the shortest example.
#pragma once

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/eviction/block_heap.hpp"
#include "kvc/policy/eviction/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/retention.hpp"
