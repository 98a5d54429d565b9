// Numbers of the operators' dtypes as doubles, and tensors of them, with no help of the kernels
// that are judged.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "mamba_params.h"

namespace plain {

inline size_t bytes_of(mamba_dtype dtype) { return dtype == MAMBA_FP32 ? 4 : 2; }

// fp32, or bf16 as its upper half.
inline double from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t to_bits(double value) {
  const float narrow = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  return bits;
}

// To nearest, ties to even; infinity beyond the largest.
inline uint16_t to_fp16(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7e00;
  if (value == 0) return sign;  // frexp has no exponent for it
  int exponent = 0;
  std::frexp(value, &exponent);
  exponent = std::max(exponent, -13);  // subnormals share the smallest normal numbers' spacing
  const double units = std::nearbyint(std::ldexp(std::fabs(value), 11 - exponent));
  if (!(std::ldexp(units, exponent - 11) < 65536)) return sign | 0x7c00;
  return static_cast<uint16_t>(sign + ((exponent + 13) << 10) + static_cast<int>(units));
}
inline double from_fp16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double size = std::ldexp(fraction, -24);
  if (exponent == 31) size = fraction ? NAN : INFINITY;
  if (exponent > 0 && exponent < 31) size = std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -size : size;
}

inline uint16_t to_bf16(double value) {
  if (std::isnan(value)) return 0x7fc0;
  const uint32_t bits = to_bits(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The number at an index of memory of a dtype.
inline double load(const char* memory, size_t index, mamba_dtype dtype) {
  if (dtype == MAMBA_FP32) {
    uint32_t bits;
    std::memcpy(&bits, memory + 4 * index, 4);
    return from_bits(bits);
  }
  uint16_t bits;
  std::memcpy(&bits, memory + 2 * index, 2);
  return dtype == MAMBA_FP16 ? from_fp16(bits) : from_bits(uint32_t{bits} << 16);
}

inline void store(char* memory, size_t index, mamba_dtype dtype, double value) {
  if (dtype == MAMBA_FP32) {
    const uint32_t bits = to_bits(value);
    std::memcpy(memory + 4 * index, &bits, 4);
  } else {
    const uint16_t bits = dtype == MAMBA_FP16 ? to_fp16(value) : to_bf16(value);
    std::memcpy(memory + 2 * index, &bits, 2);
  }
}

inline double rounded(double value, mamba_dtype dtype) {
  char memory[4];
  store(memory, 0, dtype, value);
  return load(memory, 0, dtype);
}

// A dense tensor; one without a shape stands for an absent input.
struct Array {
  std::vector<int64_t> shape;
  std::vector<double> values;

  Array() = default;
  explicit Array(std::vector<int64_t> sizes) : shape(std::move(sizes)) {
    size_t count = 1;
    for (int64_t size : shape) count *= static_cast<size_t>(size);
    values.assign(count, 0.0);
  }

  bool is_absent() const { return shape.empty(); }

  template <typename... Indices>
  double& operator()(Indices... indices) {
    return values[at({static_cast<int64_t>(indices)...})];
  }
  template <typename... Indices>
  double operator()(Indices... indices) const {
    return values[at({static_cast<int64_t>(indices)...})];
  }

  Array rounded_to(mamba_dtype dtype) && {
    for (double& value : values) value = rounded(value, dtype);
    return std::move(*this);
  }

 private:
  size_t at(std::initializer_list<int64_t> indices) const {
    size_t index = 0, axis = 0;
    for (int64_t one : indices) index = index * static_cast<size_t>(shape[axis++]) + one;
    return index;
  }
};

}  // namespace plain
