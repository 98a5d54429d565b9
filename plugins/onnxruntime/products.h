// The large products that a kernel calls back for, by the cuBLASLt that ONNX Runtime's CUDA
// provider has loaded.
#pragma once

#include "context.h"

namespace mamba_ort {

// What multiply needs of a run; throws Refusal where the runtime has no cuBLAS to offer, and
// Failure where memory is short.
struct Products {
  Products(const OrtFunctions& api, const OrtKernelContext* context, Scratch& scratch);
  void* handle;     // cublasHandle_t, which holds a cublasLtHandle_t
  void* workspace;  // of the kernels of cuBLASLt
};

// A mamba_multiply: context is a Products.
int multiply(void* context, const mamba_product* product, void* stream);

}  // namespace mamba_ort
