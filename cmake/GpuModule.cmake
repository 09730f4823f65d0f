# libselfcal_gpu.so: NCCL, the streams of the tensor library, and the CUDA kernels. The program loads it where a GPU is
# visible (base/gpu_module.hpp) and never links it, so one build serves machines with GPUs and without.
set(SELFCAL_CUDA AUTO CACHE STRING "Build the GPU module: ON, OFF, or AUTO (where nvcc and NCCL are found)")

find_package(CUDAToolkit QUIET)
if(CUDAToolkit_NVCC_EXECUTABLE AND NOT CMAKE_CUDA_COMPILER)  # the toolkit's, when the path has none
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
endif()
include(CheckLanguage)
check_language(CUDA)
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR})
if(CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND AND NCCL_INCLUDE_DIR AND NCCL_LIBRARY AND EXISTS ${TORCH_ROOT}/lib/libc10_cuda.so)
  set(SELFCAL_CUDA_FOUND TRUE)
endif()

if(SELFCAL_CUDA STREQUAL AUTO)
  set(SELFCAL_BUILD_GPU_MODULE ${SELFCAL_CUDA_FOUND})
elseif(SELFCAL_CUDA AND NOT SELFCAL_CUDA_FOUND)
  message(FATAL_ERROR "SELFCAL_CUDA is ${SELFCAL_CUDA}, but nvcc ('${CMAKE_CUDA_COMPILER}'), NCCL (header in "
                      "'${NCCL_INCLUDE_DIR}', library '${NCCL_LIBRARY}') or libc10_cuda.so (under '${TORCH_ROOT}/lib') "
                      "was not found")
else()
  set(SELFCAL_BUILD_GPU_MODULE ${SELFCAL_CUDA})
endif()
if(SELFCAL_BUILD_GPU_MODULE)
  set(state "CUDA ${CUDAToolkit_VERSION}, ${NCCL_LIBRARY}")
elseif(SELFCAL_CUDA STREQUAL AUTO AND CMAKE_CUDA_COMPILER)
  set(state "incomplete, left out: nvcc is '${CMAKE_CUDA_COMPILER}', but NCCL (header in '${NCCL_INCLUDE_DIR}', "
            "library '${NCCL_LIBRARY}') or libc10_cuda.so (under '${TORCH_ROOT}/lib') was not found")
  string(CONCAT state ${state})
else()
  set(state "left out")
endif()
message(STATUS "GPU module: ${state}")
set(SELFCAL_GPU_MODULE ${state} CACHE INTERNAL "What became of the GPU module; CI takes an incomplete one for an error")
if(NOT SELFCAL_BUILD_GPU_MODULE)
  return()
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 13 has it
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()

# Kernels see no header of the tensor library: those take nvcc 40 s. No contraction: the kernels round like the CPU code.
add_library(selfcal_gpu_kernels OBJECT ${CMAKE_SOURCE_DIR}/stages/solve/cuda/gptq_kernels.cu)
set_target_properties(selfcal_gpu_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_STANDARD 20
                                                     CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Shared)
target_include_directories(selfcal_gpu_kernels PRIVATE ${CMAKE_SOURCE_DIR})
target_compile_options(selfcal_gpu_kernels PRIVATE --fmad=false --expt-relaxed-constexpr -Xcompiler=-Wall,-ffp-contract=off)

add_library(selfcal_gpu SHARED ${CMAKE_SOURCE_DIR}/comm/nccl/cuda/vendor_calls.cpp
                               ${CMAKE_SOURCE_DIR}/stages/solve/cuda/cuda_solve_kernels.cpp
                               $<TARGET_OBJECTS:selfcal_gpu_kernels>)
set_target_properties(selfcal_gpu PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}
                                             LINKER_LANGUAGE CXX CUDA_RUNTIME_LIBRARY Shared
                                             BUILD_RPATH "${TORCH_ROOT}/lib;${TORCH_CUDA_RUNTIME}")
target_compile_options(selfcal_gpu PRIVATE $<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${TORCH_ROOT}/include>)
target_include_directories(selfcal_gpu SYSTEM PRIVATE ${NCCL_INCLUDE_DIR})
target_link_libraries(selfcal_gpu PRIVATE selfcal_options mpi fmt::fmt c10 ${TORCH_ROOT}/lib/libc10_cuda.so
                                          ${NCCL_LIBRARY} CUDA::cudart)
target_link_options(selfcal_gpu PRIVATE LINKER:--no-undefined "LINKER:-rpath-link,${TORCH_CUDA_RUNTIME}")
install(TARGETS selfcal_gpu LIBRARY DESTINATION lib)
