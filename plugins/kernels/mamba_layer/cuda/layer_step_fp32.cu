// The kernels of a step in fp32.
#include "mamba_layer/cuda/layer_step.cuh"

namespace mamba {

template size_t step_shared_bytes<float>(const LayerStep& step);
template cudaError_t launch_step<float>(const LayerStep& step, cudaStream_t stream);

}  // namespace mamba
