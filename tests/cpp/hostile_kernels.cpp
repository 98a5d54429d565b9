// The kernels' C interface under hostile sizes, attributes, strides and pointers: every call runs
// within its tensors, or is refused with one line.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "common/checks.h"
#include "common/cpu/thread_pool.h"
#include "common/sizes.h"
#include "mamba_kernels.h"
#include "seeded.h"
#include "selective_scan/cuda/scan_parts.h"

namespace {

using mamba::product;
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

void try_scan(Random& random) {
  const bool is_hostile = random.once_in(2);
  mamba_selective_scan_params p = {};
  p.n_groups = size(random, is_hostile, 3);
  p.d_inner = is_hostile ? random.hostile_size() : p.n_groups * random.between(1, 70);
  p.batch = size(random, is_hostile, 3);
  p.length = size(random, is_hostile, 40);
  const int64_t most = random.once_in(20) ? 20000 : random.once_in(3) ? 600 : 20;
  p.d_state = size(random, is_hostile, most);
  if (most == 20000 && !is_hostile) p.batch = p.length = 1;
  const int dtype =
      is_hostile ? static_cast<int>(random.between(-1, 4)) : static_cast<int>(random.between(0, 2));
  put_dtype(p.dtype, dtype);
  p.delta_softplus = static_cast<int>(random.between(0, 1));
  p.reverse = static_cast<int>(random.between(0, 1));

  // What the workspace's size is computed from passed these checks.
  const mamba_status sizes = mamba::check_sizes(&p);
  if (sizes == MAMBA_OK) {
    mamba::scan_workspace(p);
  } else {
    expect_refusal(sizes);
  }
  expect(mamba_selective_scan_cuda_workspace(&p) == 0, "a workspace without CUDA");
  const int64_t elements[] = {product(p.batch, p.length, p.d_inner),
                              product(p.batch, p.length, p.n_groups, p.d_state),
                              product(p.batch, p.d_inner, p.d_state)};
  bool is_small = sizes == MAMBA_OK;
  for (int64_t count : elements) is_small = is_small && count <= kMostBytes / 4;
  if (!is_small) return expect_refusal(mamba_selective_scan_cpu(&p, nullptr, nullptr));

  const bool is_finite = random.once_in(2);
  // A state that grows ends in infinity less infinity: A and the steps keep it from that.
  if (is_finite) p.delta_softplus = 1;
  Tensors tensors(random, is_finite);
  const auto of = [&](int64_t width) {
    return sequence(random, tensors, p.batch, p.length, width, dtype);
  };
  const auto fp32 = [&](int64_t count) {
    return static_cast<const float*>(tensors.input(count, MAMBA_FP32));
  };
  p.u = of(p.d_inner);
  p.delta = of(p.d_inner);
  p.B = of(p.n_groups * p.d_state);
  p.C = of(p.n_groups * p.d_state);
  if (random.once_in(2)) p.z = of(p.d_inner);
  p.A = static_cast<const float*>(tensors.input(p.d_inner * p.d_state, MAMBA_FP32, 0));
  p.D = fp32(p.d_inner);
  p.delta_bias = fp32(p.d_inner);
  p.initial_state = fp32(elements[2]);
  p.y = tensors.output(elements[0], dtype);
  p.last_state = static_cast<float*>(tensors.output(elements[2], MAMBA_FP32));
  if (random.once_in(8)) {
    const void** const pointers[] = {&p.u.data, &p.B.data, reinterpret_cast<const void**>(&p.A),
                                     const_cast<const void**>(&p.y)};
    *random.pick(pointers) = nullptr;
    return expect_refusal(mamba_selective_scan_cpu(&p, nullptr, nullptr));
  }
  run(random, p, mamba_selective_scan_cpu, tensors);
}

void try_conv(Random& random) {
  const bool is_hostile = random.once_in(2);
  mamba_causal_conv1d_params p = {};
  p.batch = size(random, is_hostile, 3);
  p.length = size(random, is_hostile, 40);
  p.channels = size(random, is_hostile, 150);
  p.d_conv = size(random, is_hostile, mamba::kMaxTaps);
  const int dtype =
      is_hostile ? static_cast<int>(random.between(-1, 4)) : static_cast<int>(random.between(0, 2));
  put_dtype(p.dtype, dtype);
  p.silu = static_cast<int>(random.between(0, 1));
  p.reverse = static_cast<int>(random.between(0, 1));
  const int64_t numbers = product(p.batch, p.length, p.channels);
  const int64_t states = product(p.batch, p.channels, p.d_conv);
  const bool is_small =
      mamba::check_sizes(&p) == MAMBA_OK && numbers <= kMostBytes / 4 && states <= kMostBytes / 4;
  if (!is_small) return expect_refusal(mamba_causal_conv1d_cpu(&p, nullptr, nullptr));

  Tensors tensors(random, random.once_in(2));
  const int64_t kept = p.batch * p.channels * (p.d_conv - 1);
  p.x = sequence(random, tensors, p.batch, p.length, p.channels, dtype);
  p.weight = static_cast<const float*>(tensors.input(p.channels * p.d_conv, MAMBA_FP32));
  p.bias = static_cast<const float*>(tensors.input(p.channels, MAMBA_FP32));
  p.y = tensors.output(numbers, dtype);
  if (kept > 0) {
    p.initial_state = tensors.input(kept, dtype);
    p.last_state = tensors.output(kept, dtype);
  }
  if (random.once_in(8)) {
    p.y = nullptr;
    return expect_refusal(mamba_causal_conv1d_cpu(&p, nullptr, nullptr));
  }
  run(random, p, mamba_causal_conv1d_cpu, tensors);
}

// The layer runs on GPUs alone: its checks are those of a CPU's code.
void try_layer(Random& random) {
  mamba_layer_params p = {};
  int64_t* const sizes[] = {&p.batch,   &p.length, &p.d_model, &p.d_inner,
                            &p.d_state, &p.d_conv, &p.dt_rank};
  for (int64_t* one : sizes) *one = size(random, random.once_in(3), 16);
  put_dtype(p.dtype, static_cast<int>(random.between(-1, 4)));
  put_dtype(p.hidden_dtype, static_cast<int>(random.between(-1, 4)));
  static constexpr float kEpsilons[] = {0.f, 1e-5f, -1.f, NAN, INFINITY, -INFINITY, 1e38f};
  p.epsilon = random.pick(kEpsilons);
  const mamba_status status = mamba::check_sizes(&p);
  if (status != MAMBA_OK) expect_refusal(status);
  const bool is_number = p.epsilon >= 0 && p.epsilon < INFINITY;
  expect(status != MAMBA_OK || is_number, "an epsilon that is no number is taken");
  expect_refusal(mamba::check(&p, nullptr));
}

void try_nulls() {
  expect_refusal(mamba_selective_scan_cpu(nullptr, nullptr, nullptr));
  expect_refusal(mamba_causal_conv1d_cpu(nullptr, nullptr, nullptr));
  expect_refusal(mamba::check(static_cast<const mamba_layer_params*>(nullptr), nullptr));
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

int main(int argc, char** argv) {
  return seeded::run(argc, argv, 2000, [](Random& random, int64_t) {
    const int64_t which = random.between(0, 9);
    if (which < 5) return try_scan(random);
    if (which < 8) return try_conv(random);
    return which < 9 ? try_layer(random) : try_nulls();
  });
}
