// Picks the scan's kernel by shape, and splits the length where batch and channels alone would
// leave most of the GPU idle.
#include "common/cuda/gpu.cuh"
#include "selective_scan/cuda/scan.cuh"

namespace mamba {
namespace {

// From the last states of parts that started from zeros, the state that each starts from.
__global__ void chain_parts(const __grid_constant__ mamba_selective_scan_params p,
                            const __grid_constant__ ScanParts parts) {
  const int64_t states = p.batch * p.d_inner * p.d_state;
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= states) return;
  const int64_t place = index / p.d_state;  // of a channel
  const float A = p.A[place % p.d_inner * p.d_state + index % p.d_state] * kLog2e;
  float h = p.initial_state ? p.initial_state[index] : 0.f;
  for (int i = 0; i < parts.count; ++i) {
    float& slot = parts.states[i * states + index];
    const float own = slot;
    slot = h;
    h = Decay(parts.dt_sums[i * p.batch * p.d_inner + place] * A).of(h, own);
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

cudaError_t launch_scan(const mamba_selective_scan_params& p, void* workspace,
                        cudaStream_t stream) {
  if (p.d_state > kMaxTileStates || p.exact_zoh) return launch_scan_any(p, stream);
  if (p.length <= kFewSteps) return launch_scan_step(p, stream);
  const bool is_narrow = narrow_fits(p);
  if (is_narrow && p.length * p.d_state <= kNarrowSteps) return launch_scan_narrow(p, stream);
  const int64_t parts = count_parts(p, p.batch, current_tuning());
  if (parts > 1) return launch_split(p, parts, workspace, stream);
  if (is_narrow) return launch_scan_narrow(p, stream);
  if (mma_fits(p)) return launch_scan_mma(p, stream);
  if (pipe_fits(p)) return launch_scan_pipe(p, stream);
  return launch_scan_tile(p, {kWhole, 1, p.length, nullptr, nullptr}, stream);
}

}  // namespace mamba
