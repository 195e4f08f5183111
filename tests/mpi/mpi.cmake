# Between processes: programs of mpi/ that mpirun runs, with more processes than processors if need be.
set(faults killed_receiver killed_sender stalled_receiver stalled_sender full_pool cancelled)
set(tests mpi/contract mpi/round_trip mpi/hostile)
foreach(fault IN LISTS faults)
  list(APPEND tests mpi/faults/${fault})
endforeach()

if(NOT "mpi" IN_LIST KVC_TEST_SUITES OR KVC_TEST_SPEC)
  return()
endif()
if(NOT TARGET kvc::mpi OR NOT MPIEXEC_EXECUTABLE)
  foreach(test IN LISTS tests)
    add_test(NAME ${test} COMMAND ${CMAKE_COMMAND} -E echo "skipped: no MPI (Debian: libopenmpi-dev, openmpi-bin)")
    set_tests_properties(${test} PROPERTIES LABELS mpi SKIP_REGULAR_EXPRESSION "^skipped: ")
  endforeach()
  return()
endif()

# With --enable-recovery a process that dies does not take the others with it; nor is it seen in the exit status.
function(kvc_add_mpi_program name)
  add_executable(kvc_mpi_${name} mpi/${name}.cpp)
  target_link_libraries(kvc_mpi_${name} PRIVATE kvc_own kvc::mpi)
  target_include_directories(kvc_mpi_${name} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
  target_compile_options(kvc_mpi_${name} PRIVATE ${KVC_TEST_FLAGS})
endfunction()

foreach(program IN ITEMS contract round_trip)
  kvc_add_mpi_program(${program})
  add_test(NAME mpi/${program} COMMAND ${kvc_mpirun} 3 "$<TARGET_FILE:kvc_mpi_${program}>")
endforeach()
kvc_add_mpi_program(hostile)
add_test(NAME mpi/hostile COMMAND ${kvc_mpirun} 2 "$<TARGET_FILE:kvc_mpi_hostile>")
kvc_add_mpi_program(faults)
foreach(fault IN LISTS faults)
  add_test(NAME mpi/faults/${fault} COMMAND ${kvc_mpirun} 3 --enable-recovery "$<TARGET_FILE:kvc_mpi_faults>" ${fault})
  set_tests_properties(mpi/faults/${fault} PROPERTIES
    PASS_REGULAR_EXPRESSION "all is well"
    FAIL_REGULAR_EXPRESSION "not so: |terminate called|wrong|Sanitizer|runtime error")
endforeach()
# Each takes two processors for some seconds. The programs give up by themselves after 100 s.
set_tests_properties(${tests} PROPERTIES LABELS mpi TIMEOUT 240 PROCESSORS 2)
