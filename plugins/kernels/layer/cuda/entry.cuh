// What the C entry points of every layer do: checks, workspace, and the choice between the step's
// kernels and the form for many rows, which leaves the large products to the caller.
#pragma once

#include <algorithm>

#include "common/checks.h"
#include "common/cuda/gpu.cuh"
#include "common/errors.h"
#include "layer/cuda/step.cuh"
#include "mamba_kernels.h"

namespace mamba {

// Layer says what a layer is:
//
//   Params, kName, kCall             the parameters; the layer's and its call's names in messages
//   step_bytes(p)                    of the step's workspace
//   step_shared_bytes(p)             of shared memory that a block of the step asks for, at most
//   row_products(p)                  multiplications of a row with the projections of the step
//   run_step(p, workspace, overlaps, stream)
//   ManyRows(p, multiply, context, workspace, stream), with bytes() and run()
template <typename Layer>
class LayerEntry {
 public:
  using Params = typename Layer::Params;

  static bool is_step(const Params* params) {
    return check_sizes(params) == MAMBA_OK && prefers_step(*params);
  }

  // It never shrinks where there are more rows: TensorRT asks once, for the most rows of an engine,
  // and calls with fewer.
  static size_t step_workspace(const Params* params) {
    if (check_sizes(params) || !has_few_rows(*params)) return 0;
    return std::max(Layer::step_bytes(*params), step_bytes_of_one_row(*params));
  }

  // Of either form: an engine may be built where the GPU that will choose is not.
  static size_t workspace(const Params* params) {
    if (check_sizes(params)) return 0;
    const size_t many =
        typename Layer::ManyRows(*params, nullptr, nullptr, nullptr, nullptr).bytes();
    return std::max({many, step_workspace(params), step_bytes_of_one_row(*params)});
  }

  static mamba_status step(const Params* params, void* workspace, void* stream) {
    if (mamba_status bad = check(params, workspace)) return bad;
    if (fits_step(*params)) return run_step(*params, workspace, stream);
    return fail(MAMBA_INVALID,
                "%s: %lld sequences of %lld steps are too many rows for a step on this GPU, at "
                "most %d: use %s",
                Layer::kName, static_cast<long long>(params->batch),
                static_cast<long long>(params->length), kMaxStepRows, Layer::kCall);
  }

  static mamba_status run(const Params* params, mamba_multiply multiply, void* context,
                          void* workspace, void* stream) {
    if (mamba_status bad = check(params, workspace)) return bad;
    if (prefers_step(*params)) return run_step(*params, workspace, stream);
    if (!multiply) return fail(MAMBA_INVALID, "%s: multiply is null", Layer::kName);
    return typename Layer::ManyRows(*params, multiply, context, workspace,
                                    static_cast<cudaStream_t>(stream))
        .run();
  }

 private:
  // One row may take kernels that several do not, with parts of their own.
  static size_t step_bytes_of_one_row(Params p) {
    p.batch = p.length = 1;
    return Layer::step_bytes(p);
  }

  static bool has_few_rows(const Params& p) { return p.batch * p.length <= kMaxStepRows; }

  // Whether the step's kernels can take these sizes.
  static bool fits_step(const Params& p) {
    return has_few_rows(p) &&
           Layer::step_shared_bytes(p) <= static_cast<size_t>(current_gpu().shared_bytes);
  }

  // Whether they are the quickest.
  static bool prefers_step(const Params& p) {
    if (!fits_step(p)) return false;
    const int64_t rows = p.batch * p.length;
    if (rows == 1) return true;
    const Tuning& tuning = current_tuning();
    // Of 16 bits tensor cores are quicker from two rows on where they read weights ahead.
    if (p.dtype != MAMBA_FP32 && rows <= tuning.most_skinny_rows) return false;
    return rows <= tuning.most_step_rows &&
           rows * Layer::row_products(p) <= tuning.most_step_products;
  }

  static mamba_status run_step(const Params& p, void* workspace, void* stream) {
    const bool overlaps = current_gpu().major >= 9;  // since when launches may depend on each other
    return Layer::run_step(p, workspace, overlaps, static_cast<cudaStream_t>(stream));
  }
};

}  // namespace mamba
