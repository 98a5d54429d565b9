// The large products that a kernel calls back for, by the cuBLAS that ONNX Runtime's CUDA provider
// has loaded.
#pragma once

#include "library.h"

namespace mamba_ort {

// What multiply needs of a run; throws Refusal where the runtime has no cuBLAS to offer.
struct Products {
  Products(const OrtFunctions& api, const OrtKernelContext* context);
  void* handle;  // cublasHandle_t, bound to the run's stream
};

// A mamba_multiply: context is a Products.
int multiply(void* context, const mamba_product* product, void* stream);

}  // namespace mamba_ort
