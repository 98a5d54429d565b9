// One token of a batch of sequences: what lies between the two large products of a layer, in two
// kernels, of 16 bits on tensor cores.
//
//   convolve_and_project  convolution, SiLU and its state; x_proj's shares
//   project_and_step      dt, B and C from the shares; dt_proj, softplus; the scan's step, skip and
//                         gate
//
// A block has kBatchRows sequences and some channels. The second kernel starts as soon as the first
// one's wait is over: the states, which are most of what it reads, then arrive while the first one
// works.
#pragma once

#include <cuda_runtime.h>

#include "mamba_kernels.h"

namespace mamba {

constexpr int kBatchRows = 16;  // of a block: the rows of a tile of the tensor cores

struct BatchToken {
  mamba_layer_params layer;
  const void* xz;  // (rows, 2 d_inner) T: in_proj's output
  void* u;         // (rows, d_inner) T: the convolution's
  float* shares;   // (share_count, rows, width) of x_proj's output
  void* y;         // (rows, d_inner) T: the scan's
  int rows, width, share_count;
};

// Whether these sizes can be taken on the current device, and are quicker there so than by the
// operators one by one.
bool batch_token_fits(const mamba_layer_params& p);

// Bytes of its shares.
int64_t batch_token_share_bytes(const mamba_layer_params& p);

// Queues both kernels.
cudaError_t launch_batch_token(const mamba_layer_params& p, const void* xz, void* u, void* shares,
                               void* y, cudaStream_t stream);

}  // namespace mamba
