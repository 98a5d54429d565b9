// The operators as loops in double precision, each line one of the definitions' (reference.py of
// each operator): the truth that check_kernels holds the compiled kernels against.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "plain_numbers.h"

namespace plain {

// A call: its inputs, its attributes, and T, which layers round to between their operators.
struct Call {
  std::map<std::string, Array> inputs;
  std::map<std::string, double> attributes;
  mamba_dtype dtype = MAMBA_FP32;

  const Array& operator[](const char* name) const {
    static const Array kAbsent;
    const auto found = inputs.find(name);
    return found == inputs.end() ? kAbsent : found->second;
  }
  double attribute(const char* name) const { return attributes.at(name); }
  bool has_flag(const char* name) const { return attributes.count(name) > 0; }  // that a name sets
};

using Results = std::vector<Array>;  // in the order of the operator's outputs

inline double silu(double x) { return x / (1 + std::exp(-x)); }
inline double softplus(double x) { return x > 40 ? x : std::log1p(std::exp(x)); }
inline int64_t walked(int64_t step, int64_t length, bool reverse) {
  return reverse ? length - 1 - step : step;
}

inline Results selective_scan(const Call& call) {
  const Array &u = call["u"], &A = call["A"], &B = call["B"], &C = call["C"], &z = call["z"];
  const int64_t length = u.shape[1], d_inner = u.shape[2], d_state = A.shape[1];
  const int64_t channels_a_group = d_inner / B.shape[2];
  Array y(u.shape), h = call["initial_state"];
  for (int64_t b = 0; b < u.shape[0]; ++b) {
    for (int64_t step = 0; step < length; ++step) {
      const int64_t t = walked(step, length, call.attribute("reverse") != 0);
      for (int64_t d = 0; d < d_inner; ++d) {
        const int64_t group = d / channels_a_group;
        double dt = call["delta"](b, t, d) + call["delta_bias"](d), sum = 0;
        if (call.attribute("delta_softplus") != 0) dt = softplus(dt);
        for (int64_t n = 0; n < d_state; ++n) {
          double& state = h(b, d, n);
          const double hold = call.has_flag("exact_zoh") ? std::expm1(dt * A(d, n)) / A(d, n) : dt;
          state = std::exp(dt * A(d, n)) * state + hold * B(b, t, group, n) * u(b, t, d);
          sum += C(b, t, group, n) * state;
        }
        y(b, t, d) = (sum + call["D"](d) * u(b, t, d)) * (z.is_absent() ? 1 : silu(z(b, t, d)));
      }
    }
  }
  return {y, h};
}

inline Results causal_conv1d(const Call& call) {
  const Array &x = call["x"], &weight = call["weight"], &state = call["initial_state"];
  const int64_t length = x.shape[1], channels = x.shape[2], before = weight.shape[1] - 1;
  const bool reverse = call.attribute("reverse") != 0;
  Array y(x.shape), last(state.shape);
  for (int64_t b = 0; b < x.shape[0]; ++b) {
    for (int64_t c = 0; c < channels; ++c) {
      // The walk, with the steps before it.
      const auto at = [&](int64_t step) {
        return step < before ? state(b, c, step) : x(b, walked(step - before, length, reverse), c);
      };
      for (int64_t step = 0; step < length; ++step) {
        double sum = call["bias"](c);
        for (int64_t k = 0; k <= before; ++k) sum += weight(c, k) * at(step + k);
        y(b, walked(step, length, reverse), c) = call.attribute("silu") != 0 ? silu(sum) : sum;
      }
      for (int64_t k = 0; k < before; ++k) last(b, c, k) = at(length + k);
    }
  }
  return {y, last};
}

inline Results state_space_dual(const Call& call) {
  const Array &x = call["x"], &B = call["B"], &C = call["C"], &D = call["D"], &z = call["z"];
  const int64_t length = x.shape[1], heads = x.shape[2], head_dim = x.shape[3];
  const int64_t d_state = B.shape[3], heads_a_group = heads / B.shape[2];
  const int64_t channels_a_skip = head_dim / D.shape[1];
  Array y(x.shape), h = call["initial_state"];
  for (int64_t b = 0; b < x.shape[0]; ++b) {
    for (int64_t step = 0; step < length; ++step) {
      const int64_t t = walked(step, length, call.attribute("reverse") != 0);
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t group = head / heads_a_group;
        double dt = call["dt"](b, t, head) + call["dt_bias"](head);
        if (call.attribute("dt_softplus") != 0) dt = softplus(dt);
        dt = std::min(std::max(dt, call.attribute("dt_min")), call.attribute("dt_max"));
        double exponent = dt * call["A"](head);
        if (!call["log_decay"].is_absent()) exponent += call["log_decay"](b, t, head);
        const double decay = std::exp(exponent);
        const double *inputs = &B.values[((b * length + t) * B.shape[2] + group) * d_state],
                     *readers = &C.values[((b * length + t) * B.shape[2] + group) * d_state];
        for (int64_t p = 0; p < head_dim; ++p) {
          const double input = x(b, t, head, p);
          double sum = 0, *state = &h(b, head, p, 0);
          for (int64_t n = 0; n < d_state; ++n) {
            state[n] = decay * state[n] + dt * input * inputs[n];
            sum += readers[n] * state[n];
          }
          sum += D(head, p / channels_a_skip) * input;
          y(b, t, head, p) = z.is_absent() ? sum : sum * silu(z(b, t, head, p));
        }
      }
    }
  }
  return {y, h};
}

