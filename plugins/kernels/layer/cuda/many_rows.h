// The products of the forms for many rows, which the caller does where there are many rows.
//
// What lost to the caller's cuBLASLt for one prompt of Mamba (us a layer, fp16, H100): own products
// by wgmma, which start while the kernel ahead runs. At 130M, 370M, 1.4B and 2.8B of 512 tokens,
// where a layer takes 38.8, 44.5, 87.2 and 121.8, the best of 8 to 12 tiles for one of the products
// (of 3 for x_proj) made that, in_proj: 41.0, 46.8, 90.8, 138; out_proj: 41.0, 50.1, 100, 137;
// x_proj: 39.0, 44.1, 87.9, 123 (44.1 is within what the same layer varies by). At 2048 tokens of
// 130M, 370M and 1.4B they were 2 to 11 % slower. The convolution and x_proj in one kernel: 39.1,
// 45.1, 100, and no room at 2.8B; at 2048 tokens 4, 9 and 19 % slower.
#pragma once

#include "common/cuda/status.h"
#include "common/errors.h"
#include "layer/cuda/batch_product.cuh"
#include "layer/cuda/skinny_product.cuh"
#include "layer/parts.h"
#include "mamba_kernels.h"

namespace mamba {

// A large product: a (rows, depth), with a_stride numbers from row to row, times b.
struct Factors {
  const void* a;
  int64_t a_stride, depth;
  const void* b;
  int64_t columns;
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
    const mamba_product g = describe(f, c, c_dtype, addend);
    if (batch_product_fits(g)) {
      const auto queue = static_cast<cudaStream_t>(stream);
      return status_of(layer, launch_batch_product(g, constant_weights, queue));
    }
    if (skinny_product_fits(g)) return run_skinny(g, nullptr);
    return run(g);
  }

  // The product, and the convolution of some columns of c, which are not to be read after that.
  mamba_status with_convolution(const Factors& f, void* c,
                                const mamba_causal_conv1d_params& conv) const {
    const mamba_product g = describe(f, c, dtype, nullptr);
    if (skinny_product_fits(g) && skinny_convolution_fits(conv)) return run_skinny(g, &conv);
    if (mamba_status bad = (*this)(f, c, dtype)) return bad;
    return mamba_causal_conv1d_cuda(&conv, stream);
  }

  mamba_product describe(const Factors& f, void* c, mamba_dtype c_dtype, const void* addend) const {
    mamba_product g = {};
    g.rows = rows;
    g.columns = f.columns;
    g.depth = f.depth;
    g.dtype = dtype;
    g.c_dtype = c_dtype;
    g.a = f.a;
    g.a_stride = f.a_stride;
    g.b = f.b;
    g.addend = addend;
    g.c = c;
    g.c_stride = f.columns;
    return g;
  }

 private:
  mamba_status run_skinny(const mamba_product& g, const mamba_causal_conv1d_params* conv) const {
    const auto queue = static_cast<cudaStream_t>(stream);
    return status_of(layer, launch_skinny_product(g, constant_weights, conv, queue));
  }

  mamba_status run(const mamba_product& g) const {
    const int error = multiply(context, &g, stream);
    if (error == 0) return MAMBA_OK;
    return fail(MAMBA_CUDA_ERROR, "%s: a product (%lld, %lld) x (%lld, %lld) failed: error %d",
                layer, static_cast<long long>(g.rows), static_cast<long long>(g.depth),
                static_cast<long long>(g.depth), static_cast<long long>(g.columns), error);
  }
};

}  // namespace mamba
