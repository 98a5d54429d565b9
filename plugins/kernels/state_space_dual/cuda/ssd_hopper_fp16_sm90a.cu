// The kernels for Hopper of fp16: a file of its own, so that dtypes compile side by side.
#include "state_space_dual/cuda/ssd_hopper_launch.cuh"

namespace mamba {

cudaError_t launch_ssd_hopper_fp16(const SsdHopperMaps& maps, const SsdHopperArguments& arguments,
                                   const SsdHopperPlan& plan, int d_state, bool gated,
                                   cudaStream_t stream) {
  return hopper::launch_for_states<__half>(maps, arguments, plan, d_state, gated, stream);
}

}  // namespace mamba
