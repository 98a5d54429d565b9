// The first and the last kernel of a layer's step in fp32.
#include "layer/cuda/project_in.cuh"
#include "layer/cuda/project_out.cuh"

namespace mamba {

template size_t project_in_shared_bytes<float>(const ProjectIn& s);
template size_t project_out_shared_bytes<float>(const ProjectOut& s);
template int next_share_channels<float>(const ProjectIn& s, const void* weight, int columns);
template cudaError_t launch_project_in<float>(ProjectIn s, cudaStream_t stream);
template cudaError_t launch_project_out<float>(ProjectOut s, cudaStream_t stream);

}  // namespace mamba
