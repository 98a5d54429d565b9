// One token of a batch of sequences: see batch_token.cuh.
#include "mamba_layer/cuda/batch_token.cuh"

#include <type_traits>

#include "common/cuda/gpu.cuh"
#include "mamba_layer/calls.h"
#include "mamba_layer/cuda/batch_state.cuh"
#include "mamba_layer/cuda/batch_x_proj.cuh"

extern "C" __attribute__((visibility("default"))) int64_t mamba_knobs[16] = {1, 64, 8, 32, 3, 0, 1024, 0, 0, 0, 0, 0, 0, 0};

namespace mamba {
namespace {

// knobs: 0 on, 1 A channels, 2 A cluster, 3 B channels, 4 B blocks, 5 no skinny conv, 6 most rows
int64_t x_channels() { return mamba_knobs[1]; }
int64_t x_cluster() { return mamba_knobs[2]; }

int64_t count_shares(const mamba_layer_params& p) {
  const int64_t blocks = (p.d_inner + x_channels() - 1) / x_channels();
  return (blocks + x_cluster() - 1) / x_cluster();
}

template <typename T, int Channels, int Cluster>
cudaError_t launch_first(const BatchToken& s, cudaStream_t stream) {
  const auto kernel = batch::convolve_and_project<T, Channels, Cluster>;
  const size_t bytes = batch::XProjShared<Channels>(s.width).bytes;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(bytes))) {
    return error;
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = Cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(s.share_count * Cluster),
                        static_cast<unsigned>((s.rows + kBatchRows - 1) / kBatchRows));
  config.blockDim = dim3(batch::kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, s);
}

template <typename T, int Channels, int Blocks>
cudaError_t launch_second(const BatchToken& s, cudaStream_t stream) {
  const auto kernel = batch::project_and_step<T, Channels, Blocks>;
  const size_t bytes = batch::StateShared<Channels>(static_cast<int>(s.layer.dt_rank)).bytes;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(bytes))) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(s.layer.d_inner / Channels),
                  static_cast<unsigned>((s.rows + kBatchRows - 1) / kBatchRows));
  return launch_overlapping(kernel, grid, dim3(batch::kThreads), bytes, stream, true, s);
}

template <typename T>
cudaError_t launch(const BatchToken& s, cudaStream_t stream) {
  const auto first = [&] {
    const int64_t c = x_channels(), n = x_cluster();
    if (c == 32 && n == 8) return launch_first<T, 32, 8>(s, stream);
    if (c == 64 && n == 4) return launch_first<T, 64, 4>(s, stream);
    if (c == 64 && n == 8) return launch_first<T, 64, 8>(s, stream);
    if (c == 128 && n == 4) return launch_first<T, 128, 4>(s, stream);
    if (c == 128 && n == 8) return launch_first<T, 128, 8>(s, stream);
    if (c == 256 && n == 8) return launch_first<T, 256, 8>(s, stream);
    return cudaErrorNotSupported;
  };
  if (cudaError_t error = first()) return error;
  const int64_t c = mamba_knobs[3], b = mamba_knobs[4];
  if (c == 32 && b == 3) return launch_second<T, 32, 3>(s, stream);
  if (c == 32 && b == 4) return launch_second<T, 32, 4>(s, stream);
  if (c == 64 && b == 2) return launch_second<T, 64, 2>(s, stream);
  return cudaErrorNotSupported;
}

}  // namespace

int64_t batch_token_share_bytes(const mamba_layer_params& p) {
  return static_cast<int64_t>(sizeof(float)) * count_shares(p) * p.batch * projected_width(p);
}

bool batch_token_fits(const mamba_layer_params& p) {
  if (!mamba_knobs[0] || current_gpu().major < 9) return false;
  const int64_t rows = p.batch, width = projected_width(p);
  if (p.length != 1 || p.dtype == MAMBA_FP32 || rows > mamba_knobs[6] || p.d_state != batch::kStates ||
      p.d_conv != kStepTaps || p.dt_rank % batch::kVector != 0 || p.d_inner % 64 != 0 ||
      p.d_inner * p.d_state > INT32_MAX) {
    return false;
  }
  if (batch_token_share_bytes(p) > rows * p.d_inner * 2) return false;
  for (const void* data :
       {p.x_proj_weight, p.dt_proj_weight, p.conv_state,
        static_cast<const void*>(p.last_conv_state), static_cast<const void*>(p.conv_weight),
        static_cast<const void*>(p.conv_bias), static_cast<const void*>(p.A),
        static_cast<const void*>(p.dt_bias), static_cast<const void*>(p.recurrent_state),
        static_cast<const void*>(p.last_recurrent_state)}) {
    if (!is_aligned<16>(data, 0, 1)) return false;
  }
  (void)width;
  return true;
}

cudaError_t launch_batch_token(const mamba_layer_params& p, const void* xz, void* u, void* shares,
                               void* y, cudaStream_t stream) {
  const BatchToken s = {p,
                        xz,
                        u,
                        static_cast<float*>(shares),
                        y,
                        static_cast<int>(p.batch),
                        static_cast<int>(projected_width(p)),
                        static_cast<int>(count_shares(p))};
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (kIsWide<T>) {
      return cudaErrorNotSupported;
    } else {
      return launch<T>(s, stream);
    }
  });
}

}  // namespace mamba
