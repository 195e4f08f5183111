# kvc_serve: scheduler, traffic, scenarios and simulation, all but the program. No target kvc_serve: trace.cmake says
# what it lacks. Included by each folder that links it, since what find_package finds is known to that folder only.
include("${CMAKE_CURRENT_LIST_DIR}/../trace/trace.cmake")
if(TARGET kvc_trace AND NOT TARGET kvc_serve)
  set(kvc_serve_sources cost_model json_fields report run scenario trace_source traffic)
  list(TRANSFORM kvc_serve_sources PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
  list(TRANSFORM kvc_serve_sources APPEND ".cpp")
  add_library(kvc_serve STATIC ${kvc_serve_sources})
  target_include_directories(kvc_serve PUBLIC "${CMAKE_CURRENT_LIST_DIR}" "${CMAKE_CURRENT_LIST_DIR}/..")
  target_link_libraries(kvc_serve PUBLIC kvc_trace)
  # Simulated time is computed in double: without contraction it is the same with every compiler.
  target_compile_options(kvc_serve PUBLIC -ffp-contract=off)
endif()
