// What CUDA answered, as a status of ours.
#pragma once

#include <cuda_runtime_api.h>

#include "common/errors.h"

namespace mamba {

// MAMBA_OK where there was no error; what says in the text what failed.
inline mamba_status status_of(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return MAMBA_OK;
  cudaGetLastError();  // clears it: a later check would report it as its own
  mamba_status status = MAMBA_CUDA_ERROR;
  if (error == cudaErrorMemoryAllocation) status = MAMBA_OUT_OF_MEMORY;
  // The launchers' own answer, too, where a grid would have more blocks than CUDA counts.
  if (error == cudaErrorInvalidConfiguration) status = MAMBA_INVALID;
  return fail(status, "%s: CUDA failed: %s", what, cudaGetErrorString(error));
}

}  // namespace mamba
