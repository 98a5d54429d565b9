// A whole layer of Mamba-2: its step's kernels, and its form for many rows, which leaves the two
// large products to the caller. layer/cuda/entry.cuh chooses.
//
// A step takes three kernels: project_in (norm, in_proj, convolution), the step of state space
// duality, project_out (gated norm, out_proj, sum). Nothing is copied or split in either form: all
// that in_proj makes lies in one buffer, and each kernel reads its columns there.
#include <algorithm>

#include "common/checks.h"
#include "common/cuda/numeric.cuh"
#include "common/cuda/status.h"
#include "layer/cuda/entry.cuh"
#include "layer/cuda/many_rows.h"
#include "layer/cuda/step.cuh"
#include "mamba2_layer/calls.h"

namespace mamba {
namespace {

constexpr char kName[] = "mamba2_layer";

using Columns = Mamba2Columns;

size_t dual_bytes(const mamba2_layer_params& p) {
  const mamba_state_space_dual_params s = describe_dual(p, {});
  return mamba_state_space_dual_cuda_workspace(&s);
}

// --- Few rows

struct Step {
  ProjectIn in;
  Mamba2Dual dual;
  ProjectOut out;
  size_t bytes;
};

Step describe_step(const mamba2_layer_params& p, const LayerCodes& codes, void* workspace,
                   bool overlaps) {
  const Columns at(p);
  const int64_t rows = p.batch * p.length, element = element_bytes(p.dtype);
  Step s = {};
  s.in.hidden = p.hidden;
  s.in.norm_weight = p.norm_weight;
  s.in.weight = p.in_proj_weight;
  s.in.codes = codes.in;
  s.in.conv_weight = p.conv_weight;
  s.in.conv_bias = p.conv_bias;
  s.in.conv_state = p.conv_state;
  s.in.last_conv_state = p.last_conv_state;
  s.in.batch = static_cast<int>(p.batch);
  s.in.length = static_cast<int>(p.length);
  s.in.rows = static_cast<int>(rows);
  s.in.d_model = static_cast<int>(p.d_model);
  s.in.columns = static_cast<int>(at.all);
  s.in.stride = static_cast<int>(padded(at.all));
  s.in.conv_first = static_cast<int>(at.x);
  s.in.conv_columns = static_cast<int>(at.channels);
  s.in.d_conv = static_cast<int>(p.d_conv);
  s.in.epsilon = p.epsilon;
  s.in.hidden_dtype = p.hidden_dtype;
  // The first kernel follows work that is not ours, which may have written the weights.
  s.in.overlaps = overlaps && p.constant_weights;

  s.out.weight = p.out_proj_weight;
  s.out.codes = codes.out;
  s.out.hidden = p.hidden;
  s.out.hidden_out = p.hidden_out;
  s.out.rows = s.in.rows;
  s.out.depth = static_cast<int>(at.d_inner);
  s.out.columns = s.in.d_model;
  s.out.stride = s.out.depth;  // the operator writes y densely
  s.out.hidden_dtype = p.hidden_dtype;
  s.out.overlaps = overlaps;
  s.out.gate_norm_weight = p.gate_norm_weight;
  s.out.groups = static_cast<int>(p.n_groups);
  s.out.gate_stride = s.in.stride;
  s.out.is_gated = true;
  s.out.epsilon = p.gate_epsilon;

  Parts parts(workspace);
  s.in.out = parts.take(rows * s.in.stride * element);
  void* y = parts.take(rows * at.d_inner * element);
  s.dual = {s.in.out, s.in.out, at.x, s.in.stride, s.in.stride, y, nullptr};
  s.dual.workspace = parts.take(static_cast<int64_t>(dual_bytes(p)));
  s.out.y = y;
  s.out.gate = s.in.out;  // z has the first columns
  s.bytes = parts.used();
  return s;
}

// --- Many rows

class ManyRows {
 public:
  ManyRows(const mamba2_layer_params& params, mamba_multiply multiply, void* context,
           void* workspace, cudaStream_t stream)
      : p_(params),
        at_(params),
        product_{kName,  params.batch * params.length, params.dtype, multiply, context,
                 stream, params.constant_weights != 0},
        stream_(stream) {
    const int64_t row = product_.rows * element_bytes(p_.dtype);
    Parts parts(workspace);
    in_ = parts.take(row * at_.all);
    mixed_ = parts.take(row * at_.channels);
    y_ = parts.take(row * at_.d_inner);
    // Read by in_proj alone, long before the gated norm is written there.
    x_ = normed_ = parts.take(row * std::max(at_.d_inner, p_.d_model));
    dual_ = parts.take(static_cast<int64_t>(dual_bytes(p_)));
    bytes_ = parts.used();
  }

  size_t bytes() const { return bytes_; }

  mamba_state_space_dual_params dual() const {
    return describe_dual(p_, {mixed_, in_, 0, at_.channels, at_.all, y_, dual_});
  }

