// What fits, how the work is laid out, and the maps that the copy engine reads: see
// batch_product.cuh. Where the kernels for sm_90a are left out (MAMBA_SM90A is 0), nothing fits.
#include "layer/cuda/batch_product.cuh"

#if MAMBA_SM90A

#include "common/cuda/gpu.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/tensor_map.cuh"

extern "C" int64_t mamba_knobs[16];

namespace mamba {
namespace {

// Of a matrix (rows, columns), boxes of `box_rows` rows of 128 bytes.
bool encode(CUtensorMap& map, mamba_dtype dtype, const void* data, int64_t stride, int64_t rows,
            int64_t columns, int box_rows) {
  const cuuint64_t sizes[] = {cuuint64_t(columns), 1, cuuint64_t(rows), 1};
  const cuuint64_t strides[] = {cuuint64_t(stride), cuuint64_t(stride),
                                cuuint64_t(stride * rows)};
  return encode_tensor_map(map, dtype, data, sizes, strides, box_rows, mamba_knobs[5] ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

}  // namespace

bool batch_product_fits(const mamba_product& p) {
  if (p.rows > mamba_knobs[7] || p.rows < mamba_knobs[12] || p.depth * p.columns < mamba_knobs[11]) return false;
  if (mamba_knobs[13] && (mamba_knobs[13] == 1) != (p.columns > p.depth)) return false;
  const Gpu& gpu = current_gpu();
  if (gpu.major != 9 || gpu.minor != 0 || !tensor_map_encoder()) return false;
  return p.dtype != MAMBA_FP32 && p.rows <= kBatchProductRows && p.columns % 8 == 0 &&
         p.depth % 8 == 0 && p.columns < (1 << 30) && p.depth < (1 << 30) &&
         is_aligned<16>(p.a, p.a_stride, 2) && is_aligned<16>(p.b, 0, 2) &&
         is_aligned<16>(p.c, p.c_stride, 2) && is_aligned<16>(p.addend, 0, 2);
}

cudaError_t launch_batch_product(const mamba_product& p, bool reads_early, cudaStream_t stream) {
  BatchProductPlan plan = {static_cast<int>(mamba_knobs[8]), static_cast<int>(mamba_knobs[9]),
                           static_cast<int>(mamba_knobs[10])};
  BatchProduct s = {p, static_cast<int>((p.depth + kBatchDepth - 1) / kBatchDepth), 0, reads_early};
  const auto blocks = [&](int tiles) { return (p.columns + 64 * tiles - 1) / (64 * tiles); };
  if (plan.tiles == 0) plan.tiles = blocks(2) * 8 >= 128 ? 2 : 1;
  if (plan.shares == 0) {
    plan.shares = 1;
    while (plan.shares < 8 && blocks(plan.tiles) * plan.shares < 96 && 2 * plan.shares <= s.steps) plan.shares *= 2;
  }
  if (plan.stages == 0) plan.stages = plan.tiles == 1 ? 6 : 4;
  s.share = (s.steps + plan.shares - 1) / plan.shares;
  BatchProductMaps maps;
  if (!encode(maps.weights, p.dtype, p.b, p.columns, p.depth, p.columns, kBatchDepth) ||
      !encode(maps.x, p.dtype, p.a, p.a_stride, p.rows, p.depth, kBatchProductRows)) {
    return cudaErrorInvalidValue;
  }
  return launch_batch_product_sm90a(maps, s, plan, stream);
}

}  // namespace mamba

#else

namespace mamba {

bool batch_product_fits(const mamba_product&) { return false; }

cudaError_t launch_batch_product(const mamba_product&, bool, cudaStream_t) {
  return cudaErrorNotSupported;
}

}  // namespace mamba

#endif
