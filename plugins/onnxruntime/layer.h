// The operator MambaLayer: a whole layer of a language model, on CUDA alone.
#pragma once

#include "library.h"

namespace mamba_ort {

// Adds it for every pair of dtypes that export writes.
void add_layer(const OrtFunctions& api, Operators& operators);

}  // namespace mamba_ort
