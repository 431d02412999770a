# SPDX-License-Identifier: Apache-2.0
# CUDA, by the suffix of a file:
#   X_cuda.cu    SIMT code: sm_80, sm_90a, and PTX for later chips      X_sm80.cu, X_sm90a.cu   one architecture's own
#   X_nvcc.cu    what only nvcc can compile                             X_emulated.cc           stands there in EMULATED
#   X_nocuda.cc  stands there in a build without CUDA, or where the family has no CUDA code
# EARNEST_CUDA=EMULATED compiles X_cuda.cu, X_sm80.cu and X_sm90a.cu as C++, to run in kernels/common/simt_emulator.h.

if(NOT EARNEST_CUDA MATCHES "^(OFF|ON|EMULATED|0|1|FALSE|TRUE)$")
  message(FATAL_ERROR "EARNEST_CUDA: expected OFF, ON or EMULATED, got ${EARNEST_CUDA}")
endif()
set(EARNEST_EMULATED OFF)
if(EARNEST_CUDA STREQUAL "EMULATED")
  set(EARNEST_EMULATED ON)
endif()

if(EARNEST_CUDA AND NOT EARNEST_EMULATED)
  set(CMAKE_CUDA_ARCHITECTURES 80)  # of the compiler's own check; every target names its own
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  find_package(CUDAToolkit REQUIRED)
  set(EARNEST_NVCC_OPTIONS --expt-relaxed-constexpr -Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror,-Wno-restrict)  # GCC 12 sees overlaps in std::string
endif()

