# kvc_ggml_engine: the engine of examples/applications/ggml, where ggml is found. For the examples and the tests.
include_guard(GLOBAL)

option(KVC_GGML "Build the engine on ggml, if ggml and CLI11 are found" ON)
if(KVC_GGML)
  find_package(ggml CONFIG QUIET)
  find_package(CLI11 CONFIG QUIET)
endif()
if(NOT ggml_FOUND)
  message(STATUS "ggml: not found, generate reads no GGUF files (tools/get-ggml builds ggml, and says how to use it)")
elseif(ggml_VERSION VERSION_LESS 0.25)
  message(STATUS "ggml: found ${ggml_VERSION}, the engine on it needs at least 0.25 (tools/get-ggml builds it)")
elseif(NOT CLI11_FOUND OR NOT KVC_XXHASH_INCLUDE_DIR)
  message(STATUS
    "ggml: found, but the engine on it also needs CLI11 (Debian: libcli11-dev) and xxhash.h (libxxhash-dev)")
else()
  message(STATUS "ggml: ${ggml_VERSION}")
  file(GLOB kvc_ggml_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/*.cpp")
  foreach(element IN LISTS kvc_elements)  # a file for each element type: they take long to compile
    string(REGEX REPLACE ".*:" "" name "${element}")
    set(source "${PROJECT_BINARY_DIR}/kernels/ggml_cache_${name}.cpp")
    file(CONFIGURE OUTPUT "${source}" CONTENT "#include \"ggml/cache_of.hpp\"\n
template std::unique_ptr<ggml_engine::Cache> ggml_engine::make_cache_of<@element@>(
    const ggml_engine::Model&, const ggml_engine::CacheOptions&);\n" @ONLY)
    list(APPEND kvc_ggml_sources "${source}")
  endforeach()
  add_library(kvc_ggml_engine STATIC EXCLUDE_FROM_ALL ${kvc_ggml_sources})
  target_include_directories(kvc_ggml_engine PUBLIC "${CMAKE_CURRENT_LIST_DIR}/..")
  target_link_libraries(kvc_ggml_engine PUBLIC kvc_own_kernels ggml::ggml CLI11::CLI11)
  set_target_properties(kvc_ggml_engine PROPERTIES UNITY_BUILD OFF)
endif()
