// What the C entry points of every layer do: checks, workspace, and the choice between the step's
// kernels and the form for many rows, which leaves the large products to the caller and takes no
// codes.
#pragma once

#include <algorithm>

#include "common/checks.h"
#include "common/cuda/gpu.cuh"
#include "common/cuda/status.h"
#include "common/errors.h"
#include "layer/cuda/codes.h"
#include "layer/cuda/step.cuh"
#include "layer/parts.h"
#include "mamba_kernels.h"

namespace mamba {

// The two large matrices of a layer.
struct LayerMatrices {
  int64_t in_depth, in_columns, out_depth, out_columns;
};

// Layer says what a layer is:
//
//   Params, kName, kCall             the parameters; the layer's and its call's names in messages
//   step_bytes(p)                    of the step's workspace
//   step_shared_bytes(p, codes)      of shared memory that a block of the step asks for, at most
//   matrices(p)                      what the step's first and last product read
//   has_quick_token(p)               whether its step is made for one token of several sequences
//   run_step(p, codes, workspace, overlaps, stream)
//   ManyRows(p, multiply, context, workspace, stream), with bytes() and run()
//
// codes: LayerCodes, of a layer whose matrices may be codes.
template <typename Layer>
class LayerEntry {
 public:
  using Params = typename Layer::Params;

  static bool is_step(const Params* params, const LayerCodes& codes = {}) {
    return check_sizes(params) == MAMBA_OK && prefers_step(*params, codes);
  }

  // It never shrinks where there are more rows: TensorRT asks once, for the most rows of an engine,
  // and calls with fewer.
  static size_t step_workspace(const Params* params) {
    if (check_sizes(params) || !has_few_rows(*params)) return 0;
    return std::max(Layer::step_bytes(*params), step_bytes_of_one_row(*params));
  }

  // Of either form: an engine may be built where the GPU that will choose is not.
  static size_t workspace(const Params* params, const LayerCodes& codes = {}) {
    if (check_sizes(params)) return 0;
    const size_t many =
        typename Layer::ManyRows(*params, nullptr, nullptr, nullptr, nullptr).bytes();
    return std::max({many + Widened(*params, codes, nullptr).bytes, step_workspace(params),
                     step_bytes_of_one_row(*params)});
  }

  static mamba_status step(const Params* params, void* workspace, void* stream) {
    if (mamba_status bad = check(params, workspace)) return bad;
    if (fits_step(*params, {})) return run_step(*params, {}, workspace, stream);
    return fail(MAMBA_INVALID,
                "%s: %lld sequences of %lld steps are too many rows for a step on this GPU, at "
                "most %d: use %s",
                Layer::kName, static_cast<long long>(params->batch),
                static_cast<long long>(params->length), kMaxStepRows, Layer::kCall);
  }

  static mamba_status run(const Params* params, const LayerCodes& codes, mamba_multiply multiply,
                          void* context, void* workspace, void* stream) {
    if (mamba_status bad = check(params, workspace)) return bad;
    const LayerMatrices of = Layer::matrices(*params);
    if (mamba_status bad = check_codes(Layer::kName, "in_proj", codes.in, of.in_depth)) return bad;
    if (mamba_status bad = check_codes(Layer::kName, "out_proj", codes.out, of.out_depth))
      return bad;
    if (prefers_step(*params, codes)) return run_step(*params, codes, workspace, stream);
    if (!multiply) return fail(MAMBA_INVALID, "%s: multiply is null", Layer::kName);
    const auto queue = static_cast<cudaStream_t>(stream);
    const Widened widened(*params, codes, static_cast<char*>(workspace));
    if (mamba_status bad = status_of(Layer::kName, widened.launch(queue))) return bad;
    const Params& wide = widened.params;
    return typename Layer::ManyRows(wide, multiply, context,
                                    static_cast<char*>(workspace) + widened.bytes, queue)
        .run();
  }

 private:
  // Params whose matrices of codes are replaced by their weights, at the start of the workspace.
  struct Widened {
    Params params;
    Widening in, out;
    size_t bytes;

    Widened(const Params& p, const LayerCodes& codes, void* workspace) : params(p) {
      const LayerMatrices of = Layer::matrices(p);
      Parts parts(workspace);
      const auto widen = [&](const mamba_codes& stored, const void*& weight, int64_t depth,
                             int64_t columns) {
        Widening w = {stored, weight, depth, columns, p.dtype, nullptr};
        if (!stored.bits) return w;
        w.widened = parts.take(depth * columns * element_bytes(p.dtype));
        weight = w.widened;
        params.constant_weights = 0;  // work on the stream writes them
        return w;
      };
      in = widen(codes.in, params.in_proj_weight, of.in_depth, of.in_columns);
      out = widen(codes.out, params.out_proj_weight, of.out_depth, of.out_columns);
      bytes = parts.used();
    }

    cudaError_t launch(cudaStream_t stream) const {
      for (const Widening* one : {&in, &out}) {
        if (!one->codes.bits) continue;
        const cudaError_t error = launch_widen(*one, stream);
        if (error != cudaSuccess) return error;
      }
      return cudaSuccess;
    }
  };

  // One row may take kernels that several do not, with parts of their own.
  static size_t step_bytes_of_one_row(Params p) {
    p.batch = p.length = 1;
    return Layer::step_bytes(p);
  }

  static bool has_few_rows(const Params& p) { return p.batch * p.length <= kMaxStepRows; }

  // Whether the step's kernels can take these sizes.
  static bool fits_step(const Params& p, const LayerCodes& codes) {
    if (!has_few_rows(p)) return false;
    const LayerMatrices of = Layer::matrices(p);
    const int64_t rows = p.batch * p.length;
    return step_takes(codes.in, p.in_proj_weight, rows, of.in_depth, of.in_columns, p.dtype) &&
           step_takes(codes.out, p.out_proj_weight, rows, of.out_depth, of.out_columns, p.dtype) &&
           Layer::step_shared_bytes(p, codes) <= static_cast<size_t>(current_gpu().shared_bytes);
  }

  // Whether they are the quickest.
  static bool prefers_step(const Params& p, const LayerCodes& codes) {
    if (!fits_step(p, codes)) return false;
    if (codes.in.bits || codes.out.bits) return true;  // others would widen the matrices first
    const int64_t rows = p.batch * p.length;
    if (rows == 1) return true;
    const Tuning& tuning = current_tuning();
    const LayerMatrices of = Layer::matrices(p);
    const int64_t products = of.in_depth * of.in_columns + of.out_depth * of.out_columns;
    // Of 16 bits tensor cores are quicker from two rows on where they read weights ahead.
    if (p.dtype != MAMBA_FP32 && rows <= tuning.most_skinny_rows) {
      return Layer::has_quick_token(p) && products <= tuning.most_token_products;
    }
    return rows <= tuning.most_step_rows && rows * products <= tuning.most_step_products;
  }

  static mamba_status run_step(const Params& p, const LayerCodes& codes, void* workspace,
                               void* stream) {
    const bool overlaps = current_gpu().major >= 9;  // since when launches may depend on each other
    return Layer::run_step(p, codes, workspace, overlaps, static_cast<cudaStream_t>(stream));
  }
};

// The parts of a packed layer's parameters; null without.
template <typename Packed>
auto layer_of(const Packed* params) -> decltype(&params->layer) {
  return params ? &params->layer : nullptr;
}
template <typename Packed>
LayerCodes codes_of(const Packed* params) {
  return params ? LayerCodes{params->in_proj_weight, params->out_proj_weight} : LayerCodes{};
}

}  // namespace mamba
