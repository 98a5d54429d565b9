#include "layer/cpu/parts.h"

#include "common/cpu/kernels.h"
#include "common/errors.h"
#include "common/sizes.h"

namespace mamba {
namespace {

mamba_status run(const LayerOnCpu& layer, ProductCall& call) {
  const CpuKernels& k = cpu_kernels();
  const int64_t work = product(call.rows, call.depth, call.columns);
  const int64_t scratch = k.product_scratch_bytes(call) / static_cast<int64_t>(sizeof(float));
  // One of the two phases multiplies, the other moves what it works in; few rows have the first.
  layer.threads.run(k.product_first_tasks(call), k.product_first_task, &call,
                    k.product_task_bytes(call) ? scratch : work);
  layer.threads.run(k.product_second_tasks(call), k.product_second_task, &call,
                    k.product_task_bytes(call) ? work : scratch);
  if (!call.lacks_memory) return MAMBA_OK;
  return fail(MAMBA_OUT_OF_MEMORY,
              "%s: failed to allocate %lld bytes, for columns of a weight of depth %lld",
              layer.layer, static_cast<long long>(k.product_task_bytes(call)),
              static_cast<long long>(call.depth));
}

ProductCall describe(const LayerOnCpu& layer, const LayerOnCpu::Product& product) {
  ProductCall call = {};
  call.rows = layer.rows;
  call.columns = product.columns;
  call.depth = product.depth;
  call.dtype = call.c_dtype = layer.dtype;
  call.a = product.a;
  call.a_stride = product.a_stride;
  call.b = product.b;
  return call;
}

}  // namespace

mamba_status no_workspace(const char* layer, size_t bytes) {
  return fail(MAMBA_OUT_OF_MEMORY,
              "%s: failed to allocate %lld bytes: use a smaller batch or shorter parts of the "
              "sequence",
              layer, static_cast<long long>(bytes));
}

void LayerOnCpu::normalise(const void* hidden, const float* weight, float epsilon,
                           void* out) const {
  RowNormCall call = {rows, d_model, epsilon, dtype, hidden_dtype, hidden, weight, out};
  const CpuKernels& k = cpu_kernels();
  threads.run(k.row_norm_tasks(call), k.row_norm_task, &call, rows * d_model);
}

int64_t LayerOnCpu::product_bytes(int64_t depth, int64_t columns) const {
  return cpu_kernels().product_scratch_bytes(
      describe(*this, {nullptr, 0, depth, nullptr, columns}));
}

mamba_status LayerOnCpu::multiply(const Product& product, void* c, void* scratch) const {
  ProductCall call = describe(*this, product);
  call.c = c;
  call.scratch = static_cast<float*>(scratch);
  return run(*this, call);
}

mamba_status LayerOnCpu::multiply(const Product& product, const void* residual, void* c,
                                  void* scratch) const {
  ProductCall call = describe(*this, product);
  call.c_dtype = hidden_dtype;
  call.residual = residual;
  call.c = c;
  call.scratch = static_cast<float*>(scratch);
  return run(*this, call);
}

}  // namespace mamba
