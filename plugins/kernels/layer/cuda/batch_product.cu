// What fits, how the work is laid out, and the maps that the copy engine reads: see
// batch_product.cuh. Where the kernels for sm_90a are left out (MAMBA_SM90A is 0), nothing fits.
#include "layer/cuda/batch_product.cuh"

#if MAMBA_SM90A

#include "common/checks.h"
#include "common/cuda/gpu.cuh"
#include "common/cuda/numeric.cuh"
#include "common/cuda/tensor_map.cuh"

namespace mamba {
namespace {

// Of a matrix (rows, columns), boxes of `box_rows` rows of 128 bytes.
bool encode(CUtensorMap& map, mamba_dtype dtype, const void* data, int64_t stride, int64_t rows,
            int64_t columns, int box_rows) {
  const cuuint64_t sizes[] = {cuuint64_t(columns), 1, cuuint64_t(rows), 1};
  const cuuint64_t strides[] = {cuuint64_t(stride), cuuint64_t(stride), cuuint64_t(stride * rows)};
  return encode_tensor_map(map, dtype, data, sizes, strides, box_rows);
}

}  // namespace

bool batch_product_takes(const mamba_product& p) {
  const Gpu& gpu = current_gpu();
  return gpu.major == 9 && gpu.minor == 0 && tensor_map_encoder() && p.dtype != MAMBA_FP32 &&
         p.rows <= kBatchProductRows && p.columns % 8 == 0 && p.depth % 8 == 0 &&
         p.columns <= kMaxWidth && p.depth <= kMaxWidth && is_aligned<16>(p.a, p.a_stride, 2) &&
         is_aligned<16>(p.b, 0, 2) && is_aligned<16>(p.c, p.c_stride, 2) &&
         is_aligned<16>(p.addend, 0, 2);
}

bool batch_product_fits(const mamba_product& p) {
  const Tuning& tuning = current_tuning();
  const int64_t weights = p.depth * p.columns;
  const bool is_shared = p.columns < kManyTiles * kBatchColumns;
  const bool has_rows =
      p.rows >= tuning.fewest_batch_rows || (is_shared && weights > tuning.most_skinny_weights);
  const int64_t most = is_shared ? tuning.most_shared_batch_weights : tuning.most_batch_weights;
  return has_rows && weights <= most && batch_product_takes(p);
}

bool encode_batch_product(const mamba_product& p, bool reads_early, BatchProductMaps* maps,
                          BatchProduct* s) {
  const auto steps = static_cast<int>((p.depth + kBatchDepth - 1) / kBatchDepth);
  *s = {p, steps, static_cast<int>((p.rows + 7) / 8 * 8), reads_early};
  return encode(maps->weights, p.dtype, p.b, p.columns, p.depth, p.columns, kBatchDepth) &&
         encode(maps->x, p.dtype, p.a, p.a_stride, p.rows, p.depth, s->x_rows);
}

cudaError_t launch_batch_product(const mamba_product& p, bool reads_early, cudaStream_t stream) {
  BatchProductMaps maps;
  BatchProduct s;
  if (!encode_batch_product(p, reads_early, &maps, &s)) return cudaErrorInvalidValue;
  return launch_batch_product(maps, s, stream);
}

}  // namespace mamba

#else

namespace mamba {

bool batch_product_takes(const mamba_product&) { return false; }

bool batch_product_fits(const mamba_product&) { return false; }

cudaError_t launch_batch_product(const mamba_product&, bool, cudaStream_t) {
  return cudaErrorNotSupported;
}

}  // namespace mamba

#endif
