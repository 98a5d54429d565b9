// State space duality on Hopper's tensor cores: what fits, how the work is laid out, and the maps
// that the copy engine reads. The kernels are compiled for sm_90a in files of their own; where they
// are left out (MAMBA_SM90A is 0), nothing fits.
#include "state_space_dual/cuda/ssd.cuh"

#if MAMBA_SM90A

#include <algorithm>

#include "common/cuda/gpu.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/tensor_map.cuh"
#include "state_space_dual/cuda/ssd_hopper.cuh"

namespace mamba {
namespace {

// Of every Hopper GPU, at most: the workspace must not depend on the GPU.
constexpr int64_t kMostMultiprocessors = 132;
constexpr int64_t kConsumers = 2;  // that a multiprocessor runs at a time
// Chunks: shorter parts take longer, but where a multiprocessor has two blocks (H200).
constexpr int64_t kShortestPart = 3, kShortestOfMany = 2;

int64_t slices_a_head(const mamba_state_space_dual_params& p) {
  return (p.head_dim + kHopperSlice - 1) / kHopperSlice;
}

int64_t slices_of(const mamba_state_space_dual_params& p) { return p.heads * slices_a_head(p); }

int64_t chunks_of(const mamba_state_space_dual_params& p) {
  return (p.length + kHopperChunk - 1) / kHopperChunk;
}

// Rows of channels start at multiples of 16 bytes, and at least half of the slices is no padding.
bool sizes_fit(const mamba_state_space_dual_params& p) {
  return p.dtype != MAMBA_FP32 && (p.d_state == 64 || p.d_state == 128) && p.head_dim % 8 == 0 &&
         2 * p.head_dim > kHopperSlice * slices_a_head(p);
}

// The copy engine takes rows that start at multiples of 16 bytes.
bool can_be_copied(const mamba_sequence& s, const mamba_state_space_dual_params& p) {
  const auto stride_fits = [](int64_t count, int64_t stride) {
    return count == 1 || (stride > 0 && stride % 8 == 0 && stride < (int64_t{1} << 38));
  };
  return is_aligned<16>(s.data, 0, 2) && stride_fits(p.length, s.step_stride) &&
         stride_fits(p.batch, s.batch_stride);
}

// Of batches and lengths up to these.
size_t most_part_bytes(const mamba_state_space_dual_params& p, int64_t items, int64_t starts) {
  const int64_t state = kHopperSlice * p.d_state;
  return items * (state * 2 + 128 * 4 + 4) + starts * state * 4 + 3 * 256;
}

// --- Maps ----------------------------------------------------------------------------------------

// A sequence (batch, length, wide, numbers), of which a box is one chunk of 64 numbers; zeros
// behind the last number.
bool encode(CUtensorMap& map, const mamba_state_space_dual_params& p, const void* data,
            int64_t batch_stride, int64_t step_stride, int64_t wide, int64_t numbers) {
  // The stride of a dimension of 1 is of no consequence, and has to be valid.
  const int64_t row = wide * numbers;
  const int64_t step = p.length > 1 ? step_stride : row;
  const int64_t sequence = p.batch > 1 ? batch_stride : row;
  const cuuint64_t sizes[] = {cuuint64_t(numbers), cuuint64_t(wide), cuuint64_t(p.length),
                              cuuint64_t(p.batch)};
  const cuuint64_t strides[] = {cuuint64_t(numbers), cuuint64_t(step), cuuint64_t(sequence)};
  return encode_tensor_map(map, p.dtype, data, sizes, strides, kHopperChunk);
}

bool encode(CUtensorMap& map, const mamba_state_space_dual_params& p, const mamba_sequence& s,
            int64_t wide, int64_t numbers) {
  return encode(map, p, s.data, s.batch_stride, s.step_stride, wide, numbers);
}

bool encode_all(SsdHopperMaps& maps, const mamba_state_space_dual_params& p) {
  const int64_t row = p.heads * p.head_dim;
  const mamba_sequence y = {p.y, p.length * row, row};
  return encode(maps.x, p, p.x, p.heads, p.head_dim) &&
         encode(maps.B, p, p.B, p.n_groups, p.d_state) &&
         encode(maps.C, p, p.C, p.n_groups, p.d_state) &&
         encode(maps.z, p, p.z.data ? p.z : y, p.heads, p.head_dim) &&
         encode(maps.y, p, y, p.heads, p.head_dim);
}

SsdHopperArguments arguments_of(const mamba_state_space_dual_params& p, const SsdHopperPlan& plan,
                                void* workspace) {
  SsdHopperArguments a = {};
  a.batch = static_cast<int>(p.batch);
  a.length = static_cast<int>(p.length);
  a.chunks = static_cast<int>(chunks_of(p));
  a.slices = static_cast<int>(slices_of(p));
  a.heads = static_cast<int>(p.heads);
  a.slices_a_head = static_cast<int>(slices_a_head(p));
  a.slices_a_group = static_cast<int>(a.slices / p.n_groups);
  a.d_skip = static_cast<int>(p.d_skip);
  a.head_dim = static_cast<int>(p.head_dim);
  a.dt_softplus = p.dt_softplus;
  a.dt_min = p.dt_min;
  a.dt_max = p.dt_max;
  a.dt = p.dt.data;
  a.dt_batch_stride = p.dt.batch_stride;
  a.dt_step_stride = p.dt.step_stride;
  a.A = p.A;
  a.D = p.D;
  a.dt_bias = p.dt_bias;
  a.state_is_fp32 = p.initial_state_dtype == MAMBA_FP32;
  a.initial_state = p.initial_state;
  a.last_state = p.last_state;
  a.parts = plan.parts;
  a.part_chunks = plan.part_chunks;
  if (plan.parts > 1) {
    const int64_t sequences = p.batch * a.slices, items = (plan.parts - 1) * sequences;
    const int64_t state = kHopperSlice * p.d_state;
    char* at = static_cast<char*>(workspace);
    const auto take = [&](int64_t bytes) {
      char* const taken = at;
      at += (bytes + 255) / 256 * 256;
      return taken;
    };
    a.part_states = reinterpret_cast<uint4*>(take(items * state * 2));
    a.part_scales = reinterpret_cast<float*>(take(items * 128 * 4));
    a.part_decays = reinterpret_cast<float*>(take(items * 4));
    if (p.initial_state && p.initial_state == p.last_state) {
      a.initial_copy = take(sequences * state * 4);
    }
  }
  return a;
}

}  // namespace

bool ssd_hopper_fits(const mamba_state_space_dual_params& p, const Gpu& gpu) {
  if (gpu.major != 9 || gpu.minor != 0) return false;
  if (gpu.is_present() && !tensor_map_encoder()) return false;
  if (!sizes_fit(p) || p.reverse || p.log_decay) return false;
  // log(dt) is taken.
  if (!(p.dt_max >= 0.f && (p.dt_softplus || p.dt_min >= 0.f))) return false;
  // What the kernels count in 32 bits.
  if (p.batch > 65535 || p.length > (1 << 30) || slices_of(p) > (1 << 30) / p.batch) return false;
  return can_be_copied(p.x, p) && can_be_copied(p.B, p) && can_be_copied(p.C, p) &&
         (!p.z.data || can_be_copied(p.z, p)) && is_aligned<16>(p.y, 0, 2) &&
         is_aligned<16>(p.initial_state, 0, 2) && is_aligned<16>(p.last_state, 0, 2);
}

SsdHopperPlan ssd_hopper_plan(const mamba_state_space_dual_params& p) {
  const int64_t slices = slices_of(p), chunks = chunks_of(p), sequences = p.batch * slices;
  const int64_t multiprocessors =
      std::min<int64_t>(current_gpu().multiprocessors, kMostMultiprocessors);
  const int64_t consumers = kConsumers * multiprocessors;
  SsdHopperPlan plan = {};
  const bool pairs = slices / p.n_groups % 2 == 0 || p.n_groups == 1;
  // As many parts as run at a time. At 24 heads of 512 steps parts of 3 chunks take 10.7 us and
  // parts of 2 11.0; at 64 of 512 13.5 and 12.9, at 24 of 1024 13.9 and 13.5.
  // Equal work for all blocks, each with the end of one sequence and the beginning of the next, was
  // slower: 110 us instead of 107 at 80 heads of 8192 steps.
  const auto parts_of = [&](int64_t shortest) { return (chunks + shortest - 1) / shortest; };
  const bool many = sequences * parts_of(kShortestPart) > multiprocessors;
  const int64_t longest = parts_of(many ? kShortestOfMany : kShortestPart);
  const int64_t most_parts = std::max<int64_t>(1, std::min(consumers / sequences, longest));
  plan.part_chunks = static_cast<int>((chunks + most_parts - 1) / most_parts);
  plan.parts = static_cast<int>((chunks + plan.part_chunks - 1) / plan.part_chunks);
  // Blocks that live on start the next sequence sooner, which pays where there are very many.
  plan.persistent = pairs && sequences > 4 * consumers;
  // A block of two slices reads B and C half as often; two blocks of one start sooner.
  const bool wide = sequences > consumers || plan.part_chunks >= 8;
  plan.slices_a_block = pairs && wide ? 2 : 1;
  plan.state_slices_a_block = plan.slices_a_block;
  return plan;
}

size_t ssd_hopper_workspace(const mamba_state_space_dual_params& p) {
  if (!sizes_fit(p)) return 0;
  const int64_t slices = slices_of(p), places = kConsumers * kMostMultiprocessors;
  if (2 * slices > places || chunks_of(p) == 1) return 0;
  // A smaller batch may be split into more parts, but all its parts together are no more.
  return most_part_bytes(p, places, std::min(places / 2, p.batch * slices));
}

cudaError_t launch_ssd_hopper(const mamba_state_space_dual_params& p, void* workspace,
                              cudaStream_t stream) {
  return launch_ssd_hopper(p, ssd_hopper_plan(p), workspace, stream);
}

cudaError_t launch_ssd_hopper(const mamba_state_space_dual_params& p, const SsdHopperPlan& plan,
                              void* workspace, cudaStream_t stream) {
  SsdHopperMaps maps;
  if (!encode_all(maps, p)) return cudaErrorInvalidValue;
  const SsdHopperArguments arguments = arguments_of(p, plan, workspace);
  const auto launch = p.dtype == MAMBA_FP16 ? launch_ssd_hopper_fp16 : launch_ssd_hopper_bf16;
  return launch(maps, arguments, plan, static_cast<int>(p.d_state), p.z.data != nullptr, stream);
}

}  // namespace mamba

#else

namespace mamba {

bool ssd_hopper_fits(const mamba_state_space_dual_params&, const Gpu&) { return false; }

size_t ssd_hopper_workspace(const mamba_state_space_dual_params&) { return 0; }

cudaError_t launch_ssd_hopper(const mamba_state_space_dual_params&, void*, cudaStream_t) {
  return cudaErrorNotSupported;
}

}  // namespace mamba

#endif
