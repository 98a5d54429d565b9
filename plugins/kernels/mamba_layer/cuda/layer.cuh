// What the files of the layer's kernels offer to layer.cu, which checks and picks.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "layer/cuda/step.cuh"
#include "mamba_kernels.h"

namespace mamba {

constexpr int kMaxSplits = 16;  // shares of the depth of x_proj

// One step: the layer, its buffers in the workspace, and what follows from the sizes.
struct LayerStep {
  mamba_layer_params layer;
  ProjectIn in;
  ProjectOut out;
  const void* u;        // (rows, in_stride) T: the convolution's output
  const void* z;        // (rows, in_stride) T: the gate
  void* y;              // (rows, y_stride) T: the scan's output
  float* parts;         // (splits, rows, projected): shares of x_proj's output
  int rows, projected;  // projected: dt_rank + 2 d_state
  int in_stride, y_stride;
  int splits, split_depth;
  bool reads_states_in_fours;
  bool overlaps;  // the GPU starts a kernel before the one ahead of it has ended
};

// Bytes of shared memory that the step's kernels ask for, at most.
template <typename T>
size_t step_shared_bytes(const LayerStep& step);

// Queues the kernels of a step.
template <typename T>
cudaError_t launch_step(const LayerStep& step, cudaStream_t stream);

}  // namespace mamba
