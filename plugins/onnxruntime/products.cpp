#include "products.h"

#include <dlfcn.h>

namespace mamba_ort {
namespace {

// cuBLAS's binary interface, as far as it is used here: it is not linked, because its version must
// be the one that made the runtime's handle.
using GemmEx = int (*)(void* handle, int transpose_a, int transpose_b, int m, int n, int k,
                       const void* alpha, const void* a, int a_type, int lda, const void* b,
                       int b_type, int ldb, const void* beta, void* c, int c_type, int ldc,
                       int compute_type, int algorithm);
using GetMathMode = int (*)(void* handle, int* mode);
using SetMathMode = int (*)(void* handle, int mode);
constexpr int kTypes[] = {0, 2, 14};  // CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF, in mamba_dtype's order
constexpr int kPlain = 0;             // CUBLAS_OP_N
constexpr int kCompute32 = 68, kComputePedantic32 = 69;  // the latter without TF32
constexpr int kDefaultAlgorithm = -1;
// CUBLAS_DEFAULT_MATH, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: parts are added in fp32.
constexpr int kMathMode = 0 | 16;

// The runtime's own numbers: CudaResource's cublas_handle_t, and the first version that has it.
constexpr int kCublasHandle = 10002, kResourceVersion = 1;

struct Cublas {
  GemmEx gemm = nullptr;
  GetMathMode get_math_mode = nullptr;
  SetMathMode set_math_mode = nullptr;

  Cublas() {
    // The provider first: a lookup in it sees the libraries that it was linked with.
    for (const char* name : {"libonnxruntime_providers_cuda.so", "libcublas.so.13",
                             "libcublas.so.12", "libcublas.so.11"}) {
      void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
      if (!library) continue;
      gemm = reinterpret_cast<GemmEx>(dlsym(library, "cublasGemmEx"));
      get_math_mode = reinterpret_cast<GetMathMode>(dlsym(library, "cublasGetMathMode"));
      set_math_mode = reinterpret_cast<SetMathMode>(dlsym(library, "cublasSetMathMode"));
      if (gemm && get_math_mode && set_math_mode) return;
    }
    gemm = nullptr;
  }
};

const Cublas& cublas() {
  static const Cublas loaded;
  return loaded;
}

}  // namespace

Products::Products(const OrtFunctions& api, const OrtKernelContext* context) : handle(nullptr) {
  if (!cublas().gemm) {
    throw Failure(MAMBA_NO_CUDA,
                  "cuBLAS is not loaded: ONNX Runtime's CUDA provider should have done so");
  }
  check(api.KernelContext_GetResource(context, kResourceVersion, kCublasHandle, &handle));
  if (!handle) {
    throw Failure(MAMBA_CUDA_ERROR, "ONNX Runtime has no cuBLAS handle for this stream");
  }
}

int multiply(void* context, const mamba_product* product, void*) {
  const mamba_product& p = *product;
  void* handle = static_cast<const Products*>(context)->handle;
  int mode = 0;
  if (int error = cublas().get_math_mode(handle, &mode)) return error;
  if (int error = cublas().set_math_mode(handle, kMathMode)) return error;
  const float one = 1.f, beta = p.accumulate ? 1.f : 0.f;
  const int rows = static_cast<int>(p.rows), columns = static_cast<int>(p.columns);
  // cuBLAS counts by columns, so what it sees is the transpose of each: c' = b' a'.
  const int error =
      cublas().gemm(handle, kPlain, kPlain, columns, rows, static_cast<int>(p.depth), &one, p.b,
                    kTypes[p.dtype], columns, p.a, kTypes[p.dtype], static_cast<int>(p.a_stride),
                    &beta, p.c, kTypes[p.c_dtype], static_cast<int>(p.c_stride),
                    p.dtype == MAMBA_FP32 ? kComputePedantic32 : kCompute32, kDefaultAlgorithm);
  const int restored = cublas().set_math_mode(handle, mode);
  return error ? error : restored;
}

}  // namespace mamba_ort
