# Settings of the tests, examples and benchmarks. Nothing here reaches the exported target kvc::kvc.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES AND kvc_top_level)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release, RelWithDebInfo or MinSizeRel" FORCE)
endif()

option(KVC_NATIVE "Compile tests, examples and benchmarks with -march=native" ${kvc_top_level})
option(KVC_WERROR "Treat warnings in tests, examples and benchmarks as errors" OFF)
option(KVC_OPENMP "Use OpenMP in tests, examples and benchmarks, if it is found" ON)
option(KVC_TBB "Use oneTBB in tests, examples and benchmarks, if it is found" ON)
set(KVC_SANITIZE "" CACHE STRING "Sanitizers for tests, examples and benchmarks, such as address,undefined")
# Tests that AddressSanitizer leaves out: long ones, over code that others run with it.
set(kvc_unsanitized golden/perplexity golden/accuracy golden/model_stories golden/generate_program golden/replay_program
  golden/lru_on_a_trace oracle/eviction_guarantee serving/incidents serving/documents laws/model_decoder
  laws/attention_accuracy laws/attention_expanded laws/model_threads unit/load_or_compute unit/memory_kinds)

find_package(Threads REQUIRED)
if(KVC_OPENMP)
  find_package(OpenMP COMPONENTS CXX)
endif()
if(KVC_TBB)
  find_package(TBB CONFIG QUIET)
  message(STATUS "oneTBB: ${TBB_FOUND}")
endif()

# Before the number of processes and the program, in tests: more processes than processors if need be, and as root.
# Open MPI leaks at its end, and loads what leaks in ways that LeakSanitizer cannot name.
set(kvc_mpirun ${CMAKE_COMMAND} -E env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  ASAN_OPTIONS=detect_leaks=0 "${MPIEXEC_EXECUTABLE}" --oversubscribe ${MPIEXEC_NUMPROC_FLAG})

# kvc/snapshot needs the header of xxHash, and nothing to link.
find_path(KVC_XXHASH_INCLUDE_DIR xxhash.h)
mark_as_advanced(KVC_XXHASH_INCLUDE_DIR)
message(STATUS "xxHash, for kvc/snapshot and kvc/tier: ${KVC_XXHASH_INCLUDE_DIR}")

# kvc/tier needs libsodium for keys, and hiredis for Redis; with liburing it reads and writes files by io_uring.
find_path(KVC_SODIUM_INCLUDE_DIR sodium.h)
find_library(KVC_SODIUM_LIBRARY sodium)
find_path(KVC_HIREDIS_INCLUDE_DIR hiredis/hiredis.h)
find_library(KVC_HIREDIS_LIBRARY hiredis)
find_path(KVC_LIBURING_INCLUDE_DIR liburing.h)
find_library(KVC_LIBURING_LIBRARY uring)
mark_as_advanced(KVC_SODIUM_INCLUDE_DIR KVC_SODIUM_LIBRARY KVC_HIREDIS_INCLUDE_DIR KVC_HIREDIS_LIBRARY
  KVC_LIBURING_INCLUDE_DIR KVC_LIBURING_LIBRARY)
message(STATUS
  "kvc/tier: libsodium ${KVC_SODIUM_LIBRARY}, hiredis ${KVC_HIREDIS_LIBRARY}, liburing ${KVC_LIBURING_LIBRARY}")

