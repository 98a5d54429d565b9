// The norm in front of a layer, on a CPU: lanes are channels, a task owns some steps.
#pragma once

#include "common/cpu/kernels.h"
#include "common/cpu/sequences.h"
#include "common/cpu/simd.h"

namespace mamba {
namespace MAMBA_ISA {

constexpr int64_t kNormedNumbersATask = 1 << 14;

static inline int64_t normed_rows_a_task(const RowNormCall& p) {
  const int64_t rows = kNormedNumbersATask / p.width;
  return rows > 1 ? rows : 1;
}

static size_t row_norm_tasks(const RowNormCall& p) {
  return static_cast<size_t>((p.rows + normed_rows_a_task(p) - 1) / normed_rows_a_task(p));
}

template <typename T, typename R>
static inline void normalise_row(const RowNormCall& p, int64_t row) {
  const auto* hidden = static_cast<const typename R::Bits*>(p.hidden) + row * p.width;
  auto* out = static_cast<typename T::Bits*>(p.out) + row * p.width;
  const auto count_at = [&](int64_t c) {
    return static_cast<int>(p.width - c < kLanes ? p.width - c : kLanes);
  };
  Vec squares[4] = {};
  for (int64_t c = 0, part = 0; c < p.width; c += kLanes, part = (part + 1) % 4) {
    const Vec x = load<R>(hidden + c, count_at(c));
    squares[part] += x * x;
  }
  const float mean =
      sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / static_cast<float>(p.width);
  const float scale = 1.0f / __builtin_sqrtf(mean + p.epsilon);
  for (int64_t c = 0; c < p.width; c += kLanes) {
    const int count = count_at(c);
    store<T>(out + c, load<R>(hidden + c, count) * scale * load<Fp32>(p.weight + c, count), count);
  }
}

template <typename T, typename R>
static void row_norm_task(const RowNormCall& p, int64_t task) {
  const int64_t begin = task * normed_rows_a_task(p), end = begin + normed_rows_a_task(p);
  for (int64_t row = begin; row < end && row < p.rows; ++row) normalise_row<T, R>(p, row);
}

static void run_row_norm_task(void* context, size_t task) {
  const RowNormCall& call = *static_cast<const RowNormCall*>(context);
  const int64_t index = static_cast<int64_t>(task);
  const bool from_fp32 = call.hidden_dtype == MAMBA_FP32;
  switch (call.dtype) {
    case MAMBA_FP32:
      return row_norm_task<Fp32, Fp32>(call, index);
    case MAMBA_FP16:
      return from_fp32 ? row_norm_task<Fp16, Fp32>(call, index)
                       : row_norm_task<Fp16, Fp16>(call, index);
    case MAMBA_BF16:
      return from_fp32 ? row_norm_task<Bf16, Fp32>(call, index)
                       : row_norm_task<Bf16, Bf16>(call, index);
  }
}

}  // namespace MAMBA_ISA
}  // namespace mamba
