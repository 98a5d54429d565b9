// Picks the kernel of state space duality by shape, and splits the length where batch and heads
// alone would leave most of the GPU idle.
#include <algorithm>

#include "common/cuda/gpu.cuh"
#include "common/cuda/overlap.cuh"
#include "common/sizes.h"
#include "state_space_dual/cuda/ssd.cuh"

namespace mamba {
namespace {

// From the last states of parts that started from zeros, the state that each starts from.
template <typename T>
__global__ void chain_parts(const __grid_constant__ mamba_state_space_dual_params p,
                            const __grid_constant__ SsdParts parts) {
  const int64_t heads = p.batch * p.heads, of_head = p.head_dim * p.d_state;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= heads * of_head) return;
  let_next_kernel_start();
  wait_for_earlier_kernels();
  float h = load_state<T>(p, index);
  float* slots = parts.states + index;
  const float* decays = parts.decays + index / of_head;
  const int64_t apart = heads * of_head;
  const int last = parts.count - 1;  // which left no state
  // One at a time these would be as many ways to memory and back.
  constexpr int kAtOnce = 8;
  for (int first = 0; first < parts.count; first += kAtOnce) {
    float own[kAtOnce], decay[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k;
      own[k] = i < last ? slots[i * apart] : 0.f;
      decay[k] = i < last ? decays[i * heads] : 0.f;
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k <= last) slots[(first + k) * apart] = h;
      h = exp2_fast(decay[k]) * h + own[k];
    }
  }
}

cudaError_t launch_chain(const mamba_state_space_dual_params& p, const SsdParts& parts,
                         cudaStream_t stream) {
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kThreads = 128;
    const int64_t states = p.batch * p.heads * p.head_dim * p.d_state;
    const dim3 blocks(static_cast<unsigned>((states + kThreads - 1) / kThreads));
    return launch_overlapping(chain_parts<T>, blocks, dim3(kThreads), 0, stream,
                              current_gpu().major >= 9, p, parts);
  });
}

template <typename Launch>
cudaError_t launch_parts(const mamba_state_space_dual_params& p, void* workspace,
                         cudaStream_t stream, Launch launch) {
  // Three blocks on each multiprocessor.
  int64_t count = count_ssd_parts(p, p.batch, 3 * int64_t{current_gpu().multiprocessors});
  const int64_t chunks = (p.length + kSsdChunk - 1) / kSsdChunk;
  const int64_t part_length = (chunks + count - 1) / count * kSsdChunk;
  // Rounding the parts' length up may leave the last ones without a step.
  count = (p.length + part_length - 1) / part_length;
  if (count == 1) return launch(p, SsdParts{kSsdWhole, 1, part_length, nullptr, nullptr}, stream);
  const SsdWorkspace sizes(p, p.batch, count);
  SsdParts parts = {kSsdStates, static_cast<int>(count), part_length,
                    static_cast<float*>(workspace),
                    reinterpret_cast<float*>(static_cast<char*>(workspace) + sizes.states)};
  if (cudaError_t error = launch(p, parts, stream)) return error;
  if (cudaError_t error = launch_chain(p, parts, stream)) return error;
  parts.pass = kSsdOutputs;
  return launch(p, parts, stream);
}

}  // namespace

size_t ssd_workspace(const mamba_state_space_dual_params& p) {
  if (p.d_state > kMostSsdTileStates) return ssd_any_workspace(p);
  return std::max(ssd_parts_workspace(p), ssd_hopper_workspace(p));
}

SsdForm ssd_form(const mamba_state_space_dual_params& p, const Gpu& gpu) {
  if (p.length <= kFewSsdSteps && ssd_step_fits(p)) return SsdForm::kStep;
  if (p.d_state > kMostSsdTileStates) return SsdForm::kAny;
  if (ssd_hopper_fits(p, gpu)) return SsdForm::kHopper;
  return ssd_mma_fits(p, gpu) ? SsdForm::kMma : SsdForm::kTile;
}

const char* ssd_form_name(const mamba_state_space_dual_params& p, int architecture) {
  const Gpu named = {architecture / 10, architecture % 10, 0, 0};
  switch (ssd_form(p, architecture ? named : current_gpu())) {
    case SsdForm::kStep:
      return "step";
    case SsdForm::kHopper:
      return "hopper";
    case SsdForm::kMma:
      return "mma";
    case SsdForm::kTile:
      return "tile";
    case SsdForm::kAny:
      return "any";
  }
  return "";
}

cudaError_t launch_ssd(const mamba_state_space_dual_params& p, void* workspace,
                       cudaStream_t stream) {
  switch (ssd_form(p, current_gpu())) {
    case SsdForm::kStep:
      return launch_ssd_step(p, stream);
    case SsdForm::kHopper:
      return launch_ssd_hopper(p, workspace, stream);
    case SsdForm::kMma:
      return launch_parts(p, workspace, stream, launch_ssd_mma);
    case SsdForm::kTile:
      return launch_parts(p, workspace, stream, launch_ssd_tile);
    case SsdForm::kAny:
      return launch_ssd_any(p, workspace, stream);
  }
  return cudaErrorNotSupported;
}

}  // namespace mamba
