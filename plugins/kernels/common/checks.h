// The checks of parameters that the CPU and the CUDA kernels share.
#ifndef MAMBA_CHECKS_H
#define MAMBA_CHECKS_H

#include "mamba_kernels.h"

namespace mamba {

constexpr int kMaxTaps = 16;                     // largest d_conv
constexpr int64_t kMaxWidth = int64_t{1} << 24;  // of a layer
constexpr int64_t kWorkspaceAlignment = 256;     // bytes

// MAMBA_OK where the sizes, dtypes and attributes are those of the operator, and the number of
// bytes of each tensor is one that an int64_t holds: what the kernels multiply then fits too.
mamba_status check_sizes(const mamba_selective_scan_params* params);
mamba_status check_sizes(const mamba_causal_conv1d_params* params);
mamba_status check_sizes(const mamba_state_space_dual_params* params);
mamba_status check_sizes(const mamba_gated_rms_norm_params* params);
mamba_status check_sizes(const mamba_layer_params* params);
mamba_status check_sizes(const mamba2_layer_params* params);
mamba_status check_sizes(const mamba_linear_params* params);

// The same, and every tensor is there.
mamba_status check(const mamba_selective_scan_params* params);
mamba_status check(const mamba_causal_conv1d_params* params);
mamba_status check(const mamba_state_space_dual_params* params);
mamba_status check(const mamba_gated_rms_norm_params* params);
mamba_status check(const mamba_layer_params* params, const void* workspace);
mamba_status check(const mamba2_layer_params* params, const void* workspace);
mamba_status check(const mamba_linear_params* params);

}  // namespace mamba

#endif  // MAMBA_CHECKS_H
