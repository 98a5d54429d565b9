// What the files of the CUDA kernels offer to api.cu.
#pragma once

#include <cuda_runtime.h>

#include "mamba_kernels.h"

namespace mamba {

cudaError_t launch_scan(const mamba_selective_scan_params& params, void* workspace,
                        cudaStream_t stream);
cudaError_t launch_conv(const mamba_causal_conv1d_params& params, cudaStream_t stream);

// Bytes of workspace for these sizes, which were checked, and every smaller batch and length.
size_t ssd_workspace(const mamba_state_space_dual_params& params);
cudaError_t launch_ssd(const mamba_state_space_dual_params& params, void* workspace,
                       cudaStream_t stream);
// The name of the kernel for these parameters, which were checked; architecture 0: of the current
// GPU's, else of one that need not be there.
const char* ssd_form_name(const mamba_state_space_dual_params& params, int architecture);
cudaError_t launch_gated_norm(const mamba_gated_rms_norm_params& params, cudaStream_t stream);

}  // namespace mamba
