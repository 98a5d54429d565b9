// What the layers share on a CPU: their memory, the norm in front and the products.
#pragma once

#include <cstdlib>

#include "common/cpu/operator_work.h"
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

// Runs a layer, an object of Layer made of params and workspace.
template <typename Layer, typename Params>
mamba_status run_layer(const Params* params, const Threads& threads, const char* name) {
  if (mamba_status bad = check_sizes(params)) return bad;
  const size_t bytes = Layer(*params, nullptr).bytes();
  const Workspace workspace(bytes);
  if (!workspace.data()) return no_workspace(name, bytes);
  if (mamba_status bad = check(params, workspace.data())) return bad;
  return Layer(*params, workspace.data()).run(threads);
}

// A layer under way: its steps are added in their order, then run together, in one waking of the
// threads. Rows are those of all sequences.
class LayerOnCpu {
 public:
  // name: the layer's, in messages.
  LayerOnCpu(const char* name, int64_t rows, int64_t d_model, mamba_dtype dtype,
             mamba_dtype hidden_dtype)
      : name_(name), rows_(rows), d_model_(d_model), dtype_(dtype), hidden_dtype_(hidden_dtype) {}

  int64_t rows() const { return rows_; }

  // out (rows, d_model) of dtype.
  void normalise(const void* hidden, const float* weight, float epsilon, void* out);

  struct Product {
    const void* a;  // (rows, depth), a_stride numbers from row to row
    int64_t a_stride, depth;
    const void* b;  // (depth, columns)
    int64_t columns;
    bool is_turned = false;  // b is (columns, depth)
  };

  // Bytes that multiply works in.
  int64_t product_bytes(int64_t depth, int64_t columns, bool is_turned = false) const;
  // c (rows, columns) of dtype = a b.
  void multiply(const Product& product, void* c, void* scratch);
  // c (rows, columns) of hidden_dtype = residual + a b.
  void multiply(const Product& product, const void* residual, void* c, void* scratch);

  // An operator of the library (operator_work.h).
  template <typename Work, typename Params>
  mamba_status add(Work& work, const Params& params) {
    return work.add(params, phases_);
  }

  // Of all that was added: of the products how they ended, the operators say it themselves.
  mamba_status run(const Threads& threads);

 private:
  static constexpr int kMostProducts = 4;

  ProductCall describe(const Product& product) const;
  void add(const ProductCall& call);

  const char* const name_;
  const int64_t rows_, d_model_;
  const mamba_dtype dtype_, hidden_dtype_;
  Phases phases_;
  RowNormCall norm_ = {};
  ProductCall products_[kMostProducts] = {};
  int count_ = 0;  // of products
};

}  // namespace mamba
