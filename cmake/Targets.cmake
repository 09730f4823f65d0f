# How a folder becomes a library, and a test file a test.

# ccache, where it is installed; the words tell it that a precompiled header does not make every file new.
find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${CCACHE})
endif()

add_library(selfcal_options INTERFACE)
target_include_directories(selfcal_options INTERFACE ${CMAKE_SOURCE_DIR} ${XXHASH_INCLUDE_DIR})
target_compile_options(selfcal_options INTERFACE -Wall -Wextra -Wshadow -Wno-unused-parameter)
if(SELFCAL_SANITIZE)
  target_compile_options(selfcal_options INTERFACE -O1 -fsanitize=address,undefined -fno-omit-frame-pointer
                                                   -fno-sanitize-recover=undefined)
  target_link_options(selfcal_options INTERFACE -fsanitize=address,undefined)
endif()

# One precompiled header of the tensor library for everything that uses tensors.
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/tensor_pch.cpp CONTENT "// carrier of the precompiled header\n")
add_library(tensor_pch OBJECT ${CMAKE_BINARY_DIR}/tensor_pch.cpp)
target_link_libraries(tensor_pch PUBLIC selfcal_options torch_cpu mpi fmt::fmt Threads::Threads)
target_compile_options(tensor_pch PRIVATE -fpch-preprocess -fPIC)
target_precompile_headers(tensor_pch PRIVATE <ATen/ATen.h> <filesystem> <map> <nlohmann/json.hpp> <string> <vector>)

# selfcal_library(NAME [TENSORS] [BATCHED] SOURCES ... DEPENDS ...)
function(selfcal_library name)
  cmake_parse_arguments(ARG "TENSORS;BATCHED" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC selfcal_options ${ARG_DEPENDS})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  if(ARG_TENSORS)
    selfcal_use_tensors(${name})
  endif()
  if(ARG_BATCHED)
    selfcal_batch_sources(${name})
  endif()
endfunction()

option(SELFCAL_BATCHES "Compile the sources of a library in batches" ON)

# Every compilation that uses the precompiled header spends 3 s on its templates; sources that are compiled as one share
# that. Names in the unnamed namespaces of a batch must differ.
function(selfcal_batch_sources name)
  set_target_properties(${name} PROPERTIES UNITY_BUILD ${SELFCAL_BATCHES} UNITY_BUILD_BATCH_SIZE 4)
endfunction()

function(selfcal_use_tensors name)
  target_link_libraries(${name} PUBLIC torch_cpu mpi fmt::fmt Threads::Threads)
  target_compile_options(${name} PRIVATE -fpch-preprocess -fPIC)
  target_precompile_headers(${name} REUSE_FROM tensor_pch)
endfunction()

# The tests that also run under the sanitizers: `ninja sanitized`, `ctest -L sanitized`.
add_custom_target(sanitized)

# selfcal_test(NAME [TENSORS] [SANITIZED] [RANKS 1 2 ...] [TIMEOUT seconds] SOURCES ... DEPENDS ...)
# One GoogleTest binary; with RANKS it is run under mpirun once for each count. What lies in tests/base, tests/comm
# and tests/storage counts as SANITIZED.
function(selfcal_test name)
  cmake_parse_arguments(ARG "TENSORS;SANITIZED" "TIMEOUT" "SOURCES;DEPENDS;RANKS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_compile_definitions(${name} PRIVATE SELFCAL_TEST_DATA="${CMAKE_SOURCE_DIR}/tests/data"
                                             SELFCAL_BINARY="${CMAKE_BINARY_DIR}/selfcal")
  if(ARG_TENSORS)
    selfcal_use_tensors(${name})
  endif()
  selfcal_batch_sources(${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set(labels "")
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  if(ARG_SANITIZED OR folder MATCHES "^(base|comm|storage)$")
    add_dependencies(sanitized ${name})
    set(labels sanitized)
  endif()
  if(ARG_RANKS)
    target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} selfcal_mpi_test_main)
    foreach(ranks ${ARG_RANKS})
      add_test(NAME ${name}-${ranks} COMMAND ${MPIEXEC_EXECUTABLE} -n ${ranks} --bind-to none $<TARGET_FILE:${name}>)
      set_tests_properties(${name}-${ranks} PROPERTIES PROCESSORS ${ranks} TIMEOUT ${ARG_TIMEOUT}
                           LABELS "ranks-${ranks};${labels}" ENVIRONMENT "${SELFCAL_TEST_ENVIRONMENT}")
    endforeach()
  else()
    target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest_main)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${labels}"
                         ENVIRONMENT "${SELFCAL_TEST_ENVIRONMENT}")
  endif()
endfunction()

set(SELFCAL_TEST_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_pml=ob1
    OMPI_MCA_btl=self,vader OMPI_MCA_btl_vader_single_copy_mechanism=none OMP_NUM_THREADS=1
    ASAN_OPTIONS=detect_leaks=0)

# `ninja headers`: each header compiles alone, in a file that includes nothing else. Those above comm lean on the
# precompiled tensor header, which would otherwise be read for each of them.
function(selfcal_check_headers)
  foreach(folder base comm storage stages pipeline launch)
    file(GLOB_RECURSE headers RELATIVE ${CMAKE_SOURCE_DIR} CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*.hpp)
    # Of code that is compiled once an instruction set: means nothing without one.
    list(FILTER headers EXCLUDE REGEX "/(vector|vector/map|vector/runs_of_rows|lanes/rounding)\\.hpp$")
    # Of the GPU module: needs CUDA's headers.
    list(FILTER headers EXCLUDE REGEX "/cuda/gptq_kernels\\.hpp$")
    set(sources "")
    foreach(header ${headers})
      string(MAKE_C_IDENTIFIER ${header} stem)
      set(source ${CMAKE_BINARY_DIR}/headers/${stem}.cpp)
      file(CONFIGURE OUTPUT ${source} CONTENT "#include \"${header}\"\n")
      list(APPEND sources ${source})
    endforeach()
    if(NOT sources)
      continue()
    endif()
    add_library(${folder}_headers OBJECT EXCLUDE_FROM_ALL ${sources})
    target_link_libraries(${folder}_headers PRIVATE selfcal_options mpi HDF5::HDF5 yaml-cpp fmt::fmt)
    if(NOT folder MATCHES "^(base|comm)$")
      selfcal_use_tensors(${folder}_headers)
    endif()
    list(APPEND targets ${folder}_headers)
  endforeach()
  add_custom_target(headers DEPENDS ${targets})
endfunction()
