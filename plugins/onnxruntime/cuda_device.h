// The GPU that the calling thread uses; 0 in a library that was built without CUDA.
#pragma once

namespace mamba_ort {

int current_device();

}  // namespace mamba_ort
