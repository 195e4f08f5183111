// Macros that a user may set before including kvc, and what kvc derives from the compiler.
//
//   KVC_ASSERT(condition)   a promise of the caller's that is too costly to check always; default: assert
//   KVC_HAS_EXCEPTIONS      1 or 0; derived from the compiler unless set
#pragma once

#ifndef KVC_ASSERT
#include <cassert>
#define KVC_ASSERT(condition) assert(condition)
#endif

#ifndef KVC_HAS_EXCEPTIONS
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define KVC_HAS_EXCEPTIONS 1
#else
#define KVC_HAS_EXCEPTIONS 0
#endif
#endif

// Functions that the host and the kernels of kvc/cuda share.
#if defined(__CUDACC__)
#define KVC_HOST_DEVICE __host__ __device__
#else
#define KVC_HOST_DEVICE
#endif

#if defined(__GNUC__) || defined(__clang__)
#define KVC_ALWAYS_INLINE [[gnu::always_inline]] inline
#define KVC_COLD [[gnu::cold, gnu::noinline]]
#define KVC_OUT_OF_LINE [[gnu::noinline]]
#else
#define KVC_ALWAYS_INLINE inline
#define KVC_COLD
#define KVC_OUT_OF_LINE
#endif

// Before a loop that must stay one.
#if defined(__clang__)
#define KVC_NOT_UNROLLED _Pragma("clang loop unroll(disable)")
#elif defined(__GNUC__) && !defined(__CUDACC__)
#define KVC_NOT_UNROLLED _Pragma("GCC unroll 1")
#else
#define KVC_NOT_UNROLLED
#endif