add_library(kvc_own INTERFACE)
target_link_libraries(kvc_own INTERFACE kvc::kvc Threads::Threads)
target_compile_definitions(kvc_own INTERFACE "KVC_SOURCE_DIR=\"${PROJECT_SOURCE_DIR}\"")
target_compile_options(kvc_own INTERFACE
  -Wall -Wextra -Wpedantic -Wconversion -Wshadow
  # g++ 12 and 13 see an overlap in every "literal" + std::string of the standard library.
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)
if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(kvc_own INTERFACE -Wno-shadow)  # warns of names of another file
endif()
if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # A suite in one translation unit fills gigabytes, which g++ would search for garbage again and again.
  target_compile_options(kvc_own INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:--param=ggc-min-expand=400;--param=ggc-min-heapsize=1000000>")
endif()
if(KVC_WERROR)
  target_compile_options(kvc_own INTERFACE -Werror)
endif()
if(KVC_NATIVE)
  include(CheckCXXCompilerFlag)
  check_cxx_compiler_flag(-march=native KVC_HAVE_MARCH_NATIVE)
  if(KVC_HAVE_MARCH_NATIVE)
    target_compile_options(kvc_own INTERFACE -march=native)
  endif()
endif()
if(KVC_SANITIZE)
  string(REPLACE ";" "," kvc_sanitize "${KVC_SANITIZE}")
  target_compile_options(kvc_own INTERFACE
    -fsanitize=${kvc_sanitize} -fno-sanitize-recover=all -fno-omit-frame-pointer
    # The instrumentation makes g++ see uninitialised values in the standard library.
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  target_link_options(kvc_own INTERFACE -fsanitize=${kvc_sanitize})
  if(kvc_sanitize MATCHES "address" AND CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    # Checks are calls instead of code in place: a quarter less to compile.
    target_compile_options(kvc_own INTERFACE -fsanitize-address-outline-instrumentation)
  endif()
  if(kvc_sanitize MATCHES "undefined")
    # A check of every reference and of every sum with a pointer makes unrolled vector code take ten times as long to
    # compile, and AddressSanitizer sees what comes of a wrong one.
    target_compile_options(kvc_own INTERFACE -fno-sanitize=null,object-size,pointer-overflow)
  endif()
endif()
# Options of targets that nvcc compiles here, for Ampere and Hopper; other devices translate the code of the first at
# run time. Warnings are errors.
if(KVC_ENABLE_CUDA)
  set(KVC_CUDA_TARGETS "compute_80,code=[sm_80,compute_80];compute_90a,code=sm_90a" CACHE STRING
    "Values of nvcc's -gencode arch= for tests and benchmarks; all: also those with instructions that convert fp8")
  if(KVC_CUDA_TARGETS STREQUAL "all")
    set(KVC_CUDA_TARGETS "compute_80,code=[sm_80,compute_80]" "compute_90a,code=sm_90a")
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-arch OUTPUT_VARIABLE kvc_known_targets)
    foreach(arch IN ITEMS 89 100 120)  # Ada and Blackwell, where the compiler has them
      if(kvc_known_targets MATCHES "compute_${arch}\n")
        list(APPEND KVC_CUDA_TARGETS "compute_${arch},code=sm_${arch}")
      endif()
    endforeach()
  endif()
  add_library(kvc_own_nvcc INTERFACE)  # for no architecture yet
  target_include_directories(kvc_own_nvcc INTERFACE "${PROJECT_SOURCE_DIR}/include")  # and so without Eigen
  target_compile_options(kvc_own_nvcc INTERFACE $<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:
    -std=c++20 -Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Wconversion,-Wshadow,-Werror>)
  option(KVC_CUDA_QUICK
    "Without a device, where nothing runs what nvcc makes: let it optimise little, and compile few headers" OFF)
  if(KVC_CUDA_QUICK AND NOT EXISTS /dev/nvidiactl AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
    target_compile_options(kvc_own_nvcc INTERFACE $<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:--Ofast-compile=max>)
  endif()
  add_library(kvc_own_cuda INTERFACE)
  target_link_libraries(kvc_own_cuda INTERFACE kvc_own_nvcc)
  foreach(arch IN LISTS KVC_CUDA_TARGETS)
    target_compile_options(kvc_own_cuda INTERFACE
      "$<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:SHELL:-gencode \"arch=${arch}\">")
  endforeach()
endif()
# kvc_own_tiers: for what uses kvc/tier with all libraries that are there.
add_library(kvc_own_tiers INTERFACE)
foreach(kvc_library IN ITEMS SODIUM HIREDIS LIBURING)
  if(KVC_${kvc_library}_INCLUDE_DIR AND KVC_${kvc_library}_LIBRARY)
    target_link_libraries(kvc_own_tiers INTERFACE "${KVC_${kvc_library}_LIBRARY}")
    target_compile_definitions(kvc_own_tiers INTERFACE KVC_HAVE_${kvc_library})
  endif()
endforeach()
# Checksums by the code of libxxhash for the processor at hand, where the library has that.
find_library(KVC_XXHASH_LIBRARY xxhash)
mark_as_advanced(KVC_XXHASH_LIBRARY)
if(KVC_XXHASH_LIBRARY)
  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_LIBRARIES "${KVC_XXHASH_LIBRARY}")
  check_cxx_source_compiles("
    #define XXH_STATIC_LINKING_ONLY
    #include <xxh_x86dispatch.h>
    int main() { return static_cast<int>(XXH3_64bits(nullptr, 0) >> 63); }" KVC_XXHASH_HAS_DISPATCH)
  unset(CMAKE_REQUIRED_LIBRARIES)
  if(KVC_XXHASH_HAS_DISPATCH)
    target_link_libraries(kvc_own_tiers INTERFACE "${KVC_XXHASH_LIBRARY}")
    target_compile_definitions(kvc_own_tiers INTERFACE KVC_XXHASH_DISPATCH)
  endif()
endif()
if(KVC_XXHASH_INCLUDE_DIR)
  target_include_directories(kvc_own SYSTEM INTERFACE "${KVC_XXHASH_INCLUDE_DIR}")
endif()
if(KVC_OPENMP AND OpenMP_CXX_FOUND)
  target_link_libraries(kvc_own INTERFACE OpenMP::OpenMP_CXX)
  target_compile_definitions(kvc_own INTERFACE KVC_HAVE_OPENMP)
endif()
if(KVC_TBB AND TBB_FOUND)
  target_link_libraries(kvc_own INTERFACE TBB::tbb)
  target_compile_definitions(kvc_own INTERFACE KVC_HAVE_TBB)
endif()

# kvc_own_kernels: the kernels of attention, once for all programs here that include kvc/attention/extern.hpp, and with
# an optimisation of their own, whatever the program has.
set(KVC_KERNEL_FLAGS "" CACHE STRING "Compiler options of the kernels of attention, after those of the build type")
set(KVC_OWN_ELEMENTS "${kvc_elements}" CACHE STRING
  "Element types of the kernels of attention for tests, examples and benchmarks: all, float;kvc::Int8, or float")
if(NOT (KVC_OWN_ELEMENTS STREQUAL "${kvc_elements}" OR KVC_OWN_ELEMENTS STREQUAL "float;kvc::Int8" OR
        KVC_OWN_ELEMENTS STREQUAL "float"))  # those that the tests can do with
  message(FATAL_ERROR
    "KVC_OWN_ELEMENTS is '${KVC_OWN_ELEMENTS}', must be '${kvc_elements}', 'float;kvc::Int8' or 'float'")
endif()
kvc_kernel_sources(kvc_own_kernel_sources ${KVC_OWN_ELEMENTS})
add_library(kvc_own_kernels STATIC EXCLUDE_FROM_ALL ${kvc_own_kernel_sources})
target_link_libraries(kvc_own_kernels PUBLIC kvc_own)
target_compile_options(kvc_own_kernels PRIVATE ${KVC_KERNEL_FLAGS})
set_target_properties(kvc_own_kernels PROPERTIES UNITY_BUILD_BATCH_SIZE 2)  # they take longest, and share little
