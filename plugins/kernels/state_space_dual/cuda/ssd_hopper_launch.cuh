// Launches the kernels for Hopper of one dtype; ssd_hopper_*_sm90a.cu compile it.
#pragma once

#include "common/cuda/gpu.cuh"
#include "state_space_dual/cuda/ssd_hopper_outputs.cuh"
#include "state_space_dual/cuda/ssd_hopper_states.cuh"

namespace mamba {
namespace hopper {

template <typename Tiles, typename Kernel>
cudaError_t launch(Kernel kernel, dim3 grid, bool after_previous, const SsdHopperMaps& maps,
                   const SsdHopperArguments& p, cudaStream_t stream) {
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tiles::kBytes);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(Tiles::kThreads);
  config.dynamicSmemBytes = Tiles::kBytes;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = after_previous ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, maps, p);
}

template <typename T, int States, bool Gated>
cudaError_t launch_outputs(const SsdHopperMaps& maps, const SsdHopperArguments& p,
                           const SsdHopperPlan& plan, cudaStream_t stream) {
  const unsigned wide = (p.slices + plan.slices_a_block - 1) / plan.slices_a_block;
  if (plan.persistent) {
    using Tiles = OutputTiles<2, States, 3, 1, 56>;
    const int64_t items = int64_t{wide} * p.batch, places = current_gpu().multiprocessors;
    const dim3 grid(static_cast<unsigned>(items < places ? items : places));
    return launch<Tiles>(ssd_outputs<T, Tiles, Gated, false>, grid, false, maps, p, stream);
  }
  const dim3 grid(wide, p.parts, p.batch);
  if (plan.slices_a_block == 2) {
    using Tiles = OutputTiles<2, States, 3, 1, 40>;
    return launch<Tiles>(ssd_outputs<T, Tiles, Gated, true>, grid, p.parts > 1, maps, p, stream);
  }
  using Tiles = OutputTiles<1, States, 2, 2, 48>;
  return launch<Tiles>(ssd_outputs<T, Tiles, Gated, true>, grid, p.parts > 1, maps, p, stream);
}

template <typename T, typename Tiles>
cudaError_t launch_states(const SsdHopperMaps& maps, const SsdHopperArguments& p,
                          cudaStream_t stream) {
  const unsigned wide = (p.slices + Tiles::kSlices - 1) / Tiles::kSlices;
  return launch<Tiles>(ssd_states<T, Tiles>, dim3(wide, p.parts - 1, p.batch), true, maps, p,
                       stream);
}

template <typename T, int States>
cudaError_t launch_all(const SsdHopperMaps& maps, const SsdHopperArguments& p,
                       const SsdHopperPlan& plan, bool gated, cudaStream_t stream) {
  if (p.parts > 1) {
    const cudaError_t error = plan.state_slices_a_block == 2
                                  ? launch_states<T, StateTiles<2, States, 4, 1>>(maps, p, stream)
                                  : launch_states<T, StateTiles<1, States, 4, 2>>(maps, p, stream);
    if (error != cudaSuccess) return error;
  }
  return gated ? launch_outputs<T, States, true>(maps, p, plan, stream)
               : launch_outputs<T, States, false>(maps, p, plan, stream);
}

template <typename T>
cudaError_t launch_for_states(const SsdHopperMaps& maps, const SsdHopperArguments& p,
                              const SsdHopperPlan& plan, int d_state, bool gated,
                              cudaStream_t stream) {
  if (d_state == 64) return launch_all<T, 64>(maps, p, plan, gated, stream);
  return launch_all<T, 128>(maps, p, plan, gated, stream);
}

}  // namespace hopper
}  // namespace mamba
