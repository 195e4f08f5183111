# kvc_engine_parts: the engines as threads, and the model that they run. Of the program and of its tests.
if(NOT TARGET kvc_engine_parts)
  add_library(kvc_engine_parts STATIC
    "${CMAKE_CURRENT_LIST_DIR}/alone.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/in_process.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/model.cpp")
  target_include_directories(kvc_engine_parts PUBLIC "${CMAKE_CURRENT_LIST_DIR}")
  target_link_libraries(kvc_engine_parts PUBLIC kvc_own_kernels)
endif()
