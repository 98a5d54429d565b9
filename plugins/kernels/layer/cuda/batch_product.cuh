// A product of a batch's rows (up to kBatchProductRows) with a large matrix on Hopper: reading the
// matrix once is nearly all of the time.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "mamba_kernels.h"

namespace mamba {

constexpr int kBatchProductRows = 64;  // of a tile of the tensor cores
constexpr int kBatchDepth = 64;        // of a stage: 128 bytes of a row of x
constexpr int kBatchColumns = 64;      // of a tile of W: 128 bytes of a row

// Boxes of kBatchDepth rows of W by kBatchColumns, and of all rows of x by kBatchDepth.
struct BatchProductMaps {
  CUtensorMap weights, x;
};

struct BatchProduct {
  mamba_product p;
  int steps;   // of the depth, kBatchDepth each
  int x_rows;  // of a box of x: all of them, and up to a multiple of 8
  bool reads_early;
};

// Whether it takes these sizes on the current device.
bool batch_product_takes(const mamba_product& p);

// The same, and whether it is quicker there than cuBLAS.
bool batch_product_fits(const mamba_product& p);

// Its maps and the rest of what its kernel takes. False where the driver refuses the maps.
bool encode_batch_product(const mamba_product& p, bool reads_early, BatchProductMaps* maps,
                          BatchProduct* s);

// reads_early: no work that is queued ahead writes the matrix.
cudaError_t launch_batch_product(const mamba_product& p, bool reads_early, cudaStream_t stream);

// The launch, compiled for sm_90a (batch_product_sm90a.cu).
cudaError_t launch_batch_product(const BatchProductMaps& maps, const BatchProduct& s,
                                 cudaStream_t stream);

}  // namespace mamba
