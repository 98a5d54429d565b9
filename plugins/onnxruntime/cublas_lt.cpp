#include "cublas_lt.h"

#include <dlfcn.h>

#include <initializer_list>

namespace mamba_ort {
namespace cublas_lt {
namespace {

template <typename Function>
bool find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

}  // namespace

Functions::Functions() {
  // The provider first: a lookup in it sees the libraries that it was linked with.
  for (const char* name : {"libonnxruntime_providers_cuda.so", "libcublasLt.so.13",
                           "libcublasLt.so.12", "libcublasLt.so.11"}) {
    void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (!library) continue;
    is_loaded = find(library, "cublasLtMatmulDescCreate", &create_product) &&
                find(library, "cublasLtMatmulDescDestroy", &destroy_product) &&
                find(library, "cublasLtMatrixLayoutCreate", &create_matrix) &&
                find(library, "cublasLtMatrixLayoutDestroy", &destroy_matrix) &&
                find(library, "cublasLtMatmulPreferenceCreate", &create_preference) &&
                find(library, "cublasLtMatmulPreferenceSetAttribute", &set_preference) &&
                find(library, "cublasLtMatmulPreferenceDestroy", &destroy_preference) &&
                find(library, "cublasLtMatmulAlgoGetHeuristic", &choose) &&
                find(library, "cublasLtMatmul", &run);
    if (is_loaded) return;
  }
}

const Functions& functions() {
  static const Functions loaded;
  return loaded;
}

}  // namespace cublas_lt
}  // namespace mamba_ort
