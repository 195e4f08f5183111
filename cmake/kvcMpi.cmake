# kvc::mpi, for kvc/transport/mpi.hpp: made where MPI is found, here and in projects that ask for
# find_package(kvc COMPONENTS mpi). The rest of kvc knows nothing of MPI.
find_package(MPI QUIET COMPONENTS CXX)
if(MPI_CXX_FOUND AND NOT TARGET kvc::mpi)
  add_library(kvc::mpi INTERFACE IMPORTED)
  set_target_properties(kvc::mpi PROPERTIES
    INTERFACE_LINK_LIBRARIES "kvc::kvc;MPI::MPI_CXX"
    # The bindings of MPI-2 for C++, which are no part of MPI any more.
    INTERFACE_COMPILE_DEFINITIONS "OMPI_SKIP_MPICXX;MPICH_SKIP_MPICXX")
endif()