# The files of kernels/<family> in the list that this build has no place for are taken out. With CUDA X_cuda.cu stands for
# X_nocuda.cc, or if that does not exist for the family's own.
function(earnest_choose_sources family list_name)
  file(GLOB kernels CONFIGURE_DEPENDS kernels/${family}/*_cuda.cu kernels/${family}/*_nvcc.cu)
  set(chosen ${${list_name}})
  if(NOT EARNEST_EMULATED)
    list(FILTER chosen EXCLUDE REGEX "_emulated\\.cc$")
  endif()
  if(EARNEST_CUDA)
    foreach(kernel IN LISTS kernels)
      string(REGEX REPLACE "_(cuda|nvcc)\\.cu$" "_nocuda.cc" replaced ${kernel})
      if(NOT EXISTS ${replaced})
        set(replaced ${CMAKE_SOURCE_DIR}/kernels/${family}/${family}_nocuda.cc)
      endif()
      list(REMOVE_ITEM chosen ${replaced})
    endforeach()
  endif()
  set(${list_name} ${chosen} PARENT_SCOPE)
endfunction()

# The emulator itself is worth the optimiser's time in every build: tests spend most of theirs in it.
if(EARNEST_EMULATED)
  file(GLOB emulator CONFIGURE_DEPENDS kernels/common/*_emulated.cc)
  set_source_files_properties(${emulator} PROPERTIES COMPILE_OPTIONS -O2)
endif()

# CUDA sources as C++ for the emulator.
function(earnest_emulate)
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas;-ffp-contract=off"
                              COMPILE_DEFINITIONS EARNEST_EMULATED)
endfunction()

# The files named *<suffix>.cu of all families, compiled for these architectures.
function(earnest_add_kernels suffix architectures)
  set(files)
  foreach(family IN LISTS EARNEST_FAMILIES)
    file(GLOB found CONFIGURE_DEPENDS kernels/${family}/*${suffix}.cu)
    list(APPEND files ${found})
  endforeach()
  if(NOT files)
    return()
  endif()
  if(EARNEST_EMULATED)
    earnest_emulate(${files})
    target_sources(earnest_kernels PRIVATE ${files})
    return()
  endif()
  foreach(file IN LISTS files)
    if(file MATCHES "^kernels/sampling/|/kernels/sampling/[^/]*$")  # whose bits are the CPU's
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS -fmad=false)
    endif()
  endforeach()
  set(name earnest_kernels${suffix})
  add_library(${name} OBJECT ${files})
  set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_options(${name} PRIVATE ${EARNEST_NVCC_OPTIONS})
  target_sources(earnest_kernels PRIVATE $<TARGET_OBJECTS:${name}>)
  add_dependencies(cuda_kernels ${name})
endfunction()

# On a Hopper, machine code of sm_80 does not run: its PTX is compiled there at the first call, for half a minute. Who
# builds for that machine alone names 90-real.
set(EARNEST_SM80_TARGETS "80-real;80-virtual" CACHE STRING "What X_sm80.cu is compiled for")

add_custom_target(cuda_kernels)  # all that nvcc compiles
if(EARNEST_CUDA)
  target_compile_definitions(earnest_kernels PUBLIC EARNEST_WITH_CUDA)
  earnest_add_kernels(_cuda "80-real;90a-real;90-virtual")
  earnest_add_kernels(_sm80 "${EARNEST_SM80_TARGETS}")
  earnest_add_kernels(_sm90a "90a-real")
  if(NOT EARNEST_EMULATED)
    earnest_add_kernels(_nvcc "80-virtual")
    target_link_libraries(earnest_kernels PUBLIC CUDA::cudart_static)
  endif()
endif()

# In the emulator stands for the vendor's products, where tests ask for them.
if(EARNEST_EMULATED)
  add_library(fake_cublaslt SHARED EXCLUDE_FROM_ALL tests/cpp/fake_cublaslt.cc)
  target_include_directories(fake_cublaslt PRIVATE ${CMAKE_SOURCE_DIR})
endif()

# Tests that a build with CUDA has: those with kernels of their own, tests/cpp/test_*.cu (named _emulator: only
# without a GPU), and those of the families that have CUDA code, whose cases run on both devices. They are built by
# the target cuda_tests and run by ctest -L cuda.
function(earnest_add_cuda_tests)
  if(NOT EARNEST_CUDA)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS tests/cpp/test_*.cu)
  if(NOT EARNEST_EMULATED)
    list(FILTER sources EXCLUDE REGEX "_emulator\\.cu$")
  endif()
  set(tests)
  foreach(source IN LISTS sources)
    get_filename_component(name ${source} NAME_WE)
    if(EARNEST_EMULATED)
      earnest_emulate(${source})
    endif()
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE earnest_kernels)
    if(NOT EARNEST_EMULATED)
      set(architectures "80-real;90a-real;90-virtual")
      if(name MATCHES "_sm90a$")
        set(architectures 90a-real)
      endif()
      set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
      target_compile_options(${name} PRIVATE ${EARNEST_NVCC_OPTIONS})
    endif()
    add_test(NAME ${name} COMMAND ${name})
    list(APPEND tests ${name})
  endforeach()
  file(GLOB sources CONFIGURE_DEPENDS tests/cpp/test_*_cuda.cc)
  foreach(source IN LISTS sources)
    get_filename_component(name ${source} NAME_WE)
    list(APPEND tests ${name})
  endforeach()
  foreach(family IN LISTS EARNEST_FAMILIES)
    file(GLOB kernels CONFIGURE_DEPENDS kernels/${family}/*_cuda.cu)
    if(kernels AND TARGET test_${family})
      list(APPEND tests test_${family})
    endif()
  endforeach()
  if(EARNEST_EMULATED)
    foreach(name test_linear_cuda test_engine_products_cuda)
      target_compile_definitions(${name} PRIVATE EARNEST_FAKE_CUBLASLT="$<TARGET_FILE:fake_cublaslt>")
      add_dependencies(${name} fake_cublaslt)
    endforeach()
    foreach(name test_engine_graphs_cuda test_engine_devices_cuda test_engine_products_cuda test_engine_hearing_cuda)  # which set it (cuda_emulated.h)
      target_compile_definitions(${name} PRIVATE EARNEST_WITH_EMULATOR)
    endforeach()
  endif()
  add_custom_target(cuda_tests DEPENDS ${tests})
  set_tests_properties(${tests} PROPERTIES LABELS cuda)
  if(EARNEST_EMULATED)  # which writes down how they launch kernels, for .ci/cuda_launches.py
    set_tests_properties(${tests} PROPERTIES ENVIRONMENT EARNEST_LAUNCHES=${CMAKE_BINARY_DIR}/launches.txt)
  endif()
endfunction()
