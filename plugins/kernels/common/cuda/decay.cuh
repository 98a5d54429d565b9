// The decay of a state at a step, next to 1, where a state that forgets slowly adds up its errors.
//
// exp2_fast errs there by 0.5 of 2^-24 (H100, root of the mean square) and is too small by 0.1 of
// it on average. Steps that are alike err alike, and of 16 bits there are few different ones: after
// 3000 of them a state is off by 1e-5, and by 6e-6 were each decay rounded to the nearest.
#pragma once

#include "common/cuda/numeric.cuh"

namespace mamba {

// What is added to the exponent of a decay so that its error is 0 on average. From -1.37 to 1.39 of
// 2^-24 log2(e), 2^shift is 1 (H100), so that a step of zero leaves a state as it is.
constexpr float kDecayShift = 0.115f * 0x1p-24f * kLog2e;

// The same for the steps of a walk: eight shifts in turn, from -0.76 to 0.99 of 2^-24, so that
// steps that are alike round up and down by turns: 5e-6 instead of 1e-5. A constant that a
// multiplication adds costs nothing.
constexpr int kDecayShifts = 8;
__device__ __forceinline__ constexpr float decay_shift(int step) {
  const int i = step % kDecayShifts;
  const float away = (i / 2 * 2 + 1) * (1.f / kDecayShifts);
  return kDecayShift + (i % 2 ? -away : away) * 0x1p-24f * kLog2e;
}

// 2^(dt A), the decay of a step of a walk, or with kDecayShift of many steps at once.
__device__ __forceinline__ float decay_of(float dt, float A, float shift) {
  return exp2_fast(fmaf(dt, A, shift));
}

// A step alone, as of a token: 2^exponent h + input, near 1 as h + (2^exponent - 1) h + input,
// which rounds no decay: 1.4e-6. The polynomial is off by 0.03 of 2^-24.
struct Decay {
  float factor;
  bool is_near;

  __device__ __forceinline__ explicit Decay(float exponent) : is_near(fabsf(exponent) < 0.03125f) {
    const float change = fmaf(fmaf(0.05550595f, exponent, 0.240234286f), exponent, 0.693147182f);
    factor = is_near ? change * exponent : exp2_fast(exponent);
  }
  __device__ __forceinline__ float of(float h, float input) const {
    const float sum = fmaf(factor, h, input);
    return is_near ? h + sum : sum;
  }
};

}  // namespace mamba
