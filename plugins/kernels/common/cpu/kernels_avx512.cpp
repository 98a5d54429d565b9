#define MAMBA_ISA avx512
#define MAMBA_LANES 16
#include "causal_conv1d/cpu/conv.h"
#include "common/cpu/kernels.h"
#include "selective_scan/cpu/scan.h"

namespace mamba {
extern const CpuKernels kAvx512Kernels;
const CpuKernels kAvx512Kernels = {
    "avx512",           avx512::scan_tasks,   avx512::scan_scratch_bytes, avx512::run_scan_task,
    avx512::conv_tasks, avx512::run_conv_task};
}  // namespace mamba
