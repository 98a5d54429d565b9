// What the files of the CUDA kernels offer to api.cu.
#pragma once

#include <cuda_runtime.h>

#include "mamba_kernels.h"

namespace mamba {

cudaError_t launch_scan(const mamba_selective_scan_params& params, void* workspace,
                        cudaStream_t stream);
cudaError_t launch_conv(const mamba_causal_conv1d_params& params, cudaStream_t stream);

}  // namespace mamba
