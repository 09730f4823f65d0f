# The libraries that selfcal stands on: Debian's packages, and libtorch out of the PyPI wheel.
set(HDF5_PREFER_PARALLEL ON)
find_package(MPI REQUIRED COMPONENTS C)
find_package(HDF5 REQUIRED COMPONENTS C)
if(NOT HDF5_IS_PARALLEL)
  message(FATAL_ERROR "selfcal needs parallel HDF5 (libhdf5-openmpi-dev); found ${HDF5_INCLUDE_DIRS}")
endif()
find_package(yaml-cpp REQUIRED)
find_package(CLI11 REQUIRED)
find_package(spdlog REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(Threads REQUIRED)
find_path(XXHASH_INCLUDE_DIR xxhash.h REQUIRED)
find_library(XXHASH_LIBRARY xxhash REQUIRED)

# TORCH_ROOT is the `torch` folder of an unpacked wheel. The wheel's own CMake package asks for the whole
# CUDA stack, so the two CPU libraries are imported by hand.
if(NOT TORCH_ROOT)
  file(GLOB candidates ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  list(GET candidates 0 TORCH_ROOT)
endif()
set(TORCH_ROOT ${TORCH_ROOT} CACHE PATH "the torch folder of the PyPI wheel")
if(NOT EXISTS ${TORCH_ROOT}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "no libtorch_cpu.so under '${TORCH_ROOT}'; run launch/setup or set TORCH_ROOT")
endif()
set(TORCH_CUDA_RUNTIME ${TORCH_ROOT}/../nvidia/cu13/lib)

add_library(c10 SHARED IMPORTED)
set_target_properties(c10 PROPERTIES IMPORTED_LOCATION ${TORCH_ROOT}/lib/libc10.so)
add_library(torch_cpu SHARED IMPORTED)
set_target_properties(torch_cpu PROPERTIES IMPORTED_LOCATION ${TORCH_ROOT}/lib/libtorch_cpu.so
                                           INTERFACE_LINK_LIBRARIES c10)
# -idirafter: the wheel ships fmt, protobuf and pybind11 headers that must not shadow Debian's.
target_compile_options(torch_cpu INTERFACE "SHELL:-idirafter ${TORCH_ROOT}/include")
target_link_options(torch_cpu INTERFACE "LINKER:-rpath-link,${TORCH_ROOT}/lib"
                    "LINKER:-rpath-link,${TORCH_CUDA_RUNTIME}")
set(CMAKE_BUILD_RPATH ${TORCH_ROOT}/lib ${TORCH_CUDA_RUNTIME})
set(CMAKE_INSTALL_RPATH ${TORCH_ROOT}/lib ${TORCH_CUDA_RUNTIME})

add_library(mpi INTERFACE)
target_link_libraries(mpi INTERFACE MPI::MPI_C)
target_compile_definitions(mpi INTERFACE OMPI_SKIP_MPICXX)
