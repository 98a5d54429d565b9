// What the files of the layer's kernels offer to layer.cu, which checks and picks.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "mamba_kernels.h"

namespace mamba {

constexpr int kMaxStepRows = 8;  // rows (batch * length) that the step's kernels take
constexpr int kMaxSplits = 16;   // shares of the depth of x_proj

// Rows of a step's buffers start at multiples of this many elements: 16 bytes and more.
__host__ __device__ constexpr int64_t padded(int64_t count) { return (count + 7) / 8 * 8; }

// One step: the layer, its buffers in the workspace, and what follows from the sizes.
struct LayerStep {
  mamba_layer_params layer;
  void* u;                      // (rows, padded d_inner) T: the convolution's output
  void* z;                      // (rows, padded d_inner) T: the gate
  void* y;                      // (rows, padded d_inner) T: the scan's output
  float* parts;                 // (splits, rows, projected): shares of x_proj's output
  int rows, stride, projected;  // projected: dt_rank + 2 d_state
  int splits, split_depth;
  bool reads_hidden_in_fours, reads_states_in_fours;
  bool overlaps;  // the GPU starts a kernel before the one ahead of it has ended
};

// Bytes of shared memory that the step's kernels ask for, at most.
template <typename T>
size_t step_shared_bytes(const LayerStep& step);

// Queues the four kernels of a step.
template <typename T>
cudaError_t launch_step(const LayerStep& step, cudaStream_t stream);

// x = norm(hidden), (rows, d_model) T, for any number of rows.
cudaError_t launch_norm(const mamba_layer_params& layer, void* x, cudaStream_t stream);

}  // namespace mamba
