// The first kernel of a layer's step for one token of a few sequences: project_in, with as little
// as can be between the end of the kernel ahead and its own end. Few instructions count, too: each
// is read from memory, and executed once.
//
// All that is constant is in registers before the wait: the weights of the norm, of the first rows
// of both products, and of the convolution.
#pragma once

#include "layer/cuda/gemv.cuh"
#include "layer/cuda/next_share.cuh"
#include "layer/cuda/tensor_gemv.cuh"
#include "layer/cuda/token_norm.cuh"

namespace mamba {
namespace step {

// Whether every sequence has one step.
inline bool is_token(const ProjectIn& s) { return s.length == 1; }

constexpr int kUsualTaps = 4;  // d_conv, as models have it

// Whether the layer is as models have it, for which one row's kernel is compiled apart: without
// what other layers take it has fewer instructions (130M, H100: a layer takes 0.6 us less, that of
// step_state_token.cuh included).
inline bool is_usual(const ProjectIn& s) {
  return s.hidden_dtype == MAMBA_FP32 && s.reads_hidden_in_fours && s.d_conv == kUsualTaps;
}

// Fours of a single row that a thread keeps for the norm. Small rings are those of wide layers.
template <typename Product>
inline constexpr int kKeptFours = kFewKeptFours;
template <int Bits, int Columns, int Threads, int Chunk>
inline constexpr int
    kKeptFours<TensorRowProduct<Bits, Columns, Threads, Chunk, kFewSharedTensorRing, 1>> =
        kManyKeptFours;

template <typename T, typename Product>
using ShareAfter = std::conditional_t<Product::kReadsShared,
                                      TensorNextShare<T, Product::kColumns, Product::kThreads>,
                                      NextShare<T, Product::kColumns, Product::kThreads>>;

// Parts of a block's shared memory, in bytes from its start.
template <typename T, typename Product>
struct TokenShared {
  size_t x, partial, norm, next, bytes;

  __host__ __device__ explicit TokenShared(const ProjectIn& s) {
    x = 0;
    partial = x + Product::kRows * Product::x_stride(s.d_model) * sizeof(T);
    norm = partial + sizeof(float) * Product::kSharedFloats;
    next = norm + sizeof(float) * padded(Product::kRows == 1 ? Product::kThreads / 32 : s.d_model);
    bytes = next + (s.next_weight ? ShareAfter<T, Product>::shared_bytes(s.next_columns) : 0);
  }
};

// The convolution of one step of one channel of a sequence. Taps: d_conv, or 0 for any.
template <typename T, int Taps>
class OneChannel {
 public:
  OneChannel() = default;
  __device__ OneChannel(const ProjectIn& s, int row, int channel)
      : s_(&s),
        channel_(channel),
        state_((int64_t{row} * s.conv_columns + channel) * (taps() - 1)),
        exists_(row < s.rows && channel >= 0 && channel < s.conv_columns) {
    if (!exists_) return;
    bias_ = s.conv_bias[channel];
#pragma unroll
    for (int j = 0; j < kEarly; ++j) {
      if (j < taps()) taps_[j] = s.conv_weight[channel * taps() + j];
    }
  }

  __device__ bool exists() const { return exists_; }

  __device__ __forceinline__ void start() {
    if (!exists_) return;
#pragma unroll
    for (int j = 0; j < kEarly; ++j) {
      if (j < taps() - 1) past_[j] = past()[j];
    }
  }

  // u of this channel; moves its state on.
  __device__ __forceinline__ T finish(T x) const {
    const int history = taps() - 1;
    T* last = static_cast<T*>(s_->last_conv_state) + state_;
    float sum = bias_;
#pragma unroll
    for (int j = 0; j < kEarly; ++j) {
      if (j > history) break;
      const T value = j == history ? x : past_[j];
      sum = fmaf(taps_[j], to_float(value), sum);
      if (j > 0) last[j - 1] = value;
    }
#pragma unroll 1
    for (int j = kEarly; j <= history; ++j) {
      const T value = j == history ? x : past()[j];
      sum = fmaf(s_->conv_weight[channel_ * taps() + j], to_float(value), sum);
      last[j - 1] = value;
    }
    return from_float<T>(silu<T>(sum));
  }

 private:
  static constexpr int kEarly = 4;  // taps in registers

  __device__ __forceinline__ int taps() const { return Taps ? Taps : s_->d_conv; }
  __device__ __forceinline__ const T* past() const {
    return static_cast<const T*>(s_->conv_state) + state_;
  }

  const ProjectIn* s_ = nullptr;
  int channel_ = 0;
  int64_t state_ = 0;  // where its state begins
  bool exists_ = false;
  float bias_ = 0.f, taps_[kEarly] = {};
  T past_[kEarly] = {};
};

template <typename T, typename Product, bool IsUsual>
__global__ void __launch_bounds__(Product::kThreads)
    project_in_token(const __grid_constant__ ProjectIn s) {
  constexpr int kColumns = Product::kColumns, kThreads = Product::kThreads;
  constexpr int kRows = Product::kRows;
  constexpr int kResults = (kRows * kColumns + kThreads - 1) / kThreads;  // of a thread
  constexpr bool kIsOneRow = kRows == 1;
  extern __shared__ __align__(128) unsigned char shared[];
  const TokenShared<T, Product> at(s);
  T* x = reinterpret_cast<T*>(shared + at.x);
  float* partial = reinterpret_cast<float*>(shared + at.partial);
  float* of_norm = reinterpret_cast<float*>(shared + at.norm);
  const int first = blockIdx.x * kColumns;
  const int x_stride = static_cast<int>(Product::x_stride(s.d_model));
  const int first_channel = first - s.conv_first;  // that of the block's first column

  Product product({s.weight, s.d_model, s.columns, s.codes}, first, 0, s.d_model, x, x_stride);
  std::conditional_t<kIsOneRow, OneRowNorm<T, kThreads, kKeptFours<Product>, IsUsual>,
                     RowsNorm<T, kThreads, kRows, Product::kPendingCopies>>
      norm(s, of_norm);
  const bool has_next =
      kIsOneRow && s.next_weight && first_channel >= 0 && first_channel < s.conv_columns;
  ShareAfter<T, Product> next(static_cast<const T*>(s.next_weight), first_channel,
                              has_next ? s.next_columns : kColumns, shared + at.next);
  if (has_next) next.start();
  product.start_weights(partial);
  using Channel = OneChannel<T, IsUsual ? kUsualTaps : 0>;
  Channel channels[kResults];
#pragma unroll
  for (int n = 0; n < kResults; ++n) {
    const int i = n * kThreads + threadIdx.x;
    channels[n] = Channel(s, i / kColumns, first_channel + i % kColumns);
  }
  wait_and_let_next_start(s.codes.bits == 0);

  norm.start();
#pragma unroll
  for (int n = 0; n < kResults; ++n) channels[n].start();
  norm.finish(x, x_stride);
  product.finish(partial);
#pragma unroll
  for (int n = 0; n < kResults; ++n) {
    const int i = n * kThreads + threadIdx.x, row = i / kColumns, column = first + i % kColumns;
    if (row >= s.rows || column >= s.columns) continue;
    T value = from_float<T>(partial[i]);
    if (channels[n].exists()) value = channels[n].finish(value);
    static_cast<T*>(s.out)[int64_t{row} * s.stride + column] = value;
    if (has_next) next.put(i, value);
  }
  if (!has_next) return;
  __syncthreads();
  next.finish(s.next_shares + first_channel / kColumns * s.next_columns);
}

}  // namespace step
}  // namespace mamba
