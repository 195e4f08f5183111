# kvc_serve: scheduler, traffic, scenarios, simulated and real runs, all but the program. No target kvc_serve:
# trace.cmake says what it lacks. Included by each folder that links it, since what find_package finds is known to that
# folder only.
include("${CMAKE_CURRENT_LIST_DIR}/../trace/trace.cmake")
if(TARGET kvc_trace AND NOT TARGET kvc_serve)
  set(kvc_serve_sources calibration cost_curve cost_model html measure_turns model_shape plot plot_tiers real
    real_contiguous real_paged real_prefix_shared report run scenario simulate_tiered step_timing tier_curve
    trace_source traffic)
  list(TRANSFORM kvc_serve_sources PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
  list(TRANSFORM kvc_serve_sources APPEND ".cpp")
  set_source_files_properties("${CMAKE_CURRENT_LIST_DIR}/step_timing.cpp" PROPERTIES
    SKIP_UNITY_BUILD_INCLUSION ON)  # instantiates what others declare
  add_library(kvc_serve STATIC ${kvc_serve_sources})
  target_include_directories(kvc_serve PUBLIC
    "${CMAKE_CURRENT_LIST_DIR}" "${CMAKE_CURRENT_LIST_DIR}/.." "${CMAKE_CURRENT_LIST_DIR}/../.."
    "${CMAKE_CURRENT_LIST_DIR}/../../../examples/applications")
  target_link_libraries(kvc_serve PUBLIC kvc_trace kvc_own_kernels kvc_own_tiers)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # g++ 12 sees uninitialised values in its own header of AVX-512, wherever Eigen adds up a vector of doubles.
    set_source_files_properties("${CMAKE_CURRENT_LIST_DIR}/calibration.cpp" PROPERTIES
      COMPILE_OPTIONS -Wno-maybe-uninitialized)
  endif()
  # The chart library of the HTML page. Without it all is built: serve-bench --html names its package.
  find_file(KVC_CHART_LIBRARY chart.min.js PATHS /usr/share PATH_SUFFIXES javascript/chart.js nodejs/chart.js/dist
    NO_DEFAULT_PATH DOC "Chart.js 3, as one file for browsers")
  set(kvc_chart_library "/usr/share/javascript/chart.js/chart.min.js")
  if(KVC_CHART_LIBRARY)
    set(kvc_chart_library "${KVC_CHART_LIBRARY}")
  endif()
  target_compile_definitions(kvc_serve PUBLIC "KVC_CHART_LIBRARY=\"${kvc_chart_library}\"")
  # Simulated time is computed in double: without contraction it is the same with every compiler.
  target_compile_options(kvc_serve PUBLIC -ffp-contract=off)
endif()
