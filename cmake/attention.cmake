# kvc::attention: the kernels of attention, compiled once, for programs that do not want to compile them in every file.
# A target that links it takes the kernels from it (KVC_ATTENTION_IS_COMPILED), and everything else from the headers. It
# is built where something links it, and installed with KVC_ATTENTION=ON; kvc::kvc stays header-only.
#
# The processor decides which kernels an element type has, and inline functions of different targets have the same
# names. So the options in KVC_ATTENTION_TARGET, such as -march=x86-64-v3, go to all that link kvc::attention.

option(KVC_ATTENTION "Build and install kvc::attention" OFF)
set(kvc_elements float Eigen::half Eigen::bfloat16 kvc::Int8 kvc::Fp8E4M3 kvc::Int4)
set(KVC_ATTENTION_ELEMENTS "${kvc_elements}" CACHE STRING "Element types of kvc::attention")
set(KVC_ATTENTION_TARGET "" CACHE STRING
  "Compiler options that name the processor, of kvc::attention and all that links it")
set(KVC_ATTENTION_FLAGS "-O3" CACHE STRING "Compiler options of kvc::attention itself, after those of the build type")

# kvc_kernel_sources(OUT ELEMENT...): one file with the kernels of each element type.
function(kvc_kernel_sources out)
  set(sources)
  foreach(element IN LISTS ARGN)
    string(REGEX REPLACE ".*:" "" name "${element}")
    set(source "${PROJECT_BINARY_DIR}/kernels/${name}.cpp")
    file(CONFIGURE OUTPUT "${source}" CONTENT "#include <kvc/attention/extern.hpp>\n
template class kvc::detail::QueryTile<kvc::detail::KvTile<@element@>>;\n" @ONLY)
    list(APPEND sources "${source}")
  endforeach()
  set(${out} "${sources}" PARENT_SCOPE)
endfunction()

kvc_kernel_sources(kvc_attention_sources ${KVC_ATTENTION_ELEMENTS})
add_library(kvc_attention STATIC ${kvc_attention_sources})
add_library(kvc::attention ALIAS kvc_attention)
set_target_properties(kvc_attention PROPERTIES EXPORT_NAME attention POSITION_INDEPENDENT_CODE ON)
if(NOT KVC_ATTENTION)
  set_target_properties(kvc_attention PROPERTIES EXCLUDE_FROM_ALL ON)
endif()
target_link_libraries(kvc_attention PUBLIC kvc)
target_compile_definitions(kvc_attention INTERFACE KVC_ATTENTION_IS_COMPILED)
target_compile_options(kvc_attention PUBLIC ${KVC_ATTENTION_TARGET} PRIVATE ${KVC_ATTENTION_FLAGS})
