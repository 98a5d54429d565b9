// Gated RMSNorm on a CPU: lanes are channels of a group; a task owns some groups of some steps.
#pragma once

#include "common/cpu/sequences.h"
#include "common/cpu/simd.h"

namespace mamba {
namespace MAMBA_ISA {

constexpr int64_t kNumbersATask = 1 << 14;

// Groups of all steps, in the order of memory.
static inline int64_t normed_rows(const mamba_gated_rms_norm_params& p) {
  return p.batch * p.length * p.groups;
}

static inline int64_t rows_a_task(const mamba_gated_rms_norm_params& p) {
  const int64_t rows = kNumbersATask / p.group_width;
  return rows > 1 ? rows : 1;
}

static size_t norm_tasks(const mamba_gated_rms_norm_params& p) {
  return static_cast<size_t>((normed_rows(p) + rows_a_task(p) - 1) / rows_a_task(p));
}

template <typename T>
static inline void norm_row(const mamba_gated_rms_norm_params& p, int64_t index) {
  const int64_t width = p.group_width, group = index % p.groups;
  const int64_t step = index / p.groups % p.length, batch = index / p.groups / p.length;
  const typename T::Bits* x = row<T>(p.x, batch, step) + group * width;
  const typename T::Bits* z = row<T>(p.z, batch, step) + group * width;
  const float* weight = p.weight + group * width;
  typename T::Bits* y = static_cast<typename T::Bits*>(p.y) + index * width;
  // fp32 outputs hold what is normed until its root is known; 16-bit ones would round it.
  constexpr bool kHolds = sizeof(typename T::Bits) == sizeof(float);
  const auto count_at = [=](int64_t c) {
    return static_cast<int>(width - c < kLanes ? width - c : kLanes);
  };
  const auto normed = [=](int64_t c, int count) {
    const Vec value = load<T>(x + c, count);
    return p.norm_before_gate ? value : value * silu(load<T>(z + c, count));
  };
  Vec squares[4] = {};
  for (int64_t c = 0, part = 0; c < width; c += kLanes, part = (part + 1) % 4) {
    const int count = count_at(c);
    const Vec value = normed(c, count);
    squares[part] += value * value;
    if constexpr (kHolds) store<T>(y + c, value, count);
  }
  const float mean =
      sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / static_cast<float>(width);
  const float scale = 1.0f / __builtin_sqrtf(mean + p.epsilon);
  for (int64_t c = 0; c < width; c += kLanes) {
    const int count = count_at(c);
    Vec value = kHolds ? load<T>(y + c, count) : normed(c, count);
    value *= scale * load<Fp32>(weight + c, count);
    if (p.norm_before_gate) value *= silu(load<T>(z + c, count));
    store<T>(y + c, value, count);
  }
}

template <typename T>
static void norm_task(const mamba_gated_rms_norm_params& p, size_t task) {
  const int64_t first = static_cast<int64_t>(task) * rows_a_task(p);
  const int64_t rows = normed_rows(p);
  for (int64_t index = first; index < first + rows_a_task(p) && index < rows; ++index) {
    norm_row<T>(p, index);
  }
}

static void run_norm_task(void* context, size_t task) {
  const mamba_gated_rms_norm_params& p = *static_cast<const mamba_gated_rms_norm_params*>(context);
  switch (p.dtype) {
    case MAMBA_FP32:
      return norm_task<Fp32>(p, task);
    case MAMBA_FP16:
      return norm_task<Fp16>(p, task);
    case MAMBA_BF16:
      return norm_task<Bf16>(p, task);
  }
}

}  // namespace MAMBA_ISA
}  // namespace mamba
