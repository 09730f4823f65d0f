# How a folder becomes a library, and a test file a test.
add_library(selfcal_options INTERFACE)
target_include_directories(selfcal_options INTERFACE ${CMAKE_SOURCE_DIR} ${XXHASH_INCLUDE_DIR})
target_compile_options(selfcal_options INTERFACE -Wall -Wextra -Wshadow -Wno-unused-parameter)
if(SELFCAL_SANITIZE)
  target_compile_options(selfcal_options INTERFACE -fsanitize=address,undefined -fno-omit-frame-pointer
                                                   -fno-sanitize-recover=undefined)
  target_link_options(selfcal_options INTERFACE -fsanitize=address,undefined)
endif()

# One precompiled header of the tensor library for everything that uses tensors.
file(WRITE ${CMAKE_BINARY_DIR}/tensor_pch.cpp "// carrier of the precompiled header\n")
add_library(tensor_pch OBJECT ${CMAKE_BINARY_DIR}/tensor_pch.cpp)
target_link_libraries(tensor_pch PUBLIC selfcal_options torch_cpu mpi fmt::fmt Threads::Threads)
target_compile_options(tensor_pch PRIVATE -fpch-preprocess -fPIC)
target_precompile_headers(tensor_pch PRIVATE <ATen/ATen.h> <filesystem> <map> <string> <vector>)

# selfcal_library(NAME [TENSORS] SOURCES ... DEPENDS ...)
function(selfcal_library name)
  cmake_parse_arguments(ARG "TENSORS" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC selfcal_options ${ARG_DEPENDS})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  if(ARG_TENSORS)
    selfcal_use_tensors(${name})
  endif()
endfunction()

function(selfcal_use_tensors name)
  target_link_libraries(${name} PUBLIC torch_cpu mpi fmt::fmt Threads::Threads)
  target_compile_options(${name} PRIVATE -fpch-preprocess -fPIC)
  target_precompile_headers(${name} REUSE_FROM tensor_pch)
endfunction()

# selfcal_test(NAME [TENSORS] [RANKS 1 2 ...] [TIMEOUT seconds] SOURCES ... DEPENDS ...)
# One GoogleTest binary; with RANKS it is run under mpirun once for each count.
function(selfcal_test name)
  cmake_parse_arguments(ARG "TENSORS" "TIMEOUT" "SOURCES;DEPENDS;RANKS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_compile_definitions(${name} PRIVATE SELFCAL_TEST_DATA="${CMAKE_SOURCE_DIR}/tests/data"
                                             SELFCAL_BINARY="${CMAKE_BINARY_DIR}/selfcal")
  if(ARG_TENSORS)
    selfcal_use_tensors(${name})
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(ARG_RANKS)
    target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} selfcal_mpi_test_main)
    foreach(ranks ${ARG_RANKS})
      add_test(NAME ${name}-${ranks} COMMAND ${MPIEXEC_EXECUTABLE} -n ${ranks} --bind-to none $<TARGET_FILE:${name}>)
      set_tests_properties(${name}-${ranks} PROPERTIES PROCESSORS ${ranks} TIMEOUT ${ARG_TIMEOUT}
                           LABELS "ranks-${ranks}" ENVIRONMENT "${SELFCAL_TEST_ENVIRONMENT}")
    endforeach()
  else()
    target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest_main)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} ENVIRONMENT "${SELFCAL_TEST_ENVIRONMENT}")
  endif()
endfunction()

set(SELFCAL_TEST_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_pml=ob1
    OMPI_MCA_btl=self,vader OMPI_MCA_btl_vader_single_copy_mechanism=none OMP_NUM_THREADS=1
    ASAN_OPTIONS=detect_leaks=0)
