// What fits, and the launches: see batch_in.cuh. Where the kernels for sm_90a are left out
// (MAMBA_SM90A is 0), nothing fits.
#include "mamba_layer/cuda/batch_in.cuh"

#if MAMBA_SM90A

#include "common/cuda/gpu.cuh"
#include "mamba_layer/calls.h"

namespace mamba {
namespace {

constexpr int64_t kOfCluster = int64_t{kBatchCluster} * BatchInTile::kTiles * kBatchColumns;

}  // namespace

bool batch_in_fits(const mamba_layer_params& p, const mamba_product& in, int64_t most_share_bytes) {
  const int64_t shares = p.d_inner / kOfCluster;
  return p.d_inner % kOfCluster == 0 && batch_product_fits(in) &&
         batch_token_fits(p, most_share_bytes) && share_bytes(p, shares) <= most_share_bytes;
}

cudaError_t launch_batch_in(const mamba_layer_params& p, const mamba_product& in,
                            const BatchTokenParts& parts, cudaStream_t stream) {
  BatchProductMaps maps;
  BatchIn s = {{}, batch_token(p, parts, p.d_inner / kOfCluster, false)};
  if (!encode_batch_product(in, p.constant_weights != 0, &maps, &s.product)) {
    return cudaErrorInvalidValue;
  }
  if (cudaError_t error = launch_batch_in(maps, s, stream)) return error;
  return launch_batch_states(s.token, stream);
}

}  // namespace mamba

#else

namespace mamba {

bool batch_in_fits(const mamba_layer_params&, const mamba_product&, int64_t) { return false; }

cudaError_t launch_batch_in(const mamba_layer_params&, const mamba_product&, const BatchTokenParts&,
                            cudaStream_t) {
  return cudaErrorNotSupported;
}

}  // namespace mamba

#endif
