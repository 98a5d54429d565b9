// A product of a few rows (up to kMaxSkinnyRows) with a large matrix, on tensor cores: what the
// form for many rows of a layer has to do for a token of some sequences.
#pragma once

#include <cuda_runtime.h>

#include "mamba_kernels.h"

namespace mamba {

constexpr int kMaxSkinnyRows = 64;

// Whether it takes these sizes on the current device, and is quicker there than cuBLAS.
bool skinny_product_fits(const mamba_product& p);

// reads_early: the right factor may be read while the stream's earlier kernels still run.
cudaError_t launch_skinny_product(const mamba_product& p, bool reads_early, cudaStream_t stream);

}  // namespace mamba
