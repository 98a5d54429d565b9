// A whole layer on a CPU: its operators one after the other, over parts of one workspace.
#include <algorithm>

#include "common/checks.h"
#include "layer/cpu/parts.h"
#include "mamba_layer/calls.h"

namespace mamba {
namespace {

class Layer {
 public:
  // With a null workspace it only adds up the bytes.
  Layer(const mamba_layer_params& params, void* workspace)
      : p_(params),
        width_(projected_width(params)),
        on_cpu_("layer", params.batch * params.length, params.d_model, params.dtype,
                params.hidden_dtype) {
    const int64_t row = on_cpu_.rows() * element_bytes(p_.dtype);
    Parts parts(workspace);
    xz_ = parts.take(row * 2 * p_.d_inner);
    u_ = parts.take(row * p_.d_inner);
    projected_ = parts.take(row * width_);
    delta_ = parts.take(row * p_.d_inner);
    y_ = parts.take(row * std::max(p_.d_inner, p_.d_model));
    x_ = y_;  // read by in_proj alone, long before the scan writes y
    scratch_ = parts.take(std::max({on_cpu_.product_bytes(p_.d_model, 2 * p_.d_inner),
                                    on_cpu_.product_bytes(p_.d_inner, width_),
                                    on_cpu_.product_bytes(p_.dt_rank, p_.d_inner),
                                    on_cpu_.product_bytes(p_.d_inner, p_.d_model)}));
    bytes_ = parts.used();
  }

  size_t bytes() const { return bytes_; }

  // Once.
  mamba_status run(const Threads& threads) {
    const int64_t d_inner = p_.d_inner;
    on_cpu_.normalise(p_.hidden, p_.norm_weight, p_.epsilon, x_);
    on_cpu_.multiply({x_, p_.d_model, p_.d_model, p_.in_proj_weight, 2 * d_inner}, xz_, scratch_);
    mamba_status bad = on_cpu_.add(convolution_, describe_convolution(p_, xz_, u_));
    if (bad) return bad;
    on_cpu_.multiply({u_, d_inner, d_inner, p_.x_proj_weight, width_}, projected_, scratch_);
    on_cpu_.multiply({projected_, width_, p_.dt_rank, p_.dt_proj_weight, d_inner}, delta_,
                     scratch_);
    bad = on_cpu_.add(scan_, describe_scan(p_, {u_, xz_, projected_, delta_, y_}));
    if (bad) return bad;
    on_cpu_.multiply({y_, d_inner, d_inner, p_.out_proj_weight, p_.d_model}, p_.hidden,
                     p_.hidden_out, scratch_);
    bad = on_cpu_.run(threads);
    return bad ? bad : scan_.outcome();
  }

 private:
  const mamba_layer_params& p_;
  const int64_t width_;  // of what x_proj makes: dt, B, C
  LayerOnCpu on_cpu_;
  ConvWork convolution_;
  ScanWork scan_;
  void *xz_, *u_, *projected_, *delta_, *y_, *x_, *scratch_;
  size_t bytes_;
};

}  // namespace
}  // namespace mamba

extern "C" mamba_status mamba_layer_cpu(const mamba_layer_params* params,
                                        mamba_parallel_for parallel_for, void* scheduler) {
  return mamba::run_layer<mamba::Layer>(params, {parallel_for, scheduler}, "layer");
}
