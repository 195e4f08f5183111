# kvc_trace: the readers of request traces. No target kvc_trace: KVC_TRACE_MISSING says what it lacks.
# Included by each folder that links it, since what find_package finds is known to that folder only.
find_package(ZLIB QUIET)
find_package(nlohmann_json CONFIG QUIET)
set(KVC_TRACE_MISSING "")
if(NOT ZLIB_FOUND)
  list(APPEND KVC_TRACE_MISSING "zlib (Debian: zlib1g-dev)")
endif()
if(NOT nlohmann_json_FOUND)
  list(APPEND KVC_TRACE_MISSING "nlohmann_json (Debian: nlohmann-json3-dev)")
endif()
if(NOT KVC_TRACE_MISSING AND NOT TARGET kvc_trace)
  add_library(kvc_trace STATIC EXCLUDE_FROM_ALL
    "${CMAKE_CURRENT_LIST_DIR}/json_fields.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/line_reader.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/parse.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/trace.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/trace_input.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/trace_reader.cpp")
  target_include_directories(kvc_trace PUBLIC "${CMAKE_CURRENT_LIST_DIR}")
  target_link_libraries(kvc_trace PUBLIC kvc_own ZLIB::ZLIB nlohmann_json::nlohmann_json)
endif()
