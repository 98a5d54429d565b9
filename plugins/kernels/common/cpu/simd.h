// Vectors of MAMBA_LANES floats, and the functions that the operators need on them.
//
// Written with the compiler's vector types (GCC and Clang), so that one source serves AVX-512,
// AVX2, SSE2 and NEON. The file that includes this names the instruction set in MAMBA_ISA:
// everything lives in a namespace of that name, because a function compiled for AVX-512 must never
// be picked by the linker for a processor without it. For the same reason nothing here uses the
// standard library's templates.
#pragma once

#ifndef MAMBA_ISA
#error "define MAMBA_ISA and MAMBA_LANES before including this file"
#endif

#include <cstdint>
#include <cstring>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace mamba {
namespace MAMBA_ISA {

constexpr int kLanes = MAMBA_LANES;

typedef float Vec __attribute__((vector_size(4 * MAMBA_LANES)));
typedef int32_t VecI __attribute__((vector_size(4 * MAMBA_LANES)));
typedef uint32_t VecU __attribute__((vector_size(4 * MAMBA_LANES)));
typedef uint16_t VecH __attribute__((vector_size(2 * MAMBA_LANES)));

// A vector of one number: broadcasts.
static inline Vec broadcast(float x) { return x - Vec{}; }

static inline Vec select(VecI mask, Vec yes, Vec no) { return mask ? yes : no; }

// Storage types of the sequences. 16-bit floats are carried as their bits.
struct Fp32 {
  typedef float Bits;
  typedef Vec Packed;
  static inline Vec widen(Vec x) { return x; }
  static inline Vec narrow(Vec x) { return x; }
};

struct Bf16 {
  typedef uint16_t Bits;
  typedef VecH Packed;
  static inline Vec widen(VecH x) { return (Vec)(__builtin_convertvector(x, VecU) << 16); }
  static inline VecH narrow(Vec x) {
    const VecU bits = (VecU)x;
    const VecU rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    const VecU quiet = (bits >> 16) | 0x40;  // rounding could turn a NaN into an infinity
    const VecI is_nan = (VecI)((bits & 0x7fffffff) > 0x7f800000);
    return __builtin_convertvector((VecU)select(is_nan, (Vec)quiet, (Vec)rounded), VecH);
  }
};

#if defined(__F16C__) || defined(__AVX512F__)
constexpr int kToNearest = _MM_FROUND_TO_NEAREST_INT;  // ties to even, whatever the thread's mode
#endif

struct Fp16 {
  typedef uint16_t Bits;
  typedef VecH Packed;
#if defined(__AVX512F__) && MAMBA_LANES == 16
  static inline Vec widen(VecH x) { return (Vec)_mm512_maskz_cvtph_ps(0xffff, (__m256i)x); }
  static inline VecH narrow(Vec x) {
    return (VecH)_mm512_maskz_cvtps_ph(0xffff, (__m512)x, kToNearest);
  }
#elif defined(__F16C__) && MAMBA_LANES == 8
  static inline Vec widen(VecH x) { return (Vec)_mm256_cvtph_ps((__m128i)x); }
  static inline VecH narrow(Vec x) { return (VecH)_mm256_cvtps_ph((__m256)x, kToNearest); }
#else
  static inline Vec widen(VecH x) {
    const VecU half = __builtin_convertvector(x, VecU);
    const VecU sign = (half & 0x8000) << 16;
    const VecU magnitude = (half & 0x7fff) << 13;
    // Moves the exponent's bias from 15 to 127 by a multiplication, which is right for subnormals
    // too.
    const VecU finite = (VecU)((Vec)magnitude * 0x1p112f);
    const VecI special = (VecI)(magnitude >= 0x0f800000);  // infinity, NaN
    const VecU wide = (VecU)select(special, (Vec)(magnitude | 0x7f800000), (Vec)finite);
    return (Vec)(wide | sign);
  }
  static inline VecH narrow(Vec x) {
    const VecU bits = (VecU)x;
    const VecU sign = bits & 0x80000000u;
    const VecU magnitude = bits ^ sign;
    // Below half's normal range: adding 0.5 lets the adder align and round the mantissa.
    const VecU subnormal = (VecU)((Vec)magnitude + 0.5f) - 0x3f000000;
    const VecU odd = (magnitude >> 13) & 1;
    const VecU normal = (magnitude - (112u << 23) + 0xfff + odd) >> 13;
    const VecI is_nan = (VecI)(magnitude > 0x7f800000);
    const VecU over = (VecU)select(is_nan, (Vec)(VecU{} + 0x7e00), (Vec)(VecU{} + 0x7c00));
    VecU half = (VecU)select((VecI)(magnitude < 0x38800000), (Vec)subnormal, (Vec)normal);
    half = (VecU)select((VecI)(magnitude >= 0x47800000), (Vec)over, (Vec)half);
    return __builtin_convertvector(half | (sign >> 16), VecH);
  }
#endif
};

// The first `count` (at most kLanes) elements at `from`, widened; lanes beyond are zero.
template <typename T>
static inline Vec load(const typename T::Bits* from, int count) {
  typename T::Packed packed = {};
  if (__builtin_expect(count >= kLanes, 1)) {
    memcpy(&packed, from, sizeof(packed));
  } else {
    memcpy(&packed, from, count * sizeof(*from));
  }
  return T::widen(packed);
}

template <typename T>
static inline void store(typename T::Bits* to, Vec x, int count) {
  const typename T::Packed packed = T::narrow(x);
  if (__builtin_expect(count >= kLanes, 1)) {
    memcpy(to, &packed, sizeof(packed));
  } else {
    memcpy(to, &packed, count * sizeof(*to));
  }
}

// exp(x) is (1 + m) scale with |m| below 0.42 and scale a power of two: range reduction to
// |r| <= ln(2)/2 and a polynomial of degree 6 (the coefficients of Cephes' expf), within 2 units in
// the last place. Saturates instead of overflowing or becoming subnormal; NaN stays. Left alone,
// compilers call it.
struct Exponential {
  Vec m, scale;
};
__attribute__((always_inline)) static inline Exponential exponential(Vec x) {
  x = select((VecI)(x < -87.0f), broadcast(-87.0f), x);
  x = select((VecI)(x > 88.0f), broadcast(88.0f), x);
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const Vec shifted = x * 1.44269504088896341f + 12582912.0f;
  const Vec n = shifted - 12582912.0f;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const VecU scale = ((VecU)shifted << 23) + 0x3f800000;  // of a NaN any number: m is one too
  return {(p * r) * r + r, (Vec)scale};
}

__attribute__((always_inline)) static inline Vec exp(Vec x) {
  const Exponential e = exponential(x);
  return (e.m + 1.0f) * e.scale;
}

// exp(x) - 1 without exp(x): next to 0 it keeps its digits.
__attribute__((always_inline)) static inline Vec exp_minus_1(const Exponential& e) {
  return e.m * e.scale + (e.scale - 1.0f);
}

// log(1 + exp(x)) = max(x, 0) + log1p(e) with e = exp(-|x|) in (0, 1]; log1p(e) = 2 atanh(e / (2 +
// e)) as a series, so that a vanishing step keeps its relative precision.
static inline Vec softplus(Vec x) {
  const Vec e = exp((Vec)((VecI)x | (VecI)(VecU{} + 0x80000000u)));
  const Vec s = e / (e + 2.0f);
  const Vec s2 = s * s;
  Vec p = s2 * (1.0f / 17) + 1.0f / 15;
  p = p * s2 + 1.0f / 13;
  p = p * s2 + 1.0f / 11;
  p = p * s2 + 1.0f / 9;
  p = p * s2 + 1.0f / 7;
  p = p * s2 + 1.0f / 5;
  p = p * s2 + 1.0f / 3;
  p = p * s2 + 1.0f;
  return select((VecI)(x > 0.0f), x, Vec{}) + 2.0f * s * p;
}

static inline Vec silu(Vec x) { return x / (exp(-x) + 1.0f); }

// Sum of N lanes, always in the same order: the upper half onto the lower one, again and again.
template <int N>
static inline float sum_of(const float* lanes) {
  typedef float Half __attribute__((vector_size(2 * N)));
  Half low, high;
  memcpy(&low, lanes, sizeof(low));
  memcpy(&high, lanes + N / 2, sizeof(high));
  low += high;
  float left[N / 2];
  memcpy(left, &low, sizeof(low));
  return sum_of<N / 2>(left);
}
template <>
inline float sum_of<2>(const float* lanes) {
  return lanes[0] + lanes[1];
}

static inline float sum(Vec x) {
  float lanes[kLanes];
  memcpy(lanes, &x, sizeof(x));
  return sum_of<kLanes>(lanes);
}

}  // namespace MAMBA_ISA
}  // namespace mamba
