// author.hpp: the parts that a policy is made of, for those who write one.
//
//   BlockPolicyBase         all of a paged policy but its decisions: to begin with
//   SequenceTable<Record>   open sequences by handle; stale handles are recognised
//   SequenceLengths         committed and reserved length of a sequence, and the checks that the contract demands
//   BlockPool               blocks with reference counts
//   BlockArray<T>           a value for each block
//   for_each_block_run      the runs of a table of blocks
//   policy/capabilities.hpp abilities beyond the contract, which KvCache and Synchronized then offer too
//
// The contract is the table in policy/concept.hpp; testing/policy_conformance.hpp checks a policy against it.
#pragma once

#include "kvc/core/error.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/block_policy_base.hpp"
#include "kvc/policy/block_pool.hpp"
#include "kvc/policy/block_runs.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/sequence_table.hpp"
