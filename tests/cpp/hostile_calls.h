// What the hostile calls of the kernels share: tensors of exactly their size, sizes that no call
// can have, and memory that is not there (the linker's --wrap=aligned_alloc). For one program's one
// file.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/cpu/thread_pool.h"
#include "mamba_kernels.h"
#include "seeded.h"

namespace {

using seeded::expect;
using seeded::Random;

bool has_memory = true;    // what aligned_alloc answers
bool was_refused = false;  // it answered that there is none

constexpr int64_t kMostBytes = 1 << 22;  // of a tensor of a call that runs

// Tensors of a call, each an allocation of exactly its size, so that a sanitizer sees every step
// beyond.
class Tensors {
 public:
  Tensors(Random& random, bool is_finite) : random_(random), is_finite_(is_finite) {}

  // Numbers in [-1, most], or any bits.
  void* input(int64_t count, int dtype, int64_t most = 1) {
    void* data = memory(count, dtype);
    if (!is_finite_) {
      random_.fill(data, bytes_of(count, dtype));
      return data;
    }
    for (int64_t i = 0; i < count; ++i) {
      const float number = static_cast<float>(random_.between(-1000, 1000 * most)) / 1000.f;
      write(data, i, dtype, number);
    }
    return data;
  }

  // Not a number everywhere.
  void* output(int64_t count, int dtype) {
    void* data = memory(count, dtype);
    for (int64_t i = 0; i < count; ++i) write(data, i, dtype, NAN);
    outputs_.push_back({data, count, dtype});
    return data;
  }

  // Of a call that ran on finite numbers.
  void expect_written() const {
    if (!is_finite_) return;
    for (const Output& one : outputs_) {
      for (int64_t i = 0; i < one.count; ++i) {
        expect(!is_nan(one, i), "an output holds a NaN at " + std::to_string(i));
      }
    }
  }

 private:
  struct Output {
    const void* data;
    int64_t count;
    int dtype;
  };

  static size_t bytes_of(int64_t count, int dtype) {
    return static_cast<size_t>(count) * (dtype == MAMBA_FP32 ? 4 : 2);
  }

  void* memory(int64_t count, int dtype) {
    owned_.push_back(std::make_unique<char[]>(bytes_of(count, dtype)));
    return owned_.back().get();
  }

  // 16-bit numbers are cut from fp32, but for fp16, which gets a few of its own.
  static void write(void* to, int64_t index, int dtype, float number) {
    if (dtype == MAMBA_FP32) {
      static_cast<float*>(to)[index] = number;
      return;
    }
    uint32_t bits = 0;
    std::memcpy(&bits, &number, sizeof bits);
    uint16_t half = static_cast<uint16_t>(bits >> 16);
    if (dtype == MAMBA_FP16) {  // 0.5 or -0.5, or NaN
      half = std::isnan(number) ? 0x7e00 : number < 0 ? 0xb800 : 0x3800;
    }
    static_cast<uint16_t*>(to)[index] = half;
  }

  static bool is_nan(const Output& one, int64_t index) {
    if (one.dtype == MAMBA_FP32) return std::isnan(static_cast<const float*>(one.data)[index]);
    const int bits = static_cast<const uint16_t*>(one.data)[index] & 0x7fff;
    return bits > (one.dtype == MAMBA_FP16 ? 0x7c00 : 0x7f80);
  }

  Random& random_;
  const bool is_finite_;
  std::vector<std::unique_ptr<char[]>> owned_;
  std::vector<Output> outputs_;
};

// A size that a call can have, or one that it cannot.
int64_t size(Random& random, bool is_hostile, int64_t most) {
  return is_hostile && random.once_in(2) ? random.hostile_size() : random.between(1, most);
}

void put_dtype(mamba_dtype& to, int number) { std::memcpy(&to, &number, sizeof number); }

// A sequence (batch, length, width) with gaps between its steps and sequences.
mamba_sequence sequence(Random& random, Tensors& tensors, int64_t batch, int64_t length,
                        int64_t width, int dtype) {
  const int64_t step = width + random.between(0, 3);
  const int64_t sequence = step * (length - 1) + width + random.between(0, 3);
  return {tensors.input(sequence * (batch - 1) + step * (length - 1) + width, dtype), sequence,
          step};
}

void expect_refusal(mamba_status status) {
  const std::string text = mamba_last_error();
  expect(status == MAMBA_INVALID, "status " + std::to_string(status) + ", expected a refusal");
  expect(!text.empty() && text.find('\n') == std::string::npos, "a text that is no line: " + text);
}

// Runs the kernel where the tensors were small enough to be made, with or without memory for it.
template <typename Params, typename Kernel>
void run(Random& random, const Params& params, Kernel kernel, const Tensors& tensors) {
  int64_t threads = random.between(0, 3);
  has_memory = !random.once_in(3);
  was_refused = false;
  const mamba_status status =
      kernel(&params, random.once_in(2) ? mamba_thread_pool_parallel_for : nullptr, &threads);
  has_memory = true;
  if (was_refused) {
    const std::string text = mamba_last_error();
    expect(status == MAMBA_OUT_OF_MEMORY, "no memory, and status " + std::to_string(status));
    expect(text.find("failed to allocate ") != std::string::npos, text);
    return;
  }
  expect(status == MAMBA_OK, std::string("refused: ") + mamba_last_error());
  tensors.expect_written();
}

}  // namespace

extern "C" {
void* __real_aligned_alloc(size_t alignment, size_t bytes);
void* __wrap_aligned_alloc(size_t alignment, size_t bytes) {
  if (has_memory && bytes <= size_t{1} << 30) return __real_aligned_alloc(alignment, bytes);
  __atomic_store_n(&was_refused, true, __ATOMIC_RELAXED);
  return nullptr;
}
}
