// Maps of tensors for Hopper's copy engine.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "mamba_params.h"

namespace mamba {

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

// The driver's function, which the libraries do not link; nullptr where it has none.
inline EncodeTensorMap tensor_map_encoder() {
  static const EncodeTensorMap found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                     &result);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
    return result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTensorMap>(function)
                                                 : nullptr;
  }();
  return found;
}

// A map of a tensor of four dimensions of 16 bits, of which a box is `rows` rows, of its third
// dimension, of 64 numbers, of its first; zeros outside. Sizes count numbers, from the innermost
// dimension on, strides numbers of the others. False where the driver refuses it.
inline bool encode_tensor_map(CUtensorMap& map, mamba_dtype dtype, const void* data,
                              const cuuint64_t (&sizes)[4], const cuuint64_t (&strides)[3],
                              int rows) {
  const cuuint64_t bytes[] = {2 * strides[0], 2 * strides[1], 2 * strides[2]};
  const cuuint32_t box[] = {64, 1, cuuint32_t(rows), 1}, every[] = {1, 1, 1, 1};
  const CUtensorMapDataType type =
      dtype == MAMBA_FP16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return tensor_map_encoder()(&map, type, 4, const_cast<void*>(data), sizes, bytes, box, every,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace mamba
