// Products of sizes: whoever wrote a model, an engine or a call may have chosen sizes whose product
// no 64-bit number holds.
#ifndef MAMBA_SIZES_H
#define MAMBA_SIZES_H

#include <stdint.h>

namespace mamba {

constexpr int64_t kTooMany = INT64_MAX;

// The product of sizes of at least 0; kTooMany where an int64_t does not hold it. Internal to each
// file: the CPU's kernels are compiled for several instruction sets (simd.h).
static inline int64_t product(int64_t a, int64_t b) {
  int64_t found = 0;
  return __builtin_mul_overflow(a, b, &found) ? kTooMany : found;
}
template <typename... More>
static inline int64_t product(int64_t a, int64_t b, More... more) {
  return product(product(a, b), more...);
}

}  // namespace mamba

#endif  // MAMBA_SIZES_H
