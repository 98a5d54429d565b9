// What the steps of every layer share, whatever their mixer is: the first kernel and the last, for
// a few rows (one token of a few sequences); and the norm that the form for many rows starts with.
//
//   project_in   norm(hidden); in_proj; convolution, SiLU and its state over some of the columns
//   project_out  hidden + out_proj(y), or of the gated norm of y
#pragma once

#include <cuda_runtime.h>

#include "layer/cuda/codes.h"
#include "mamba_kernels.h"

namespace mamba {

constexpr int kMaxStepRows = 8;  // rows (batch * length) that the step's kernels take

// Rows of a step's buffers start at multiples of this many elements: 16 bytes and more.
__host__ __device__ constexpr int64_t padded(int64_t count) { return (count + 7) / 8 * 8; }

struct ProjectIn {
  const void* hidden;        // (rows, d_model) R
  const float* norm_weight;  // (d_model,)
  const void* weight;        // (d_model, columns) T, or codes
  const float* conv_weight;  // (conv_columns, d_conv)
  const float* conv_bias;    // (conv_columns,)
  const void* conv_state;    // (batch, conv_columns, d_conv - 1) T
  void* last_conv_state;     // the same
  void* out;                 // (rows, stride) T
  int batch, length, rows;
  int d_model, columns, stride;
  int conv_first, conv_columns, d_conv;  // the first column of the convolution, and their number
  // What the convolution's columns are multiplied by next: of a single row, where this is not null,
  // each block leaves the share of its own columns. next_share_channels says where that can be.
  const void* next_weight;  // (conv_columns, next_columns) T
  float* next_shares;       // (conv_columns / next_share_channels, next_columns)
  int next_columns;
  mamba_codes codes;  // of the weight; bits 0 where it is T
  float epsilon;
  mamba_dtype hidden_dtype;
  bool reads_hidden_in_fours;  // launch_project_in sets it
  bool overlaps;               // it may start before the kernel ahead of it has ended
};

struct ProjectOut {
  const void* y;       // (rows, stride) T
  const void* weight;  // (depth, columns) T, or codes
  const void* hidden;  // (rows, columns) R
  void* hidden_out;    // the same
  int rows, depth, columns, stride;
  mamba_codes codes;  // of the weight; bits 0 where it is T
  mamba_dtype hidden_dtype;
  bool overlaps;
  // The gated norm of y, of each group of channels alone; else y is multiplied as it is.
  bool is_gated;
  const void* gate;               // (rows, gate_stride) T
  const float* gate_norm_weight;  // (depth,)
  int groups, gate_stride;
  float epsilon;
  bool reads_in_fours;  // launch_project_out sets it
};

// Bytes of shared memory that the two kernels ask for.
template <typename T>
size_t project_in_shared_bytes(const ProjectIn& s);
template <typename T>
size_t project_out_shared_bytes(const ProjectOut& s);

// How many channels of u a block's share of the product of one row with this matrix of `columns`
// columns has; 0 where the first kernel cannot leave shares.
template <typename T>
int next_share_channels(const ProjectIn& s, const void* weight, int columns);

template <typename T>
cudaError_t launch_project_in(ProjectIn s, cudaStream_t stream);
template <typename T>
cudaError_t launch_project_out(ProjectOut s, cudaStream_t stream);

// x (rows, width) T = norm(hidden), for any number of rows.
struct RowNorm {
  const void* hidden;  // (rows, width) R
  const float* weight;
  void* x;
  int64_t rows, width;
  float epsilon;
  mamba_dtype dtype, hidden_dtype;  // T and R
  bool reads_early;  // the weights may be read while the stream's earlier kernels still run
};
cudaError_t launch_norm(const RowNorm& norm, cudaStream_t stream);

}  // namespace mamba