  mamba_status run() const {
    const RowNorm norm = {p_.hidden,     p_.norm_weight,  x_,
                          product_.rows, p_.d_model,      p_.epsilon,
                          p_.dtype,      p_.hidden_dtype, product_.constant_weights};
    mamba_status bad = status_of(kName, launch_norm(norm, stream_));
    if (bad) return bad;
    bad = product_.with_convolution({x_, p_.d_model, p_.d_model, p_.in_proj_weight, at_.all}, in_,
                                    describe_convolution(p_, in_, mixed_));
    if (bad) return bad;
    const mamba_state_space_dual_params dual = this->dual();
    if ((bad = mamba_state_space_dual_cuda(&dual, dual_, stream_))) return bad;
    if ((bad = normalise())) return bad;
    return product_({normed_, at_.d_inner, at_.d_inner, p_.out_proj_weight, p_.d_model},
                    p_.hidden_out, p_.hidden_dtype, p_.hidden);
  }

 private:
  mamba_status normalise() const {
    const mamba_gated_rms_norm_params n = describe_gated_norm(p_, y_, in_, normed_);
    return mamba_gated_rms_norm_cuda(&n, stream_);
  }

  const mamba2_layer_params& p_;
  const Columns at_;
  const Products product_;
  const cudaStream_t stream_;
  void *in_, *mixed_, *y_, *x_, *normed_, *dual_;
  size_t bytes_;
};

// --- The choice

struct Mamba2 {
  using Params = mamba2_layer_params;
  using ManyRows = mamba::ManyRows;
  static constexpr const char* kName = mamba::kName;
  static constexpr char kCall[] = "mamba2_layer_cuda";

  static size_t step_bytes(const Params& p) { return describe_step(p, {}, nullptr, false).bytes; }

  static size_t step_shared_bytes(const Params& p, const LayerCodes& codes) {
    const Step s = describe_step(p, codes, nullptr, false);
    return with_type(p.dtype, [&](auto* type) {
      using T = std::decay_t<decltype(*type)>;
      return std::max(project_in_shared_bytes<T>(s.in), project_out_shared_bytes<T>(s.out));
    });
  }

  static LayerMatrices matrices(const Params& p) {
    const Columns at(p);
    return {p.d_model, at.all, at.d_inner, p.d_model};
  }

  static bool has_quick_token(const Params&) { return false; }

  static mamba_status run_step(const Params& p, const LayerCodes& codes, void* workspace,
                               bool overlaps, cudaStream_t stream) {
    const Step s = describe_step(p, codes, workspace, overlaps);
    const auto launch_in = [&](auto* type) {
      return launch_project_in<std::decay_t<decltype(*type)>>(s.in, stream);
    };
    const auto launch_out = [&](auto* type) {
      return launch_project_out<std::decay_t<decltype(*type)>>(s.out, stream);
    };
    if (mamba_status bad = status_of(kName, with_type(p.dtype, launch_in))) return bad;
    const mamba_state_space_dual_params dual = describe_dual(p, s.dual);
    if (mamba_status bad = mamba_state_space_dual_cuda(&dual, s.dual.workspace, stream)) return bad;
    return status_of(kName, with_type(p.dtype, launch_out));
  }
};

using Entry = LayerEntry<Mamba2>;

}  // namespace
}  // namespace mamba

extern "C" {

int mamba2_layer_is_step_cuda(const mamba2_layer_params* params) {
  return mamba::Entry::is_step(params);
}

const char* mamba2_layer_cuda_form(const mamba2_layer_params* params, int architecture) {
  if (mamba::check_sizes(params)) return "";
  // The step's columns lie elsewhere than those of many rows, and may be aligned otherwise.
  const bool has_few_rows = params->batch * params->length <= mamba::kMaxStepRows;
  const mamba_state_space_dual_params dual =
      has_few_rows
          ? mamba::describe_dual(*params, mamba::describe_step(*params, {}, nullptr, false).dual)
          : mamba::ManyRows(*params, nullptr, nullptr, nullptr, nullptr).dual();
  return mamba_state_space_dual_cuda_form(&dual, architecture);
}

size_t mamba2_layer_step_cuda_workspace(const mamba2_layer_params* params) {
  return mamba::Entry::step_workspace(params);
}

size_t mamba2_layer_cuda_workspace(const mamba2_layer_params* params) {
  return mamba::Entry::workspace(params);
}

mamba_status mamba2_layer_step_cuda(const mamba2_layer_params* params, void* workspace,
                                    void* stream) {
  return mamba::Entry::step(params, workspace, stream);
}

mamba_status mamba2_layer_cuda(const mamba2_layer_params* params, mamba_multiply multiply,
                               void* context, void* workspace, void* stream) {
  return mamba::Entry::run(params, {}, multiply, context, workspace, stream);
}

int mamba2_layer_packed_is_step_cuda(const mamba2_layer_packed_params* params) {
  return mamba::Entry::is_step(mamba::layer_of(params), mamba::codes_of(params));
}

size_t mamba2_layer_packed_cuda_workspace(const mamba2_layer_packed_params* params) {
  return mamba::Entry::workspace(mamba::layer_of(params), mamba::codes_of(params));
}

mamba_status mamba2_layer_packed_cuda(const mamba2_layer_packed_params* params,
                                      mamba_multiply multiply, void* context, void* workspace,
                                      void* stream) {
  return mamba::Entry::run(mamba::layer_of(params), mamba::codes_of(params), multiply, context,
                           workspace, stream);
}

}  // extern "C"
