// What each instruction set's file offers to dispatch.cpp.
#ifndef MAMBA_CPU_KERNELS_H
#define MAMBA_CPU_KERNELS_H

#include "mamba_kernels.h"

namespace mamba {

// A scan under way, its tasks on any threads.
struct ScanCall {
  mamba_selective_scan_params params;
  int lacks_memory;  // a task found no scratch memory: the others need not begin. Atomic
};

// State space duality under way: first the scores' tasks, then the others.
struct DualCall {
  mamba_state_space_dual_params params;
  float* scores;     // of the chunks (scores.h); null where the call needs none
  int lacks_memory;  // as a scan's
};

// A product of a layer under way: c (rows, columns) = a (rows, depth) b (depth, columns), plus a
// residual, which may be c. Dense but for a. First the first tasks, then the second ones.
struct ProductCall {
  int64_t rows, columns, depth;
  bool is_turned;       // b is (columns, depth)
  mamba_dtype dtype;    // of a and b
  mamba_dtype c_dtype;  // and of the residual
  const void* a;
  int64_t a_stride;  // elements from row to row
  const void* b;
  const void* residual;  // null: none
  void* c;
  float* scratch;    // product_scratch_bytes
  int lacks_memory;  // as a scan's
};

// The norm in front of a layer: out = hidden / rms(hidden) weight, a row a step.
struct RowNormCall {
  int64_t rows, width;
  float epsilon;
  mamba_dtype dtype;         // of out
  mamba_dtype hidden_dtype;  // fp32 or dtype
  const void* hidden;
  const float* weight;
  void* out;
};

struct CpuKernels {
  const char* name;
  size_t (*scan_tasks)(const mamba_selective_scan_params& params);
  int64_t (*scan_scratch_bytes)(const mamba_selective_scan_params& params);  // of a task
  void (*scan_task)(void* call, size_t task);                                // a ScanCall
  size_t (*conv_tasks)(const mamba_causal_conv1d_params& params);
  void (*conv_task)(void* params, size_t task);
  int64_t (*dual_scores_bytes)(const mamba_state_space_dual_params& params);  // 0: it needs none
  size_t (*dual_score_tasks)(const mamba_state_space_dual_params& params);
  void (*dual_score_task)(void* call, size_t task);  // a DualCall
  size_t (*dual_tasks)(const mamba_state_space_dual_params& params);
  int64_t (*dual_scratch_bytes)(const mamba_state_space_dual_params& params);  // of a task, at most
  void (*dual_task)(void* call, size_t task);                                  // a DualCall
  size_t (*norm_tasks)(const mamba_gated_rms_norm_params& params);
  void (*norm_task)(void* params, size_t task);
  size_t (*row_norm_tasks)(const RowNormCall& call);
  void (*row_norm_task)(void* call, size_t task);
  int64_t (*product_scratch_bytes)(const ProductCall& call);
  int64_t (*product_task_bytes)(const ProductCall& call);  // that a task allocates, at most
  size_t (*product_first_tasks)(const ProductCall& call);
  void (*product_first_task)(void* call, size_t task);
  size_t (*product_second_tasks)(const ProductCall& call);
  void (*product_second_task)(void* call, size_t task);
};

extern const CpuKernels kBaselineKernels;
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;

// Those of this machine.
const CpuKernels& cpu_kernels();

}  // namespace mamba

#endif  // MAMBA_CPU_KERNELS_H
