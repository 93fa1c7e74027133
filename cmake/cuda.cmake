# Whether the CUDA kernels are built: on return SFPLUS_CUDA_MISSING says why not, or is empty, and then
# SFPLUS_CUDA_SOURCE is a C++ source with their machine code. No CUDA language, header or library is needed.
# SFPLUS_CUDA=auto|require|off, CMAKE_CUDA_ARCHITECTURES and TORCH_CUDA_ARCH_LIST are read from the environment.
set(SFPLUS_CUDA_MISSING "")
set(wanted "$ENV{SFPLUS_CUDA}")
if(wanted STREQUAL "")
  set(wanted auto)
endif()
if(NOT wanted MATCHES "^(auto|require|off)$")
  message(FATAL_ERROR "SFPLUS_CUDA is '${wanted}'; expected auto, require or off")
endif()

set(backend "${CMAKE_CURRENT_LIST_DIR}/../build_backend")
if(wanted STREQUAL "off")
  set(SFPLUS_CUDA_MISSING "SFPLUS_CUDA=off")
elseif(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|aarch64)$")
  set(SFPLUS_CUDA_MISSING "only Linux on x86-64 and aarch64 gets CUDA kernels")
else()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${backend}/cuda_toolkit.py"
    OUTPUT_VARIABLE compiler OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY
  )
  if(compiler STREQUAL "")
    set(SFPLUS_CUDA_MISSING "there was no NVRTC from PyPI and no nvcc in CUDA_HOME or on PATH")
  else()
    # nvcc takes the C++ compiler that is used here, not the one of PATH
    set(cubins "${Python_EXECUTABLE}" "${backend}/cubins.py")
    set(with_compiler --compiler "${compiler}" --host-compiler "${CMAKE_CXX_COMPILER}")
    execute_process(
      COMMAND ${cubins} plan ${with_compiler}
      OUTPUT_VARIABLE plan ERROR_VARIABLE problem RESULT_VARIABLE failed
      OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE
    )
    if(failed)
      set(SFPLUS_CUDA_MISSING "${problem}")
    endif()
  endif()
endif()

if(SFPLUS_CUDA_MISSING STREQUAL "")
  list(POP_FRONT plan compiler_name)
  message(STATUS "CUDA kernels: ${compiler_name} (${compiler}) for ${plan}")
  set(csrc "${CMAKE_CURRENT_LIST_DIR}/../csrc")
  file(GLOB kernel_sources CONFIGURE_DEPENDS
    "${csrc}/cuda/*.cu" "${csrc}/cuda/*.cuh" "${csrc}/cuda/*.h" "${csrc}/cuda/nvrtc/*" "${csrc}/math/*.h" "${csrc}/table.h"
  )
  set(images "")
  foreach(architecture IN LISTS plan)
    set(image "${CMAKE_CURRENT_BINARY_DIR}/cubins/${architecture}.code")
    add_custom_command(
      OUTPUT "${image}"
      COMMAND ${cubins} compile ${with_compiler} --architecture ${architecture} --sources "${csrc}" --output "${image}"
      DEPENDS ${kernel_sources} "${backend}/cubins.py"
      VERBATIM
      COMMENT "CUDA kernels for ${architecture}"
    )
    list(APPEND images "${image}")
  endforeach()
  file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/cubins")
  set(SFPLUS_CUDA_SOURCE "${CMAKE_CURRENT_BINARY_DIR}/cubins/cubins.cpp")
  add_custom_command(
    OUTPUT "${SFPLUS_CUDA_SOURCE}"
    COMMAND ${cubins} embed --name "${compiler_name}" --output "${SFPLUS_CUDA_SOURCE}" --images ${images}
    DEPENDS ${images} "${backend}/cubins.py"
    VERBATIM
  )
  # the assembler reads them, which the compiler's list of headers does not show
  set_source_files_properties("${SFPLUS_CUDA_SOURCE}" PROPERTIES OBJECT_DEPENDS "${images}")
elseif(wanted STREQUAL "require")
  message(FATAL_ERROR "SFPLUS_CUDA=require, but the CUDA kernels cannot be built: ${SFPLUS_CUDA_MISSING}")
elseif(wanted STREQUAL "auto")
  message(WARNING "Building WITHOUT CUDA KERNELS: ${SFPLUS_CUDA_MISSING}")
endif()
