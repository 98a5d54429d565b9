#define MAMBA_ISA avx2
#define MAMBA_LANES 8
#include "causal_conv1d/cpu/conv.h"
#include "common/cpu/kernels.h"
#include "selective_scan/cpu/scan.h"

namespace mamba {
extern const CpuKernels kAvx2Kernels;
const CpuKernels kAvx2Kernels = {
    "avx2",           avx2::scan_tasks,   avx2::scan_scratch_bytes, avx2::run_scan_task,
    avx2::conv_tasks, avx2::run_conv_task};
}  // namespace mamba
