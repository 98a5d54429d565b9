#define MAMBA_ISA baseline
#define MAMBA_LANES 4
#include "causal_conv1d/cpu/conv.h"
#include "common/cpu/kernels.h"
#include "selective_scan/cpu/scan.h"

namespace mamba {
extern const CpuKernels kBaselineKernels;
const CpuKernels kBaselineKernels = {"baseline",
                                     baseline::scan_tasks,
                                     baseline::scan_scratch_bytes,
                                     baseline::run_scan_task,
                                     baseline::conv_tasks,
                                     baseline::run_conv_task};
}  // namespace mamba
