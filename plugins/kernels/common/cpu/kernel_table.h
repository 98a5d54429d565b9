// The table of an instruction set's kernels; the file that includes this names the set (simd.h).
#pragma once

#include "causal_conv1d/cpu/conv.h"
#include "common/cpu/kernels.h"
#include "gated_rms_norm/cpu/norm.h"
#include "layer/cpu/product.h"
#include "layer/cpu/row_norm.h"
#include "selective_scan/cpu/scan.h"
#include "state_space_dual/cpu/dual.h"

namespace mamba {
namespace MAMBA_ISA {

constexpr CpuKernels kernel_table(const char* name) {
  return {name,
          scan_tasks,
          scan_scratch_bytes,
          run_scan_task,
          conv_tasks,
          run_conv_task,
          dual_scores_bytes,
          dual_score_tasks,
          run_dual_score_task,
          dual_tasks,
          dual_scratch_bytes,
          run_dual_task,
          norm_tasks,
          run_norm_task,
          row_norm_tasks,
          run_row_norm_task,
          product_scratch_bytes,
          product_task_bytes,
          product_first_tasks,
          run_product_first_task,
          product_second_tasks,
          run_product_second_task};
}

}  // namespace MAMBA_ISA
}  // namespace mamba
