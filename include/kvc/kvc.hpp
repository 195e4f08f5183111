// kvc: the KV cache of transformer inference. One include for an engine or for research code:
//
//   the cache       KvCache and Append, with batch tables for paged kernels
//   policies        Contiguous, Paged, PrefixShared and all its eviction policies, Synchronized, orders of a batch
//   element types   float, Eigen::half, Eigen::bfloat16, Int8, Fp8E4M3, Int4, Mixed, None
//   layouts         HeadMajor, TokenMajor, LayerMajor, ScalePlanes
//   spaces          HostSpace, BorrowedSpace
//   layer groups    LayerGroups: layers with windows, chunks, cross attention, latent or compressed rows, or recurrent
//                   states in one cache
//   attention       prefill, also of expanded latent rows, decode, reference, AttentionState, masks, selections, and
//                   Sequential to run them
//
// Needs the standard library and Eigen. Not in it, and included one by one:
//
//   kvc/parallel/openmp.hpp, kvc/parallel/tbb.hpp   threads: they need OpenMP, oneTBB
//   kvc/parallel/spmd.hpp                           threads of an engine that all enter an operation
//   kvc/snapshot/snapshot.hpp                       caches in files: needs xxHash
//   kvc/transport/, kvc/transfer/                   caches between engines; transport/mpi.hpp needs MPI
//   kvc/tier/                                       blocks in slower memory, in files and on servers: key_chain.hpp
//                                                   needs libsodium, record.hpp xxHash, redis_store.hpp hiredis
//   kvc/cuda/                                       caches in device memory: needs the CUDA compiler
//   kvc/interop/, kvc/cache/fingerprint.hpp         what kernels and caches of others need to know
//   kvc/policy/author.hpp, kvc/testing/             to write and to test policies, layouts, ... of your own
//   kvc/attention/extern.hpp                        attention compiled once per program
//   kvc/llama/                                      a small reference decoder, namespace kvc::llama
//   kvc/fwd.hpp                                     forward declarations
#pragma once

#include "kvc/attention/compressed.hpp"
#include "kvc/attention/decode.hpp"
#include "kvc/attention/expanded.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/mask.hpp"
#include "kvc/attention/memory_plan.hpp"
#include "kvc/attention/memory_plan_choice.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/attention/reference.hpp"
#include "kvc/attention/scores.hpp"
#include "kvc/attention/selection.hpp"
#include "kvc/attention/state.hpp"
#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/element.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/mixed.hpp"
#include "kvc/element/none.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/layer_major.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "kvc/memory/borrowed_space.hpp"
#include "kvc/memory/space.hpp"
#include "kvc/parallel/executor.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/block_value.hpp"
#include "kvc/policy/eviction/cost_aware.hpp"
#include "kvc/policy/eviction/fifo.hpp"
#include "kvc/policy/eviction/lfu.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/eviction/priority.hpp"
#include "kvc/policy/eviction/reuse_hazard.hpp"
#include "kvc/policy/eviction/s3_fifo.hpp"
#include "kvc/policy/eviction/tiny_lfu.hpp"
#include "kvc/policy/ordering.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/policy/synchronized.hpp"
#include "kvc/version.hpp"
