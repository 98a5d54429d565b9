#define MAMBA_ISA avx512
#define MAMBA_LANES 16
#include "common/cpu/kernel_table.h"

namespace mamba {
extern const CpuKernels kAvx512Kernels;
const CpuKernels kAvx512Kernels = avx512::kernel_table("avx512");
}  // namespace mamba
