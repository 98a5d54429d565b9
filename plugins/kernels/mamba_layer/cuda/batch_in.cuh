// One token of a batch of sequences on Hopper: in_proj, the convolution with SiLU and its state,
// and x_proj's shares in one kernel, which batch_token.cuh's second kernel follows.
#pragma once

#include "common/cuda/tuning.cuh"
#include "layer/cuda/batch_product.cuh"
#include "mamba_layer/cuda/batch_token.cuh"

namespace mamba {

struct BatchIn {
  BatchProduct product;  // in_proj
  BatchToken token;
};

// Calls body with a value of the tile of the first kernel.
template <typename Body>
auto with_batch_in_tile(const mamba_layer_params& p, Body body) {
  if (p.d_model >= kLeastFewBatchInRowsWidth) {
    if (p.batch <= BatchInFewRows::kRows) return body(BatchInFewRows());
    if (p.batch <= BatchInSomeRows::kRows) return body(BatchInSomeRows());
  }
  if (p.d_model <= kWidestNarrowBatchIn) return body(BatchInNarrow());
  return body(BatchInDeep());
}

// Whether these sizes, of which `in` is in_proj, can be taken on the current device, and are
// quicker there than in two kernels. most_share_bytes: of room for the shares.
bool batch_in_fits(const mamba_layer_params& p, const mamba_product& in, int64_t most_share_bytes);

// Queues both kernels. Of parts.xz, where in.c is, the gate alone is written.
cudaError_t launch_batch_in(const mamba_layer_params& p, const mamba_product& in,
                            const BatchTokenParts& parts, cudaStream_t stream);

// Bytes of shared memory of a block of the first, and its launch, compiled for sm_90a
// (batch_in_sm90a.cu).
size_t batch_in_shared_bytes(const mamba_layer_params& p);
cudaError_t launch_batch_in(const BatchProductMaps& maps, const BatchIn& s, cudaStream_t stream);

}  // namespace mamba
