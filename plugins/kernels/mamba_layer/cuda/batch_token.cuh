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

// Where it reads and writes beside the layer's own tensors: rows of d_inner numbers of T, and
// shares of x_proj's output (share_count, rows, width).
struct BatchTokenParts {
  const void* xz;  // in_proj's output: rows of 2 d_inner
  void* u;         // the convolution's
  void* y;         // the scan's
  float* shares;
};

struct BatchToken {
  mamba_layer_params layer;
  BatchTokenParts parts;
  int rows, width, share_count;
  bool gate_is_early;  // z is written before the kernel ahead of the second
};

// Whether these sizes can be taken on the current device, and are quicker there so than by the
// operators one by one. most_share_bytes: of room for the shares.
bool batch_token_fits(const mamba_layer_params& p, int64_t most_share_bytes);

// Of so many shares of x_proj's output.
int64_t share_bytes(const mamba_layer_params& p, int64_t share_count);

// What the kernels take.
BatchToken batch_token(const mamba_layer_params& p, const BatchTokenParts& parts,
                       int64_t share_count, bool gate_is_early);

// Queues both kernels.
cudaError_t launch_batch_token(const mamba_layer_params& p, const BatchTokenParts& parts,
                               cudaStream_t stream);

// Queues the second one, behind a kernel that starts it after its own wait.
cudaError_t launch_batch_states(const BatchToken& s, cudaStream_t stream);

}  // namespace mamba