inline Results gated_rms_norm(const Call& call) {
  const Array &x = call["x"], &z = call["z"], &weight = call["weight"];
  const int64_t width = x.shape[3];
  const bool norm_first = call.attribute("norm_before_gate") != 0;
  Array y(x.shape);
  for (size_t first = 0; first < x.values.size(); first += width) {
    const size_t group = first / width % x.shape[2] * width;
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) {
      y.values[first + i] = x.values[first + i] * (norm_first ? 1 : silu(z.values[first + i]));
      squares += y.values[first + i] * y.values[first + i];
    }
    const double scale = 1 / std::sqrt(squares / width + call.attribute("epsilon"));
    for (int64_t i = 0; i < width; ++i) {
      const double gate = norm_first ? silu(z.values[first + i]) : 1;
      y.values[first + i] *= scale * weight.values[group + i] * gate;
    }
  }
  return {y};
}

inline Results linear(const Call& call) {
  const Array &x = call["x"], &weight = call["weight"];
  const int64_t depth = x.shape[2], columns = weight.shape[0];
  Array y({x.shape[0], x.shape[1], columns});
  for (int64_t row = 0; row < x.shape[0] * x.shape[1]; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      double sum = 0;
      for (int64_t i = 0; i < depth; ++i) {
        sum += x.values[row * depth + i] * weight.values[column * depth + i];
      }
      y.values[row * columns + column] = sum;
    }
  }
  return {y};
}

// --- Whole layers

// norm(hidden), rounded to T.
inline Array rms_norm(const Call& call) {
  Array x = call["hidden"];
  const int64_t width = x.shape[2];
  for (size_t first = 0; first < x.values.size(); first += width) {
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) squares += x.values[first + i] * x.values[first + i];
    const double scale = 1 / std::sqrt(squares / width + call.attribute("epsilon"));
    for (int64_t i = 0; i < width; ++i) x.values[first + i] *= scale * call["norm_weight"](i);
  }
  return std::move(x).rounded_to(call.dtype);
}

// (batch, length, depth) times (depth, columns), rounded to T.
inline Array project(const Call& call, const Array& x, const char* weight_name) {
  const Array& weight = call[weight_name];
  const int64_t depth = weight.shape[0], columns = weight.shape[1];
  Array y({x.shape[0], x.shape[1], columns});
  for (int64_t row = 0; row < x.shape[0] * x.shape[1]; ++row) {
    for (int64_t k = 0; k < depth; ++k) {
      const double factor = x.values[row * depth + k];
      for (int64_t j = 0; j < columns; ++j) {
        y.values[row * columns + j] += factor * weight.values[k * columns + j];
      }
    }
  }
  return std::move(y).rounded_to(call.dtype);
}

// Columns of (batch, length, columns) as (batch, length, sizes...).
inline Array columns_of(const Array& x, int64_t first, std::vector<int64_t> sizes) {
  sizes.insert(sizes.begin(), {x.shape[0], x.shape[1]});
  Array y(sizes);
  const int64_t rows = x.shape[0] * x.shape[1], width = y.values.size() / rows;
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(&x.values[row * x.shape[2] + first], width, &y.values[row * width]);
  }
  return y;
}

