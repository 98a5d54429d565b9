// The text of the last error of a thread, and the checks that the CPU and the CUDA kernels share.
#ifndef MAMBA_ERRORS_H
#define MAMBA_ERRORS_H

#include "mamba_kernels.h"

namespace mamba {

constexpr int kMaxTaps = 16;  // largest d_conv

// Notes the text, in printf's way, for mamba_last_error and returns status.
mamba_status fail(mamba_status status, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// MAMBA_OK where sizes, dtype and pointers are those of the operator.
mamba_status check(const mamba_selective_scan_params* params);
mamba_status check(const mamba_causal_conv1d_params* params);

}  // namespace mamba

#endif  // MAMBA_ERRORS_H
