// The kernels of a step in bf16.
#include "mamba_layer/cuda/layer_step.cuh"

namespace mamba {

template size_t step_shared_bytes<__nv_bfloat16>(const LayerStep& step);
template cudaError_t launch_step<__nv_bfloat16>(const LayerStep& step, cudaStream_t stream);

}  // namespace mamba
