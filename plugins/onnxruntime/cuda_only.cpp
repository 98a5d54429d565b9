// The operators that have a kernel for CUDA alone.
#include "layer.h"

namespace mamba_ort {

void add_cuda_only(const OrtFunctions& api, Operators& operators) { add_layer(api, operators); }

}  // namespace mamba_ort
