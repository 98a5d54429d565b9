// What each instruction set's file offers to dispatch.cpp.
#ifndef MAMBA_CPU_KERNELS_H
#define MAMBA_CPU_KERNELS_H

#include "mamba_kernels.h"

namespace mamba {

struct CpuKernels {
  const char* name;
  size_t (*scan_tasks)(const mamba_selective_scan_params& params);
  void (*scan_task)(void* params, size_t task);
  size_t (*conv_tasks)(const mamba_causal_conv1d_params& params);
  void (*conv_task)(void* params, size_t task);
};

extern const CpuKernels kBaselineKernels;
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;

}  // namespace mamba

#endif  // MAMBA_CPU_KERNELS_H
