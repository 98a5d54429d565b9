// What the forms for many rows share: a workspace in parts, and the products, which the caller does
// where there are many rows.
#pragma once

#include "common/checks.h"
#include "common/cuda/status.h"
#include "common/errors.h"
#include "layer/cuda/skinny_product.cuh"
#include "mamba_kernels.h"

namespace mamba {

inline int64_t element_bytes(mamba_dtype dtype) { return dtype == MAMBA_FP32 ? 4 : 2; }

// Hands out the parts of a workspace; with a null start it only adds them up.
class Parts {
 public:
  explicit Parts(void* start) : start_(static_cast<char*>(start)) {}
  void* take(int64_t bytes) {
    void* part = start_ ? start_ + used_ : nullptr;
    used_ += (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    return part;
  }
  size_t used() const { return static_cast<size_t>(used_); }

 private:
  char* start_;
  int64_t used_ = 0;
};

// A large product: a (rows, depth), with a_stride numbers from row to row, times b.
struct Factors {
  const void* a;
  int64_t a_stride, depth;
  const void* b;
  int64_t columns;
  int64_t b_stride = 0;  // 0: b has these columns alone
};

// The products of one call of a layer, of all its rows.
struct Products {
  const char* layer;  // its name in messages
  int64_t rows;
  mamba_dtype dtype;
  mamba_multiply multiply;
  void* context;
  void* stream;
  bool constant_weights;  // as in mamba_layer_params

  // c (rows, columns) = the product, plus addend unless that is null.
  mamba_status operator()(const Factors& f, void* c, mamba_dtype c_dtype,
                          const void* addend = nullptr) const {
    mamba_product g = {};
    g.rows = rows;
    g.columns = f.columns;
    g.depth = f.depth;
    g.dtype = dtype;
    g.c_dtype = c_dtype;
    g.a = f.a;
    g.a_stride = f.a_stride;
    g.b = f.b;
    g.b_stride = f.b_stride ? f.b_stride : f.columns;
    g.addend = addend;
    g.c = c;
    g.c_stride = f.columns;
    if (skinny_product_fits(g)) {
      const auto queue = static_cast<cudaStream_t>(stream);
      return status_of(layer, launch_skinny_product(g, constant_weights, queue));
    }
    const int error = multiply(context, &g, stream);
    if (error == 0) return MAMBA_OK;
    return fail(MAMBA_CUDA_ERROR, "%s: a product (%lld, %lld) x (%lld, %lld) failed: error %d",
                layer, static_cast<long long>(g.rows), static_cast<long long>(g.depth),
                static_cast<long long>(g.depth), static_cast<long long>(g.columns), error);
  }
};

// Channels from `first` on of rows of `stride` numbers, `length` of them a sequence.
inline mamba_sequence slice(const void* data, int64_t first, int64_t stride, int64_t length,
                            mamba_dtype dtype) {
  const char* start = static_cast<const char*>(data) + first * element_bytes(dtype);
  return {start, length * stride, stride};
}

}  // namespace mamba
