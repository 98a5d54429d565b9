// A whole layer of Mamba-2 on a CPU: its operators one after the other, over parts of one
// workspace. Nothing is split: each operator reads its columns where in_proj left them.
#include <algorithm>

#include "common/checks.h"
#include "layer/cpu/parts.h"
#include "mamba2_layer/calls.h"

namespace mamba {
namespace {

constexpr char kName[] = "mamba2_layer";

class Layer {
 public:
  // With a null workspace it only adds up the bytes.
  Layer(const mamba2_layer_params& params, void* workspace)
      : p_(params),
        at_(params),
        on_cpu_(kName, params.batch * params.length, params.d_model, params.dtype,
                params.hidden_dtype) {
    const int64_t row = on_cpu_.rows() * element_bytes(p_.dtype);
    Parts parts(workspace);
    in_ = parts.take(row * at_.all);
    mixed_ = parts.take(row * at_.channels);
    y_ = parts.take(row * at_.d_inner);
    // Read by in_proj alone, long before the gated norm is written there.
    x_ = normed_ = parts.take(row * std::max(at_.d_inner, p_.d_model));
    scratch_ = parts.take(std::max(on_cpu_.product_bytes(p_.d_model, at_.all),
                                   on_cpu_.product_bytes(at_.d_inner, p_.d_model)));
    bytes_ = parts.used();
  }

  size_t bytes() const { return bytes_; }

  // Once.
  mamba_status run(const Threads& threads) {
    on_cpu_.normalise(p_.hidden, p_.norm_weight, p_.epsilon, x_);
    on_cpu_.multiply({x_, p_.d_model, p_.d_model, p_.in_proj_weight, at_.all}, in_, scratch_);
    mamba_status bad = on_cpu_.add(convolution_, describe_convolution(p_, in_, mixed_));
    if (bad) return bad;
    bad =
        on_cpu_.add(dual_, describe_dual(p_, {mixed_, in_, 0, at_.channels, at_.all, y_, nullptr}));
    if (bad) return bad;
    bad = on_cpu_.add(gated_norm_, describe_gated_norm(p_, y_, in_, normed_));
    if (bad) return bad;
    on_cpu_.multiply({normed_, at_.d_inner, at_.d_inner, p_.out_proj_weight, p_.d_model}, p_.hidden,
                     p_.hidden_out, scratch_);
    bad = on_cpu_.run(threads);
    return bad ? bad : dual_.outcome();
  }

 private:
  const mamba2_layer_params& p_;
  const Mamba2Columns at_;
  LayerOnCpu on_cpu_;
  ConvWork convolution_;
  DualWork dual_;
  GatedNormWork gated_norm_;
  void *in_, *mixed_, *y_, *x_, *normed_, *scratch_;
  size_t bytes_;
};

}  // namespace
}  // namespace mamba

extern "C" mamba_status mamba2_layer_cpu(const mamba2_layer_params* params,
                                         mamba_parallel_for parallel_for, void* scheduler) {
  return mamba::run_layer<mamba::Layer>(params, {parallel_for, scheduler}, mamba::kName);
}
