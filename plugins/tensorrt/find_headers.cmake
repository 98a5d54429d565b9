# Finds TensorRT's headers (10.0 or newer, or TensorRT-RTX's), and says in one line where or that they are absent. Sets
#
#   MAMBA_TENSORRT_HEADERS  folder that holds NvInferRuntime.h; empty where there is none
#   MAMBA_TENSORRT_VERSION  their version, such as 10.14.1; TensorRT-RTX's own count is below 10
#
# (CMake leaves the lines of an error alone that begin with a blank.)
set(TENSORRT_INCLUDE_DIR "" CACHE PATH "Folder that holds NvInferRuntime.h; empty to look for it")
set(TENSORRT_ROOT "$ENV{TENSORRT_ROOT}" CACHE PATH "Folder of an unpacked TensorRT tar file")
option(MAMBA_FETCH_TENSORRT_HEADERS "Download NVIDIA's published headers where none are installed" OFF)
set(MAMBA_TENSORRT_HEADERS_TAG v10.14 CACHE STRING "Which headers to download: a tag of github.com/NVIDIA/TensorRT")
set(MAMBA_TENSORRT_HEADERS "")
set(MAMBA_TENSORRT_VERSION "")

if(TENSORRT_INCLUDE_DIR)
  if(NOT EXISTS ${TENSORRT_INCLUDE_DIR}/NvInferRuntime.h)
    message(FATAL_ERROR " mamba_export: TENSORRT_INCLUDE_DIR=${TENSORRT_INCLUDE_DIR} has no NvInferRuntime.h")
  endif()
  set(MAMBA_TENSORRT_HEADERS ${TENSORRT_INCLUDE_DIR})
else()
  # A tar file's folder, then where Debian packages put them; JetPack's are Debian packages.
  find_path(mamba_tensorrt_found NvInferRuntime.h NO_CACHE
    HINTS ${TENSORRT_ROOT} ENV TRT_ROOT PATHS /usr /usr/local /usr/local/tensorrt /opt/tensorrt
    PATH_SUFFIXES include include/${CMAKE_CXX_LIBRARY_ARCHITECTURE} include/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu)
  if(mamba_tensorrt_found)
    set(MAMBA_TENSORRT_HEADERS ${mamba_tensorrt_found})
  elseif(MAMBA_FETCH_TENSORRT_HEADERS)
    include(${CMAKE_CURRENT_LIST_DIR}/fetch_headers.cmake)
  endif()
endif()

if(NOT MAMBA_TENSORRT_HEADERS)
  message(STATUS "mamba_export: the TensorRT plugins are left out: no NvInferRuntime.h was found (install TensorRT's "
                 "headers, or set TENSORRT_INCLUDE_DIR, or MAMBA_FETCH_TENSORRT_HEADERS=ON)")
  return()
endif()

# TensorRT 10.13 began to spell the numbers TRT_MAJOR_ENTERPRISE and so on, TensorRT-RTX TRT_MAJOR_RTX.
file(STRINGS ${MAMBA_TENSORRT_HEADERS}/NvInferVersion.h version_lines REGEX "^#define [A-Z_]+ [0-9]+")
foreach(part MAJOR MINOR PATCH)
  if(NOT "${version_lines}" MATCHES "#define (NV_TENSORRT_${part}|TRT_${part}_[A-Z]+) ([0-9]+)")
    message(FATAL_ERROR " mamba_export: ${MAMBA_TENSORRT_HEADERS}/NvInferVersion.h names no version")
  endif()
  list(APPEND version_parts ${CMAKE_MATCH_2})
endforeach()
list(JOIN version_parts "." MAMBA_TENSORRT_VERSION)
if(MAMBA_TENSORRT_VERSION VERSION_GREATER_EQUAL 2 AND MAMBA_TENSORRT_VERSION VERSION_LESS 10)
  message(STATUS "mamba_export: the TensorRT plugins are left out: ${MAMBA_TENSORRT_HEADERS} has version "
                 "${MAMBA_TENSORRT_VERSION}, and 10.0 is the first with IPluginV3")
  set(MAMBA_TENSORRT_HEADERS "")
  return()
endif()
message(STATUS "mamba_export: TensorRT plugins with the headers of ${MAMBA_TENSORRT_VERSION} in ${MAMBA_TENSORRT_HEADERS}")
