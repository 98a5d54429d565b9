// Rows of sequences, and the memory that a task works in.
#pragma once

#include <cstdlib>

#include "common/cpu/simd.h"
#include "mamba_kernels.h"

namespace mamba {
namespace MAMBA_ISA {

// What follows the length, of one step of one sequence.
template <typename T>
static inline const typename T::Bits* row(const mamba_sequence& sequence, int64_t batch,
                                          int64_t step) {
  return static_cast<const typename T::Bits*>(sequence.data) + batch * sequence.batch_stride +
         step * sequence.step_stride;
}

// Where a step of the walk lies in the tensors.
template <typename Params>
static inline int64_t walked(const Params& p, int64_t step) {
  return p.reverse ? p.length - 1 - step : step;
}

template <typename T>
static inline void widen(const typename T::Bits* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store<Fp32>(to + i, load<T>(from + i, kLanes), kLanes);
  const int left = static_cast<int>(count - i);
  if (left > 0) store<Fp32>(to + i, load<T>(from + i, left), left);
}

template <typename T>
static inline void narrow(const float* from, typename T::Bits* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int here = static_cast<int>(count - i < kLanes ? count - i : kLanes);
    store<T>(to + i, load<Fp32>(from + i, here), here);
  }
}

// Memory of a task: a little of it lies on the stack.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    const uint64_t needed = static_cast<uint64_t>(bytes);
    if (needed > sizeof on_stack_) {
      data_ = static_cast<float*>(aligned_alloc(64, (needed + 63) / 64 * 64));
    }
  }
  ~Scratch() {
    if (data_ != on_stack_) free(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Null where there is no such memory.
  float* data() const { return data_; }

 private:
  alignas(64) float on_stack_[4096];
  float* data_ = on_stack_;
};

}  // namespace MAMBA_ISA
}  // namespace mamba
