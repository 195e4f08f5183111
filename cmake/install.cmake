# install() for users of find_package(kvc) and of pkg-config. Everything installed is relocatable, and, without
# KVC_ATTENTION, independent of the architecture.

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(kvc_cmake_dir "${CMAKE_INSTALL_DATADIR}/cmake/kvc")
set(kvc_pkgconfig_dir "${CMAKE_INSTALL_DATADIR}/pkgconfig")

target_include_directories(kvc INTERFACE "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
install(TARGETS kvc EXPORT kvcTargets)
if(TARGET kvc_with_cuda)
  install(TARGETS kvc_with_cuda EXPORT kvcTargets)
endif()
install(EXPORT kvcTargets NAMESPACE kvc:: DESTINATION "${kvc_cmake_dir}")
set(kvc_architecture ARCH_INDEPENDENT)
if(KVC_ATTENTION)
  install(TARGETS kvc_attention EXPORT kvcAttentionTargets ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
  install(EXPORT kvcAttentionTargets NAMESPACE kvc:: DESTINATION "${kvc_cmake_dir}")
  set(kvc_architecture)
endif()
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")

configure_package_config_file(
  "${CMAKE_CURRENT_LIST_DIR}/kvcConfig.cmake.in" "${PROJECT_BINARY_DIR}/cmake/kvcConfig.cmake"
  INSTALL_DESTINATION "${kvc_cmake_dir}"
  NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/cmake/kvcConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ${kvc_architecture})
install(FILES
  "${PROJECT_BINARY_DIR}/cmake/kvcConfig.cmake"
  "${PROJECT_BINARY_DIR}/cmake/kvcConfigVersion.cmake"
  "${CMAKE_CURRENT_LIST_DIR}/kvcMpi.cmake"
  DESTINATION "${kvc_cmake_dir}")

# kvc.pc finds its prefix from its own place, so that an install tree can be moved.
if(IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(kvc_pc_includedir "${CMAKE_INSTALL_INCLUDEDIR}")
else()
  set(kvc_pc_includedir "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
if(IS_ABSOLUTE "${kvc_pkgconfig_dir}")
  set(kvc_pc_prefix "${CMAKE_INSTALL_PREFIX}")
else()
  file(RELATIVE_PATH kvc_pc_prefix "/${kvc_pkgconfig_dir}" "/")
  string(REGEX REPLACE "/$" "" kvc_pc_prefix "\${pcfiledir}/${kvc_pc_prefix}")
endif()
configure_file("${CMAKE_CURRENT_LIST_DIR}/kvc.pc.in" "${PROJECT_BINARY_DIR}/cmake/kvc.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/cmake/kvc.pc" DESTINATION "${kvc_pkgconfig_dir}")
