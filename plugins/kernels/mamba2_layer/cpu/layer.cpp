// A whole layer of Mamba-2 on a CPU: its operators one after the other, over parts of one
// workspace. Nothing is split: each operator reads its columns where in_proj left them.
#include <algorithm>

#include "common/checks.h"
#include "layer/cpu/parts.h"
#include "mamba2_layer/columns.h"

namespace mamba {
namespace {

constexpr char kName[] = "mamba2_layer";

class Layer {
 public:
  // With a null workspace it only adds up the bytes.
  Layer(const mamba2_layer_params& params, const Threads& threads, void* workspace)
      : p_(params), at_(params), on_cpu_{kName,        params.batch * params.length, params.d_model,
                                         params.dtype, params.hidden_dtype,          threads} {
    const int64_t row = on_cpu_.rows * element_bytes(p_.dtype);
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

  mamba_status run() const {
    on_cpu_.normalise(p_.hidden, p_.norm_weight, p_.epsilon, x_);
    mamba_status bad =
        on_cpu_.multiply({x_, p_.d_model, p_.d_model, p_.in_proj_weight, at_.all}, in_, scratch_);
    if (bad) return bad;
    if ((bad = convolve())) return bad;
    if ((bad = walk())) return bad;
    if ((bad = normalise())) return bad;
    return on_cpu_.multiply({normed_, at_.d_inner, at_.d_inner, p_.out_proj_weight, p_.d_model},
                            p_.hidden, p_.hidden_out, scratch_);
  }

 private:
  // Columns of what in_proj made, and of what the convolution made.
  mamba_sequence of_in(int64_t first) const {
    return slice(in_, first, at_.all, p_.length, p_.dtype);
  }
  mamba_sequence of_mixed(int64_t first) const {
    return slice(mixed_, first - at_.x, at_.channels, p_.length, p_.dtype);
  }

  mamba_status convolve() const {
    mamba_causal_conv1d_params c = {};
    c.batch = p_.batch;
    c.length = p_.length;
    c.channels = at_.channels;
    c.d_conv = p_.d_conv;
    c.dtype = p_.dtype;
    c.silu = 1;
    c.x = of_in(at_.x);
    c.weight = p_.conv_weight;
    c.bias = p_.conv_bias;
    c.initial_state = p_.conv_state;
    c.y = mixed_;
    c.last_state = p_.last_conv_state;
    return mamba_causal_conv1d_cpu(&c, on_cpu_.threads.parallel_for, on_cpu_.threads.scheduler);
  }

  mamba_status walk() const {
    mamba_state_space_dual_params s = {};
    s.batch = p_.batch;
    s.length = p_.length;
    s.heads = at_.heads;
    s.head_dim = p_.head_dim;
    s.d_state = p_.d_state;
    s.n_groups = p_.n_groups;
    s.d_skip = p_.d_skip;
    s.dtype = p_.dtype;
    s.initial_state_dtype = p_.recurrent_state_dtype;
    s.dt_softplus = 1;
    s.dt_min = p_.dt_min;
    s.dt_max = p_.dt_max;
    s.x = of_mixed(at_.x);
    s.B = of_mixed(at_.B);
    s.C = of_mixed(at_.C);
    s.dt = of_in(at_.dt);
    s.A = p_.A;
    s.D = p_.D;
    s.dt_bias = p_.dt_bias;
    s.initial_state = p_.recurrent_state;
    s.y = y_;
    s.last_state = p_.last_recurrent_state;
    return mamba_state_space_dual_cpu(&s, on_cpu_.threads.parallel_for, on_cpu_.threads.scheduler);
  }

  mamba_status normalise() const {
    mamba_gated_rms_norm_params n = {};
    n.batch = p_.batch;
    n.length = p_.length;
    n.groups = p_.n_groups;
    n.group_width = at_.d_inner / p_.n_groups;
    n.dtype = p_.dtype;
    n.epsilon = p_.gate_epsilon;
    n.x = slice(y_, 0, at_.d_inner, p_.length, p_.dtype);
    n.z = of_in(0);
    n.weight = p_.gate_norm_weight;
    n.y = normed_;
    return mamba_gated_rms_norm_cpu(&n, on_cpu_.threads.parallel_for, on_cpu_.threads.scheduler);
  }

  const mamba2_layer_params& p_;
  const Mamba2Columns at_;
  const LayerOnCpu on_cpu_;
  void *in_, *mixed_, *y_, *x_, *normed_, *scratch_;
  size_t bytes_;
};

}  // namespace
}  // namespace mamba

extern "C" mamba_status mamba2_layer_cpu(const mamba2_layer_params* params,
                                         mamba_parallel_for parallel_for, void* scheduler) {
  return mamba::run_layer<mamba::Layer>(params, {parallel_for, scheduler}, mamba::kName);
}
