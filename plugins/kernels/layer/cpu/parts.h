// What the layers share on a CPU: their memory, the norm in front and the products.
#pragma once

#include <cstdlib>

#include "common/cpu/threads.h"
#include "layer/parts.h"

namespace mamba {

// The memory of one call, aligned as a workspace is.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : data_(aligned_alloc(kWorkspaceAlignment, bytes)) {}
  ~Workspace() { free(data_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }  // null where there is no such memory

 private:
  void* data_;
};

// Notes that a call found no memory of its own.
mamba_status no_workspace(const char* layer, size_t bytes);

// Runs a layer, an object of Layer made of params, threads and workspace.
template <typename Layer, typename Params>
mamba_status run_layer(const Params* params, const Threads& threads, const char* name) {
  if (mamba_status bad = check_sizes(params)) return bad;
  const size_t bytes = Layer(*params, threads, nullptr).bytes();
  const Workspace workspace(bytes);
  if (!workspace.data()) return no_workspace(name, bytes);
  if (mamba_status bad = check(params, workspace.data())) return bad;
  return Layer(*params, threads, workspace.data()).run();
}

// The steps of a layer: rows are those of all sequences.
struct LayerOnCpu {
  const char* layer;  // its name in messages
  int64_t rows, d_model;
  mamba_dtype dtype, hidden_dtype;
  Threads threads;

  // Runs an operator of the library, on the layer's threads.
  template <typename Params>
  mamba_status call(mamba_status (*op)(const Params*, mamba_parallel_for, void*),
                    const Params& params) const {
    return op(&params, threads.parallel_for, threads.scheduler);
  }

  // out (rows, d_model) of dtype.
  void normalise(const void* hidden, const float* weight, float epsilon, void* out) const;

  struct Product {
    const void* a;  // (rows, depth), a_stride numbers from row to row
    int64_t a_stride, depth;
    const void* b;  // (depth, columns)
    int64_t columns;
  };

  // Bytes that multiply works in.
  int64_t product_bytes(int64_t depth, int64_t columns) const;
  // c (rows, columns) of dtype = a b.
  mamba_status multiply(const Product& product, void* c, void* scratch) const;
  // c (rows, columns) of hidden_dtype = residual + a b.
  mamba_status multiply(const Product& product, const void* residual, void* c, void* scratch) const;
};

}  // namespace mamba
