// The first and the last kernel of a layer's step in bf16.
#include "layer/cuda/project_in.cuh"
#include "layer/cuda/project_out.cuh"

namespace mamba {

template size_t project_in_shared_bytes<__nv_bfloat16>(const ProjectIn& s);
template size_t project_out_shared_bytes<__nv_bfloat16>(const ProjectOut& s);
template int next_share_channels<__nv_bfloat16>(const ProjectIn& s, const void* weight,
                                                int columns);
template cudaError_t launch_project_in<__nv_bfloat16>(ProjectIn s, cudaStream_t stream);
template cudaError_t launch_project_out<__nv_bfloat16>(ProjectOut s, cudaStream_t stream);

}  // namespace mamba
