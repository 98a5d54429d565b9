// The kernels of a step in fp16.
#include "mamba_layer/cuda/layer_step.cuh"

namespace mamba {

template size_t step_shared_bytes<__half>(const LayerStep& step);
template cudaError_t launch_step<__half>(const LayerStep& step, cudaStream_t stream);

}  // namespace mamba
