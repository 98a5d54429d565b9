// What fits, and the launches: see batch_in.cuh. Where the kernels for sm_90a are left out
// (MAMBA_SM90A is 0), nothing fits.
#include "mamba_layer/cuda/batch_in.cuh"

#if MAMBA_SM90A

#include "common/cuda/gpu.cuh"
#include "mamba_layer/calls.h"

namespace mamba {
namespace {

int64_t channels_of_cluster(const mamba_layer_params& p) {
  return with_batch_in_tile(
      p, [](auto tile) { return int64_t{kBatchCluster} * tile.kTiles * kBatchColumns; });
}

}  // namespace

bool batch_in_fits(const mamba_layer_params& p, const mamba_product& in, int64_t most_share_bytes) {
  const int64_t of_cluster = channels_of_cluster(p);
  return p.d_inner % of_cluster == 0 && batch_product_takes(in) &&
         batch_token_fits(p, most_share_bytes) &&
         share_bytes(p, p.d_inner / of_cluster) <= most_share_bytes &&
         batch_in_shared_bytes(p) <= static_cast<size_t>(current_gpu().shared_bytes);
}

cudaError_t launch_batch_in(const mamba_layer_params& p, const mamba_product& in,
                            const BatchTokenParts& parts, cudaStream_t stream) {
  BatchProductMaps maps;
  BatchIn s = {{}, batch_token(p, parts, p.d_inner / channels_of_cluster(p), false)};
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
