// What the products on a CPU share: the sizes of a tile of c, and how it is written.
#pragma once

#include "common/cpu/kernels.h"
#include "common/cpu/sequences.h"
#include "common/cpu/simd.h"
#include "common/sizes.h"

namespace mamba {
namespace MAMBA_ISA {

// A tile of c in registers: rows by vectors. 16 registers, or 32.
constexpr int kProductRows = kLanes == 16 ? 14 : 6;
constexpr int kProductVectors = 2;
constexpr int64_t kProductColumns = kProductVectors * kLanes;
constexpr int64_t kPanelDepth = 64;  // of a

static inline int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Writes a vector of c.
template <typename R>
static inline void put(const ProductCall& p, int64_t row, int64_t column, Vec sum) {
  const int64_t left = p.columns - column;
  if (left <= 0) return;
  const int count = static_cast<int>(left < kLanes ? left : kLanes);
  const int64_t at = row * p.columns + column;
  if (p.residual) {
    sum += load<R>(static_cast<const typename R::Bits*>(p.residual) + at, count);
  }
  store<R>(static_cast<typename R::Bits*>(p.c) + at, sum, count);
}

}  // namespace MAMBA_ISA
}  // namespace mamba
