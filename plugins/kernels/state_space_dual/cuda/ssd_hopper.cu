// State space duality on Hopper's tensor cores: no shape fits yet.
#include "state_space_dual/cuda/ssd.cuh"

namespace mamba {

bool ssd_hopper_fits(const mamba_state_space_dual_params&) { return false; }

size_t ssd_hopper_workspace(const mamba_state_space_dual_params&) { return 0; }

cudaError_t launch_ssd_hopper(const mamba_state_space_dual_params&, void*, cudaStream_t) {
  return cudaErrorNotSupported;
}

}  // namespace mamba
