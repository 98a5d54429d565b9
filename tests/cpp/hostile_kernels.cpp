// The kernels' C interface under hostile sizes, attributes, strides and pointers: every call runs
// within its tensors, or is refused with one line.
#include <cmath>

#include "common/checks.h"
#include "common/sizes.h"
#include "hostile_calls.h"
#include "mamba_kernels.h"
#include "selective_scan/cuda/scan_parts.h"

namespace {

using mamba::product;
using seeded::expect;
using seeded::Random;

// T, or any number where the call is hostile.
int dtype_of(Random& random, bool is_hostile) {
  return static_cast<int>(is_hostile ? random.between(-1, 4) : random.between(0, 2));
}

void try_scan(Random& random) {
  const bool is_hostile = random.once_in(2);
  mamba_selective_scan_params p = {};
  p.n_groups = size(random, is_hostile, 3);
  p.d_inner = is_hostile ? random.hostile_size() : p.n_groups * random.between(1, 70);
  p.batch = size(random, is_hostile, 3);
  p.length = size(random, is_hostile, 40);
  const int64_t most = random.once_in(20) ? 20000 : random.once_in(3) ? 600 : 20;
  p.d_state = size(random, is_hostile, most);
  if (most == 20000 && !is_hostile) p.batch = p.length = 1;
  const int dtype = dtype_of(random, is_hostile);
  put_dtype(p.dtype, dtype);
  p.delta_softplus = static_cast<int>(random.between(0, 1));
  p.reverse = static_cast<int>(random.between(0, 1));
  p.exact_zoh = static_cast<int>(random.between(0, 1));

  // What the workspace's size is computed from passed these checks.
  const mamba_status sizes = mamba::check_sizes(&p);
  if (sizes == MAMBA_OK) {
    mamba::scan_workspace(p);
  } else {
    expect_refusal(sizes);
  }
  expect(mamba_selective_scan_cuda_workspace(&p) == 0, "a workspace without CUDA");
  const int64_t elements[] = {product(p.batch, p.length, p.d_inner),
                              product(p.batch, p.length, p.n_groups, p.d_state),
                              product(p.batch, p.d_inner, p.d_state)};
  bool is_small = sizes == MAMBA_OK;
  for (int64_t count : elements) is_small = is_small && count <= kMostBytes / 4;
  if (!is_small) return expect_refusal(mamba_selective_scan_cpu(&p, nullptr, nullptr));

  const bool is_finite = random.once_in(2);
  // A state that grows ends in infinity less infinity: A and the steps keep it from that.
  if (is_finite) p.delta_softplus = 1;
  Tensors tensors(random, is_finite);
  const auto of = [&](int64_t width) {
    return sequence(random, tensors, p.batch, p.length, width, dtype);
  };
  const auto fp32 = [&](int64_t count) {
    return static_cast<const float*>(tensors.input(count, MAMBA_FP32));
  };
  p.u = of(p.d_inner);
  p.delta = of(p.d_inner);
  p.B = of(p.n_groups * p.d_state);
  p.C = of(p.n_groups * p.d_state);
  if (random.once_in(2)) p.z = of(p.d_inner);
  p.A = static_cast<const float*>(tensors.input(p.d_inner * p.d_state, MAMBA_FP32, 0));
  p.D = fp32(p.d_inner);
  p.delta_bias = fp32(p.d_inner);
  if (random.once_in(2)) p.initial_state = fp32(elements[2]);
  p.y = tensors.output(elements[0], dtype);
  p.last_state = static_cast<float*>(tensors.output(elements[2], MAMBA_FP32));
  if (random.once_in(8)) {
    const void** const pointers[] = {&p.u.data, &p.B.data, reinterpret_cast<const void**>(&p.A),
                                     const_cast<const void**>(&p.y)};
    *random.pick(pointers) = nullptr;
    return expect_refusal(mamba_selective_scan_cpu(&p, nullptr, nullptr));
  }
  run(random, p, mamba_selective_scan_cpu, tensors);
}

void try_conv(Random& random) {
  const bool is_hostile = random.once_in(2);
  mamba_causal_conv1d_params p = {};
  p.batch = size(random, is_hostile, 3);
  p.length = size(random, is_hostile, 40);
  p.channels = size(random, is_hostile, 150);
  p.d_conv = size(random, is_hostile, mamba::kMaxTaps);
  const int dtype = dtype_of(random, is_hostile);
  put_dtype(p.dtype, dtype);
  p.silu = static_cast<int>(random.between(0, 1));
  p.reverse = static_cast<int>(random.between(0, 1));
  const int64_t numbers = product(p.batch, p.length, p.channels);
  const int64_t states = product(p.batch, p.channels, p.d_conv);
  const bool is_small =
      mamba::check_sizes(&p) == MAMBA_OK && numbers <= kMostBytes / 4 && states <= kMostBytes / 4;
  if (!is_small) return expect_refusal(mamba_causal_conv1d_cpu(&p, nullptr, nullptr));

  Tensors tensors(random, random.once_in(2));
  const int64_t kept = p.batch * p.channels * (p.d_conv - 1);
  p.x = sequence(random, tensors, p.batch, p.length, p.channels, dtype);
  p.weight = static_cast<const float*>(tensors.input(p.channels * p.d_conv, MAMBA_FP32));
  p.bias = static_cast<const float*>(tensors.input(p.channels, MAMBA_FP32));
  p.y = tensors.output(numbers, dtype);
  if (kept > 0) {
    p.initial_state = tensors.input(kept, dtype);
    p.last_state = tensors.output(kept, dtype);
  }
  if (random.once_in(8)) {
    p.y = nullptr;
    return expect_refusal(mamba_causal_conv1d_cpu(&p, nullptr, nullptr));
  }
  run(random, p, mamba_causal_conv1d_cpu, tensors);
}

constexpr float kNumbers[] = {0.f, 1e-5f, -1.f, NAN, INFINITY, -INFINITY, 1e38f};

bool is_number(float value) { return value >= 0 && value < INFINITY; }

void try_dual(Random& random) {
  const bool is_hostile = random.once_in(2);
  mamba_state_space_dual_params p = {};
  p.n_groups = size(random, is_hostile, 3);
  p.heads = is_hostile ? random.hostile_size() : p.n_groups * random.between(1, 3);
  p.d_skip = size(random, is_hostile, 3);
  p.head_dim = is_hostile ? random.hostile_size() : p.d_skip * random.between(1, 25);
  p.batch = size(random, is_hostile, 3);
  p.length = size(random, is_hostile, 40);
  const bool has_many_states = !is_hostile && random.once_in(20);
  p.d_state = size(random, is_hostile, has_many_states ? 9000 : 40);
  if (has_many_states) p.batch = p.heads = p.n_groups = 1;
  const int dtype = dtype_of(random, is_hostile);
  const int state_dtype =
      is_hostile ? dtype_of(random, true) : (random.once_in(2) ? MAMBA_FP32 : dtype);
  put_dtype(p.dtype, dtype);
  put_dtype(p.initial_state_dtype, state_dtype);
  p.dt_softplus = static_cast<int>(random.between(0, 1));
  p.reverse = static_cast<int>(random.between(0, 1));
  p.dt_max = random.once_in(2) ? 1e38f : 0.1f;
  if (is_hostile && random.once_in(2))
    (random.once_in(2) ? p.dt_min : p.dt_max) = random.pick(kNumbers);

  const int64_t numbers = product(p.batch, p.length, p.heads, p.head_dim);
  const int64_t states = product(p.batch, p.heads, p.head_dim, p.d_state);
  const int64_t per_step = product(p.batch, p.length, p.n_groups, p.d_state);
  const mamba_status sizes = mamba::check_sizes(&p);
  expect(sizes != MAMBA_OK || (is_number(p.dt_min) && is_number(p.dt_max)),
         "a limit that is no number is taken");
  if (sizes != MAMBA_OK || numbers > kMostBytes / 4 || states > kMostBytes / 4 ||
      per_step > kMostBytes / 4) {
    return expect_refusal(mamba_state_space_dual_cpu(&p, nullptr, nullptr));
  }

  const bool is_finite = random.once_in(2);
  if (is_finite) {  // a state that grows ends in infinity less infinity
    p.dt_softplus = 1;
    p.dt_max = 0.1f;
  }
  Tensors tensors(random, is_finite);
  const auto of = [&](int64_t width) {
    return sequence(random, tensors, p.batch, p.length, width, dtype);
  };
  const auto fp32 = [&](int64_t count, int64_t most) {
    return static_cast<const float*>(tensors.input(count, MAMBA_FP32, most));
  };
  p.x = of(p.heads * p.head_dim);
  p.dt = of(p.heads);
  p.B = of(p.n_groups * p.d_state);
  p.C = of(p.n_groups * p.d_state);
  if (random.once_in(2)) p.z = of(p.heads * p.head_dim);
  p.A = fp32(p.heads, 0);
  p.D = fp32(p.heads * p.d_skip, 1);
  if (random.once_in(2)) p.log_decay = fp32(p.batch * p.length * p.heads, 0);
  p.dt_bias = fp32(p.heads, 1);
  if (random.once_in(2)) p.initial_state = tensors.input(states, state_dtype);
  p.y = tensors.output(numbers, dtype);
  p.last_state = p.initial_state && random.once_in(4) ? const_cast<void*>(p.initial_state)
                                                      : tensors.output(states, state_dtype);
  if (random.once_in(8)) {
    const void** const pointers[] = {&p.x.data, &p.dt.data, reinterpret_cast<const void**>(&p.A),
                                     const_cast<const void**>(&p.y)};
    *random.pick(pointers) = nullptr;
    return expect_refusal(mamba_state_space_dual_cpu(&p, nullptr, nullptr));
  }
  run(random, p, mamba_state_space_dual_cpu, tensors);
}

void try_norm(Random& random) {
  const bool is_hostile = random.once_in(2);
  mamba_gated_rms_norm_params p = {};
  p.batch = size(random, is_hostile, 3);
  p.length = size(random, is_hostile, 10);
  p.groups = size(random, is_hostile, 4);
  p.group_width = size(random, is_hostile, 150);
  const int dtype = dtype_of(random, is_hostile);
  put_dtype(p.dtype, dtype);
  p.norm_before_gate = static_cast<int>(random.between(0, 1));
  p.epsilon = is_hostile ? random.pick(kNumbers) : 1e-5f;
  const mamba_status sizes = mamba::check_sizes(&p);
  expect(sizes != MAMBA_OK || is_number(p.epsilon), "an epsilon that is no number is taken");
  const int64_t numbers = product(p.batch, p.length, p.groups, p.group_width);
  if (sizes != MAMBA_OK || numbers > kMostBytes / 4) {
    return expect_refusal(mamba_gated_rms_norm_cpu(&p, nullptr, nullptr));
  }
  Tensors tensors(random, !is_hostile);
  p.x = sequence(random, tensors, p.batch, p.length, p.groups * p.group_width, dtype);
  p.z = sequence(random, tensors, p.batch, p.length, p.groups * p.group_width, dtype);
  p.weight = static_cast<const float*>(tensors.input(p.groups * p.group_width, MAMBA_FP32));
  p.y = tensors.output(numbers, dtype);
  if (random.once_in(8)) {
    p.weight = nullptr;
    return expect_refusal(mamba_gated_rms_norm_cpu(&p, nullptr, nullptr));
  }
  run(random, p, mamba_gated_rms_norm_cpu, tensors);
}

// Tensors of a whole layer are check_kernels' work: here it is what refuses sizes.
void try_layer(Random& random) {
  mamba_layer_params p = {};
  int64_t* const sizes[] = {&p.batch,   &p.length, &p.d_model, &p.d_inner,
                            &p.d_state, &p.d_conv, &p.dt_rank};
  for (int64_t* one : sizes) *one = size(random, random.once_in(3), 16);
  put_dtype(p.dtype, static_cast<int>(random.between(-1, 4)));
  put_dtype(p.hidden_dtype, static_cast<int>(random.between(-1, 4)));
  p.epsilon = random.pick(kNumbers);
  const mamba_status status = mamba::check_sizes(&p);
  if (status != MAMBA_OK) {
    expect_refusal(status);
    expect_refusal(mamba_layer_cpu(&p, nullptr, nullptr));
  }
  expect(status != MAMBA_OK || is_number(p.epsilon), "an epsilon that is no number is taken");
  expect_refusal(mamba::check(&p, nullptr));
}

void try_layer_of_duality(Random& random) {
  mamba2_layer_params p = {};
  int64_t* const sizes[] = {&p.batch,    &p.length,  &p.d_model, &p.n_groups, &p.group_heads,
                            &p.head_dim, &p.d_state, &p.d_conv,  &p.d_skip};
  for (int64_t* one : sizes) *one = size(random, random.once_in(3), 16);
  for (mamba_dtype* one : {&p.dtype, &p.hidden_dtype, &p.recurrent_state_dtype}) {
    put_dtype(*one, static_cast<int>(random.between(-1, 4)));
  }
  float* const numbers[] = {&p.epsilon, &p.gate_epsilon, &p.dt_min, &p.dt_max};
  for (float* one : numbers) *one = random.pick(kNumbers);
  const mamba_status status = mamba::check_sizes(&p);
  if (status != MAMBA_OK) {
    expect_refusal(status);
    expect_refusal(mamba2_layer_cpu(&p, nullptr, nullptr));
  }
  for (float* one : numbers) {
    expect(status != MAMBA_OK || is_number(*one), "an attribute that is no number is taken");
  }
  expect_refusal(mamba::check(&p, nullptr));
}

void try_nulls() {
  expect_refusal(mamba_selective_scan_cpu(nullptr, nullptr, nullptr));
  expect_refusal(mamba_causal_conv1d_cpu(nullptr, nullptr, nullptr));
  expect_refusal(mamba_state_space_dual_cpu(nullptr, nullptr, nullptr));
  expect_refusal(mamba_gated_rms_norm_cpu(nullptr, nullptr, nullptr));
  expect_refusal(mamba_layer_cpu(nullptr, nullptr, nullptr));
  expect_refusal(mamba2_layer_cpu(nullptr, nullptr, nullptr));
  expect_refusal(mamba::check(static_cast<const mamba_layer_params*>(nullptr), nullptr));
  expect_refusal(mamba::check(static_cast<const mamba2_layer_params*>(nullptr), nullptr));
}

}  // namespace

int main(int argc, char** argv) {
  return seeded::run(argc, argv, 2000, [](Random& random, int64_t) {
    const int64_t which = random.between(0, 14);
    if (which < 4) return try_scan(random);
    if (which < 6) return try_conv(random);
    if (which < 10) return try_dual(random);
    if (which < 12) return try_norm(random);
    if (which < 13) return try_layer(random);
    return which < 14 ? try_layer_of_duality(random) : try_nulls();
  });
}
