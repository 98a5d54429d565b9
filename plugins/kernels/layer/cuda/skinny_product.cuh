// A product of a few rows (up to kMaxSkinnyRows) with a large matrix, on tensor cores: what the
// form for many rows of a layer has to do for a token of some sequences.
#pragma once

#include <cuda_runtime.h>

#include "mamba_kernels.h"

namespace mamba {

constexpr int kMaxSkinnyRows = 32;

// Whether it takes these sizes on the current device, and is quicker there than cuBLAS.
bool skinny_product_fits(const mamba_product& p);

// Whether it can do a convolution of one step over some columns of such a product as well.
bool skinny_convolution_fits(const mamba_causal_conv1d_params& conv);

// reads_early: the right factor may be read while the stream's earlier kernels still run. conv: of
// the columns that it names as its x, which are then written nowhere; or null.
cudaError_t launch_skinny_product(const mamba_product& p, bool reads_early,
                                  const mamba_causal_conv1d_params* conv, cudaStream_t stream);

}  // namespace mamba
