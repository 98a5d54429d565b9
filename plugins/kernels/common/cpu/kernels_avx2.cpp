#define MAMBA_ISA avx2
#define MAMBA_LANES 8
#include "common/cpu/kernel_table.h"

namespace mamba {
extern const CpuKernels kAvx2Kernels;
const CpuKernels kAvx2Kernels = avx2::kernel_table("avx2");
}  // namespace mamba