inline Results convolve(const Call& call, Array x) {
  return causal_conv1d({{{"x", std::move(x)},
                         {"weight", call["conv_weight"]},
                         {"bias", call["conv_bias"]},
                         {"initial_state", call["conv_state"]}},
                        {{"silu", 1}, {"reverse", 0}},
                        call.dtype});
}

inline Array add_to_hidden(const Call& call, const Array& y) {
  Array sum = project(call, y, "out_proj_weight");
  for (size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += call["hidden"].values[i];
  return sum;
}

inline Results mamba_layer(const Call& call) {
  const int64_t d_inner = call["A"].shape[0], d_state = call["A"].shape[1];
  const int64_t dt_rank = call["dt_proj_weight"].shape[0];
  const Array both = project(call, rms_norm(call), "in_proj_weight");
  Results convolved = convolve(call, columns_of(both, 0, {d_inner}));
  const Array u = std::move(convolved[0]).rounded_to(call.dtype);
  const Array mixed = project(call, u, "x_proj_weight");
  const Results scanned =
      selective_scan({{{"u", u},
                       {"delta", project(call, columns_of(mixed, 0, {dt_rank}), "dt_proj_weight")},
                       {"A", call["A"]},
                       {"B", columns_of(mixed, dt_rank, {1, d_state})},
                       {"C", columns_of(mixed, dt_rank + d_state, {1, d_state})},
                       {"D", call["D"]},
                       {"z", columns_of(both, d_inner, {d_inner})},
                       {"delta_bias", call["dt_bias"]},
                       {"initial_state", call["recurrent_state"]}},
                      {{"delta_softplus", 1}, {"reverse", 0}},
                      call.dtype});
  Array y = scanned[0];
  return {add_to_hidden(call, std::move(y).rounded_to(call.dtype)), convolved[1], scanned[1]};
}

inline Results mamba2_layer(const Call& call) {
  const Array& state = call["recurrent_state"];
  const int64_t heads = state.shape[1], head_dim = state.shape[2], d_state = state.shape[3];
  const int64_t d_inner = heads * head_dim, groups = call["gate_norm_weight"].shape[0];
  const int64_t channels = call["conv_weight"].shape[0];
  const Array all = project(call, rms_norm(call), "in_proj_weight");
  Results convolved = convolve(call, columns_of(all, d_inner, {channels}));
  const Array mixed = std::move(convolved[0]).rounded_to(call.dtype);
  const Results dual =
      state_space_dual({{{"x", columns_of(mixed, 0, {heads, head_dim})},
                         {"dt", columns_of(all, d_inner + channels, {heads})},
                         {"A", call["A"]},
                         {"B", columns_of(mixed, d_inner, {groups, d_state})},
                         {"C", columns_of(mixed, d_inner + groups * d_state, {groups, d_state})},
                         {"D", call["D"]},
                         {"dt_bias", call["dt_bias"]},
                         {"initial_state", state}},
                        {{"dt_softplus", 1},
                         {"dt_min", call.attribute("dt_min")},
                         {"dt_max", call.attribute("dt_max")},
                         {"reverse", 0}},
                        call.dtype});
  Array y = dual[0];
  y = std::move(y).rounded_to(call.dtype);
  y.shape = {y.shape[0], y.shape[1], groups, d_inner / groups};
  Array normed =
      gated_rms_norm({{{"x", y},
                       {"z", columns_of(all, 0, {groups, d_inner / groups})},
                       {"weight", call["gate_norm_weight"]}},
                      {{"epsilon", call.attribute("gate_epsilon")}, {"norm_before_gate", 0}},
                      call.dtype})[0];
  return {add_to_hidden(call, std::move(normed).rounded_to(call.dtype)), convolved[1], dual[1]};
}

// Of a row of the operators' table, whose forms with and without optional inputs are one here.
inline Results truth_of(const std::string& op, const Call& call) {
  static constexpr struct {
    const char* prefix;
    Results (*truth)(const Call&);
  } kTruths[] = {{"SelectiveScan", selective_scan},
                 {"CausalConv1d", causal_conv1d},
                 {"StateSpaceDual", state_space_dual},
                 {"GatedRmsNorm", gated_rms_norm},
                 {"MambaLayer", mamba_layer},
                 {"Mamba2Layer", mamba2_layer},
                 {"Linear", linear}};
  for (const auto& one : kTruths) {
    if (op.rfind(one.prefix, 0) == 0) return one.truth(call);
  }
  throw std::invalid_argument("plain_loops.h has no loop for " + op);
}

}  // namespace plain
