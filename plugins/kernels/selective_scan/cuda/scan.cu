// Picks the scan's kernel by shape, and splits the length where batch and channels alone would
// leave most of the GPU idle.
#include <algorithm>

#include "common/cuda/gpu.cuh"
#include "selective_scan/cuda/scan.cuh"

namespace mamba {
namespace {

int64_t rounded_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// 1 where the length is not split.
int64_t count_parts(const mamba_selective_scan_params& p, int64_t batch, const Tuning& tuning) {
  if (p.d_state > kMaxTileStates) return 1;
  const int64_t states = batch * p.d_inner * p.d_state, few_states = tuning.split_channels * 16;
  if (batch * p.d_inner >= tuning.split_channels || states >= few_states) return 1;
  const int64_t wanted = std::min(tuning.most_parts, 4 * few_states / states);
  return std::max<int64_t>(1, std::min(wanted, p.length / tuning.shortest_part));
}

struct Workspace {
  size_t states, dt_sums;  // bytes
  Workspace(const mamba_selective_scan_params& p, int64_t batch, int64_t parts)
      : states(rounded_up(parts * batch * p.d_inner * p.d_state * 4, 256)),
        dt_sums(rounded_up(parts * batch * p.d_inner * 4, 256)) {}
  size_t bytes() const { return states + dt_sums; }
};

// From the last states of parts that started from zeros, the state that each starts from.
__global__ void chain_parts(const __grid_constant__ mamba_selective_scan_params p,
                            const __grid_constant__ ScanParts parts) {
  const int64_t states = p.batch * p.d_inner * p.d_state;
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= states) return;
  const int64_t place = index / p.d_state;  // of a channel
  const float A = p.A[place % p.d_inner * p.d_state + index % p.d_state] * kLog2e;
  float h = p.initial_state[index];
  for (int i = 0; i < parts.count; ++i) {
    float& slot = parts.states[i * states + index];
    const float own = slot;
    slot = h;
    h = exp2_fast(A * parts.dt_sums[i * p.batch * p.d_inner + place]) * h + own;
  }
}

cudaError_t launch_split(const mamba_selective_scan_params& p, int64_t count, void* workspace,
                         cudaStream_t stream) {
  const Workspace sizes(p, p.batch, count);
  ScanParts parts = {kStates, static_cast<int>(count), rounded_up(p.length, count) / count,
                     static_cast<float*>(workspace),
                     reinterpret_cast<float*>(static_cast<char*>(workspace) + sizes.states)};
  // Rounding the parts' length up may leave the last ones without a step.
  parts.count = static_cast<int>((p.length + parts.part_length - 1) / parts.part_length);
  if (cudaError_t error = launch_scan_tile(p, parts, stream)) return error;
  constexpr int kThreads = 128;
  const int64_t states = p.batch * p.d_inner * p.d_state;
  chain_parts<<<static_cast<unsigned>((states + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      p, parts);
  if (cudaError_t error = cudaGetLastError()) return error;
  parts.pass = kOutputs;
  return launch_scan_tile(p, parts, stream);
}

}  // namespace

size_t scan_workspace(const mamba_selective_scan_params& p) {
  // An engine may be built on another GPU than it runs on.
  constexpr Tuning kTuning = most_splits();
  // A smaller batch may be split where this one is not, so every batch that can be split counts.
  size_t most = 0;
  for (int64_t batch = 1; batch <= p.batch && batch * p.d_inner < kTuning.split_channels; ++batch) {
    const int64_t parts = count_parts(p, batch, kTuning);
    if (parts > 1) most = std::max(most, Workspace(p, batch, parts).bytes());
  }
  return most;
}

cudaError_t launch_scan(const mamba_selective_scan_params& p, void* workspace,
                        cudaStream_t stream) {
  if (p.d_state > kMaxTileStates) return launch_scan_any(p, stream);
  if (p.length <= kFewSteps) return launch_scan_step(p, stream);
  const int64_t parts = count_parts(p, p.batch, current_tuning());
  if (parts > 1) return launch_split(p, parts, workspace, stream);
  if (pipe_fits(p)) return launch_scan_pipe(p, stream);
  return launch_scan_tile(p, {kWhole, 1, p.length, nullptr, nullptr}, stream);
}

}  // namespace mamba
