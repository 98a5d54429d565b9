// cuBLASLt's binary interface, as far as it is used here: it is not linked, because its version
// must be the one that made the runtime's handle. Numbers are those of cublasLt.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mamba_ort {
namespace cublas_lt {

using Status = int;
constexpr Status kNotSupported = 15;

using Object = void*;  // a description of a product, of a matrix, or of what is asked for
struct Algorithm {
  uint64_t data[8];
};
struct Candidate {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

constexpr int kTypes[] = {0, 2, 14};  // CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF, in mamba_dtype's order
constexpr int kSums = 0;              // CUDA_R_32F
constexpr int kCompute32 = 68, kComputePedantic32 = 69;  // the latter without TF32
// Of cublasLtMatmulPreferenceAttributes_t.
constexpr int kMostWorkspaceBytes = 1, kReductions = 3, kAlignments[] = {5, 6, 7, 8};
constexpr uint32_t kReduceIn32 = 2;       // parts of a sum are added in fp32, not in the type of c
constexpr uint32_t kMostAlignment = 256;  // that algorithms tell apart

// The functions of the library that the runtime has loaded.
struct Functions {
  Status (*create_product)(Object*, int compute_type, int scale_type) = nullptr;
  Status (*destroy_product)(Object) = nullptr;
  Status (*create_matrix)(Object*, int type, uint64_t rows, uint64_t columns,
                          int64_t stride) = nullptr;
  Status (*destroy_matrix)(Object) = nullptr;
  Status (*create_preference)(Object*) = nullptr;
  Status (*set_preference)(Object, int attribute, const void* value, size_t bytes) = nullptr;
  Status (*destroy_preference)(Object) = nullptr;
  Status (*choose)(void* handle, Object product, Object a, Object b, Object c, Object d,
                   Object preference, int wanted, Candidate*, int* found) = nullptr;
  Status (*run)(void* handle, Object product, const void* alpha, const void* a, Object a_layout,
                const void* b, Object b_layout, const void* beta, const void* c, Object c_layout,
                void* d, Object d_layout, const Algorithm*, void* workspace, size_t bytes,
                void* stream) = nullptr;
  bool is_loaded = false;

  Functions();
};

// Looked up once.
const Functions& functions();

// An object of cuBLASLt's, gone with this.
class Owned {
 public:
  explicit Owned(Status (*destroy)(Object)) : destroy_(destroy) {}
  ~Owned() {
    if (object_) destroy_(object_);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

  Object* place() { return &object_; }
  operator Object() const { return object_; }

 private:
  Object object_ = nullptr;
  Status (*destroy_)(Object);
};

}  // namespace cublas_lt
}  // namespace mamba_ort
