// What fits, and the launches: see batch_token.cuh.
#include <type_traits>

#include "common/cuda/gpu.cuh"
#include "common/cuda/overlap.cuh"
#include "mamba_layer/calls.h"
#include "mamba_layer/cuda/batch_state.cuh"
#include "mamba_layer/cuda/batch_token.cuh"
#include "mamba_layer/cuda/batch_x_proj.cuh"

namespace mamba {
namespace {

// Hands on a number as a type.
template <int Number>
using Constant = std::integral_constant<int, Number>;

int64_t row_groups(const mamba_layer_params& p) { return (p.batch + kBatchRows - 1) / kBatchRows; }

// Calls body with the Constant of the channels of a block of the first kernel.
template <typename Body>
auto with_x_channels(const mamba_layer_params& p, Body body) {
  const int64_t shares = row_groups(p) > kFewBatchGroups ? kMostBatchShares : 2 * kMostBatchShares;
  const int64_t most_blocks = shares * kBatchCluster;
  if (p.d_inner <= 64 * most_blocks) return body(Constant<64>());
  if (p.d_inner <= 128 * most_blocks) return body(Constant<128>());
  return body(Constant<256>());
}

int64_t count_shares(const mamba_layer_params& p) {
  return with_x_channels(p, [&](auto channels) {
    const int64_t of_cluster = int64_t{channels} * kBatchCluster;
    return (p.d_inner + of_cluster - 1) / of_cluster;
  });
}

// Blocks of the second kernel that would wait for others to end cost more than wider ones.
template <typename Body>
auto with_states(const mamba_layer_params& p, Body body) {
  using Some = BatchStatesOfSome;
  using Many = BatchStatesOfMany;
  const int64_t groups = row_groups(p);
  const int64_t places = current_gpu().multiprocessors;
  const auto fits_at_once = [&](auto states) {
    return p.d_inner % states.kChannels == 0 &&
           p.d_inner / states.kChannels * groups <= places * states.kBlocks;
  };
  if (!fits_at_once(Some()) && fits_at_once(Many())) return body(Many());
  return body(Some());
}

size_t first_shared_bytes(const mamba_layer_params& p) {
  return with_x_channels(p, [&](auto channels) {
    return batch::XProjShared<channels>(static_cast<int>(projected_width(p))).bytes;
  });
}

size_t second_shared_bytes(const mamba_layer_params& p) {
  return with_states(p, [&](auto states) {
    return batch::StateShared<states.kChannels>(static_cast<int>(p.dt_rank)).bytes;
  });
}

template <typename T, int Channels>
cudaError_t launch_first(const BatchToken& s, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(s.share_count * kBatchCluster),
                  static_cast<unsigned>(row_groups(s.layer)));
  return launch_overlapping_clusters(batch::convolve_and_project<T, Channels>, grid,
                                     dim3(kBatchCluster), dim3(batch::kThreads),
                                     batch::XProjShared<Channels>(s.width).bytes, stream, s);
}

template <typename T, typename States>
cudaError_t launch_second(const BatchToken& s, cudaStream_t stream) {
  constexpr int kChannels = States::kChannels;
  const auto kernel = batch::project_and_step<T, kChannels, States::kBlocks>;
  const size_t bytes = batch::StateShared<kChannels>(static_cast<int>(s.layer.dt_rank)).bytes;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(bytes))) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(s.layer.d_inner / kChannels),
                  static_cast<unsigned>(row_groups(s.layer)));
  return launch_overlapping(kernel, grid, dim3(batch::kThreads), bytes, stream, true, s);
}

// Calls body with a null pointer of the type, of 16 bits.
template <typename Body>
cudaError_t with_narrow_type(const mamba_layer_params& p, Body body) {
  return with_type(p.dtype, [&](auto* type) {
    if constexpr (kIsWide<std::remove_pointer_t<decltype(type)>>) {
      return cudaErrorNotSupported;
    } else {
      return body(type);
    }
  });
}

}  // namespace

int64_t share_bytes(const mamba_layer_params& p, int64_t share_count) {
  return static_cast<int64_t>(sizeof(float)) * share_count * p.batch * projected_width(p);
}

BatchToken batch_token(const mamba_layer_params& p, const BatchTokenParts& parts,
                       int64_t share_count, bool gate_is_early) {
  return {p,
          parts,
          static_cast<int>(p.batch),
          static_cast<int>(projected_width(p)),
          static_cast<int>(share_count),
          gate_is_early};
}

bool batch_token_fits(const mamba_layer_params& p, int64_t most_share_bytes) {
  if (p.length != 1 || p.dtype == MAMBA_FP32 || p.d_state != batch::kStates ||
      p.d_conv != kStepTaps || p.dt_rank % batch::kVector != 0 ||
      p.d_inner % BatchStatesOfSome::kChannels != 0 || p.d_inner > kMaxWidth ||
      p.batch * p.d_inner > current_tuning().most_batch_channels ||
      share_bytes(p, count_shares(p)) > most_share_bytes) {
    return false;
  }
  const auto shared = static_cast<size_t>(current_gpu().shared_bytes);
  if (first_shared_bytes(p) > shared || second_shared_bytes(p) > shared) return false;
  for (const void* data :
       {p.x_proj_weight, p.dt_proj_weight, p.conv_state,
        static_cast<const void*>(p.last_conv_state), static_cast<const void*>(p.conv_weight),
        static_cast<const void*>(p.conv_bias), static_cast<const void*>(p.A),
        static_cast<const void*>(p.dt_bias), static_cast<const void*>(p.recurrent_state),
        static_cast<const void*>(p.last_recurrent_state)}) {
    if (!is_aligned<16>(data, 0, 1)) return false;
  }
  return true;
}

cudaError_t launch_batch_token(const mamba_layer_params& p, const BatchTokenParts& parts,
                               cudaStream_t stream) {
  const BatchToken s = batch_token(p, parts, count_shares(p), true);
  const cudaError_t error = with_narrow_type(p, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return with_x_channels(p, [&](auto channels) { return launch_first<T, channels>(s, stream); });
  });
  return error != cudaSuccess ? error : launch_batch_states(s, stream);
}

cudaError_t launch_batch_states(const BatchToken& s, cudaStream_t stream) {
  return with_narrow_type(s.layer, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return with_states(s.layer,
                       [&](auto states) { return launch_second<T, decltype(states)>(s, stream); });
  });
}

}  // namespace mamba
