# Downloads the headers that NVIDIA publishes (Apache-2.0) at MAMBA_TENSORRT_HEADERS_TAG, once, into the build folder.
set(folder ${CMAKE_BINARY_DIR}/tensorrt-headers/${MAMBA_TENSORRT_HEADERS_TAG})
set(source https://raw.githubusercontent.com/NVIDIA/TensorRT/${MAMBA_TENSORRT_HEADERS_TAG}/include)
set(headers NvInfer.h NvInferImpl.h NvInferLegacyDims.h NvInferPluginUtils.h NvInferRuntime.h NvInferRuntimeBase.h
    NvInferRuntimeCommon.h NvInferRuntimePlugin.h NvInferVersion.h)
set(later_headers NvInferPluginBase.h) # since 10.6

if(NOT EXISTS ${folder}/.complete)
  foreach(header IN LISTS headers later_headers)
    file(DOWNLOAD ${source}/${header} ${folder}/${header} STATUS status TIMEOUT 60 TLS_VERIFY ON)
    list(POP_FRONT status code text)
    if(code)
      file(REMOVE ${folder}/${header}) # a failed download leaves an empty file
      if(NOT header IN_LIST later_headers)
        message(FATAL_ERROR " mamba_export: ${source}/${header} cannot be downloaded (${text}): set TENSORRT_INCLUDE_DIR, or "
                            "MAMBA_TENSORRT_HEADERS_TAG to a tag of github.com/NVIDIA/TensorRT")
      endif()
    endif()
  endforeach()
  file(TOUCH ${folder}/.complete)
endif()
set(MAMBA_TENSORRT_HEADERS ${folder})
