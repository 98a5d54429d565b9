#define MAMBA_ISA baseline
#define MAMBA_LANES 4
#include "common/cpu/kernel_table.h"

namespace mamba {
extern const CpuKernels kBaselineKernels;
const CpuKernels kBaselineKernels = baseline::kernel_table("baseline");
}  // namespace mamba
