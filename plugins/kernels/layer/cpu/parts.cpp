#include "layer/cpu/parts.h"

#include "common/cpu/kernels.h"
#include "common/errors.h"
#include "common/sizes.h"

namespace mamba {

mamba_status no_workspace(const char* layer, size_t bytes) {
  return fail(MAMBA_OUT_OF_MEMORY,
              "%s: failed to allocate %lld bytes: use a smaller batch or shorter parts of the "
              "sequence",
              layer, static_cast<long long>(bytes));
}

void LayerOnCpu::normalise(const void* hidden, const float* weight, float epsilon, void* out) {
  norm_ = {rows_, d_model_, epsilon, dtype_, hidden_dtype_, hidden, weight, out};
  const CpuKernels& k = cpu_kernels();
  phases_.add(k.row_norm_tasks(norm_), k.row_norm_task, &norm_, rows_ * d_model_);
}

ProductCall LayerOnCpu::describe(const Product& product) const {
  ProductCall call = {};
  call.rows = rows_;
  call.columns = product.columns;
  call.depth = product.depth;
  call.is_turned = product.is_turned;
  call.dtype = call.c_dtype = dtype_;
  call.a = product.a;
  call.a_stride = product.a_stride;
  call.b = product.b;
  return call;
}

int64_t LayerOnCpu::product_bytes(int64_t depth, int64_t columns, bool is_turned) const {
  return cpu_kernels().product_scratch_bytes(
      describe({nullptr, 0, depth, nullptr, columns, is_turned}));
}

void LayerOnCpu::add(const ProductCall& given) {
  ProductCall& call = products_[count_++];
  call = given;
  const CpuKernels& k = cpu_kernels();
  const int64_t work = product(call.rows, call.depth, call.columns);
  const int64_t scratch = k.product_scratch_bytes(call) / static_cast<int64_t>(sizeof(float));
  // One of the two phases multiplies, the other moves what it works in; few rows have the first.
  const bool has_few_rows = k.product_task_bytes(call) == 0;
  phases_.add(k.product_first_tasks(call), k.product_first_task, &call,
              has_few_rows ? work : scratch);
  if (const size_t tasks = k.product_second_tasks(call)) {
    phases_.add(tasks, k.product_second_task, &call, has_few_rows ? scratch : work);
  }
}

void LayerOnCpu::multiply(const Product& product, void* c, void* scratch) {
  ProductCall call = describe(product);
  call.c = c;
  call.scratch = static_cast<float*>(scratch);
  add(call);
}

void LayerOnCpu::multiply(const Product& product, const void* residual, void* c, void* scratch) {
  ProductCall call = describe(product);
  call.c_dtype = hidden_dtype_;
  call.residual = residual;
  call.c = c;
  call.scratch = static_cast<float*>(scratch);
  add(call);
}

mamba_status LayerOnCpu::run(const Threads& threads) {
  phases_.run(threads);
  for (int i = 0; i < count_; ++i) {
    const ProductCall& call = products_[i];
    if (!call.lacks_memory) continue;
    return fail(MAMBA_OUT_OF_MEMORY,
                "%s: failed to allocate %lld bytes, for columns of a weight of depth %lld", name_,
                static_cast<long long>(cpu_kernels().product_task_bytes(call)),
                static_cast<long long>(call.depth));
  }
  return MAMBA_OK;
}

}  // namespace mamba
