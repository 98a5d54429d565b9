// A whole layer of Mamba: its step's kernels, and its form for many rows. layer/cuda/entry.cuh
// chooses.
#include <algorithm>

#include "common/checks.h"
#include "common/cuda/numeric.cuh"
#include "common/cuda/status.h"
#include "layer/cuda/entry.cuh"
#include "layer/cuda/many_rows.h"
#include "mamba_layer/calls.h"
#include "mamba_layer/cuda/batch_in.cuh"
#include "mamba_layer/cuda/layer.cuh"
#include "selective_scan/cuda/scan.cuh"

namespace mamba {
namespace {

// The parts of a form for many rows.
struct ManyRowsParts {
  void *x, *xz, *u, *projected, *delta, *y, *scan;
  size_t bytes;
};

ProjectIn describe_in(const mamba_layer_params& p, const mamba_codes& codes) {
  ProjectIn in = {};
  in.hidden = p.hidden;
  in.norm_weight = p.norm_weight;
  in.weight = p.in_proj_weight;
  in.codes = codes;
  in.conv_weight = p.conv_weight;
  in.conv_bias = p.conv_bias;
  in.conv_state = p.conv_state;
  in.last_conv_state = p.last_conv_state;
  in.batch = static_cast<int>(p.batch);
  in.length = static_cast<int>(p.length);
  in.rows = static_cast<int>(p.batch * p.length);
  in.d_model = static_cast<int>(p.d_model);
  in.columns = static_cast<int>(2 * p.d_inner);
  in.stride = static_cast<int>(padded(in.columns));
  in.conv_columns = static_cast<int>(p.d_inner);  // the first half; the other is the gate
  in.d_conv = static_cast<int>(p.d_conv);
  in.epsilon = p.epsilon;
  in.hidden_dtype = p.hidden_dtype;
  return in;
}

ProjectOut describe_out(const mamba_layer_params& p, const mamba_codes& codes) {
  ProjectOut out = {};
  out.weight = p.out_proj_weight;
  out.codes = codes;
  out.hidden = p.hidden;
  out.hidden_out = p.hidden_out;
  out.rows = static_cast<int>(p.batch * p.length);
  out.depth = static_cast<int>(p.d_inner);
  out.columns = static_cast<int>(p.d_model);
  out.stride = static_cast<int>(padded(p.d_inner));
  out.hidden_dtype = p.hidden_dtype;
  return out;
}

LayerStep describe_step(const mamba_layer_params& p, const LayerCodes& codes, void* workspace,
                        bool overlaps, size_t* bytes) {
  LayerStep s = {};
  s.layer = p;
  s.in = describe_in(p, codes.in);
  s.out = describe_out(p, codes.out);
  s.rows = s.in.rows;
  s.in_stride = s.in.stride;
  s.y_stride = s.out.stride;
  s.projected = static_cast<int>(projected_width(p));
  const int64_t most = padded((p.d_inner + kMaxSplits - 1) / kMaxSplits);
  s.split_depth = static_cast<int>(std::max(kXProjSplitDepth, most));
  s.splits = static_cast<int>((p.d_inner + s.split_depth - 1) / s.split_depth);
  Parts parts(workspace);
  const int64_t element = element_bytes(p.dtype);
  s.in.out = parts.take(s.rows * s.in_stride * element);
  s.y = parts.take(s.rows * s.y_stride * element);
  s.out.y = s.y;
  // The shares of x_proj: of its own kernel, or of one row of the blocks of the first.
  const int64_t shares = std::max<int64_t>(s.splits, s.rows == 1 ? kMostPackedShares : 0);
  s.parts = static_cast<float*>(
      parts.take(static_cast<int64_t>(sizeof(float)) * shares * s.rows * s.projected));
  const int share_channels = with_type(p.dtype, [&](auto* type) {
    return next_share_channels<std::decay_t<decltype(*type)>>(s.in, p.x_proj_weight, s.projected);
  });
  if (share_channels) {
    s.in.next_weight = p.x_proj_weight;
    s.in.next_shares = s.parts;
    s.in.next_columns = s.projected;
    s.splits = static_cast<int>(p.d_inner / share_channels);
  }
  s.u = s.in.out;
  s.z = static_cast<const char*>(s.in.out) + p.d_inner * element;
  s.reads_states_in_fours = is_aligned<16>(p.recurrent_state, p.d_state, sizeof(float)) &&
                            is_aligned<16>(p.last_recurrent_state, p.d_state, sizeof(float)) &&
                            is_aligned<16>(p.A, p.d_state, sizeof(float));
  // The first kernel follows work that is not ours, which may have written the weights.
  s.in.overlaps = overlaps && p.constant_weights;
  s.out.overlaps = s.overlaps = overlaps;
  if (bytes) *bytes = parts.used();
  return s;
}

size_t scan_bytes(const mamba_layer_params& p) {
  const mamba_selective_scan_params scan = describe_scan(p, {});
  return mamba_selective_scan_cuda_workspace(&scan);
}

ManyRowsParts describe_many(const mamba_layer_params& p, void* workspace) {
  const int64_t row = p.batch * p.length * element_bytes(p.dtype);
  Parts parts(workspace);
  ManyRowsParts m = {};
  m.xz = parts.take(row * 2 * p.d_inner);
  m.u = parts.take(row * p.d_inner);
  m.projected = parts.take(row * projected_width(p));
  m.delta = parts.take(row * p.d_inner);
  m.y = parts.take(row * std::max(p.d_inner, p.d_model));
  m.x = m.y;  // read by in_proj alone, long before the scan writes y
  m.scan = parts.take(static_cast<int64_t>(scan_bytes(p)));
  m.bytes = parts.used();
  return m;
}

class ManyRows {
 public:
  ManyRows(const mamba_layer_params& params, mamba_multiply multiply, void* context,
           void* workspace, cudaStream_t stream)
      : p_(params),
        m_(describe_many(params, workspace)),
        product_{"layer", params.batch * params.length, params.dtype, multiply, context,
                 stream,  params.constant_weights != 0},
        stream_(stream) {}

  size_t bytes() const { return m_.bytes; }

  mamba_status run() {
    const int64_t d_inner = p_.d_inner, width = projected_width(p_);
    const RowNorm norm = {p_.hidden,     p_.norm_weight,  m_.x,
                          product_.rows, p_.d_model,      p_.epsilon,
                          p_.dtype,      p_.hidden_dtype, product_.constant_weights};
    mamba_status bad = status_of("layer", launch_norm(norm, stream_));
    if (bad) return bad;
    const Factors in = {m_.x, p_.d_model, p_.d_model, p_.in_proj_weight, 2 * d_inner};
    // Nothing else is kept where delta would be.
    const BatchTokenParts parts = {m_.xz, m_.u, m_.y, static_cast<float*>(m_.delta)};
    const int64_t share_room = product_.rows * d_inner * element_bytes(p_.dtype);
    const mamba_product in_proj = product_.describe(in, m_.xz, p_.dtype, nullptr);
    if (batch_in_fits(p_, in_proj, share_room)) {
      bad = status_of("layer", launch_batch_in(p_, in_proj, parts, stream_));
      return bad ? bad : add_to_hidden();
    }
    if (batch_token_fits(p_, share_room)) {
      if ((bad = product_(in, m_.xz, p_.dtype))) return bad;
      bad = status_of("layer", launch_batch_token(p_, parts, stream_));
      return bad ? bad : add_to_hidden();
    }
    // Of many steps the convolution, x_proj and dt_proj in one kernel, clusters sharing out the
    // channels of 16 or 32 steps, made a layer of d_model 768 quicker by 1.5 and 2.3 us at 64 and
    // 128 steps, slower by 1.3 us at 512, and one of d_model 2048 slower by 22 us at 512 (H100):
    // not worth its length.
    bad = product_.with_convolution(in, m_.xz, describe_convolution(p_, m_.xz, m_.u));
    if (bad) return bad;
    if ((bad =
             product_({m_.u, d_inner, d_inner, p_.x_proj_weight, width}, m_.projected, p_.dtype))) {
      return bad;
    }
    const mamba_selective_scan_params scan =
        describe_scan(p_, {m_.u, m_.xz, m_.projected, m_.delta, m_.y});
    const ScanDtProj dt_proj = {slice(m_.projected, 0, width, p_.length, p_.dtype),
                                p_.dt_proj_weight, p_.dt_rank};
    if (scan_does_dt_proj(scan, dt_proj)) {
      bad = status_of("layer", launch_scan(scan, dt_proj, stream_));
      return bad ? bad : add_to_hidden();
    }
    if ((bad = product_({m_.projected, width, p_.dt_rank, p_.dt_proj_weight, d_inner}, m_.delta,
                        p_.dtype))) {
      return bad;
    }
    if ((bad = mamba_selective_scan_cuda(&scan, m_.scan, stream_))) return bad;
    return add_to_hidden();
  }

 private:
  mamba_status add_to_hidden() const {
    return product_({m_.y, p_.d_inner, p_.d_inner, p_.out_proj_weight, p_.d_model}, p_.hidden_out,
                    p_.hidden_dtype, p_.hidden);
  }

  const mamba_layer_params& p_;
  const ManyRowsParts m_;
  const Products product_;
  const cudaStream_t stream_;
};

struct Mamba {
  using Params = mamba_layer_params;
  using ManyRows = mamba::ManyRows;
  static constexpr char kName[] = "layer", kCall[] = "mamba_layer_cuda";

  static size_t step_bytes(const Params& p) {
    size_t bytes = 0;
    describe_step(p, {}, nullptr, false, &bytes);
    return bytes;
  }

  static size_t step_shared_bytes(const Params& p, const LayerCodes& codes) {
    const LayerStep s = describe_step(p, codes, nullptr, false, nullptr);
    return with_type(p.dtype, [&](auto* type) {
      return mamba::step_shared_bytes<std::decay_t<decltype(*type)>>(s);
    });
  }

  static LayerMatrices matrices(const Params& p) {
    return {p.d_model, 2 * p.d_inner, p.d_inner, p.d_model};
  }

  // All of its products on tensor cores, weights through rings.
  static bool has_quick_token(const Params& p) {
    const auto is_read_at_once = [](const void* weights, int64_t columns) {
      return is_aligned<16>(weights, columns, 2);
    };
    return p.length == 1 && p.d_model % 16 == 0 && p.d_inner % kXProjSplitDepth == 0 &&
           is_read_at_once(p.in_proj_weight, 2 * p.d_inner) &&
           is_read_at_once(p.x_proj_weight, projected_width(p)) &&
           is_read_at_once(p.out_proj_weight, p.d_model);
  }

  static mamba_status run_step(const Params& p, const LayerCodes& codes, void* workspace,
                               bool overlaps, cudaStream_t stream) {
    const LayerStep s = describe_step(p, codes, workspace, overlaps, nullptr);
    const cudaError_t error = with_type(
        p.dtype, [&](auto* type) { return launch_step<std::decay_t<decltype(*type)>>(s, stream); });
    return status_of(kName, error);
  }
};

using Entry = LayerEntry<Mamba>;

}  // namespace
}  // namespace mamba

extern "C" {

int mamba_layer_is_step_cuda(const mamba_layer_params* params) {
  return mamba::Entry::is_step(params);
}

size_t mamba_layer_step_cuda_workspace(const mamba_layer_params* params) {
  return mamba::Entry::step_workspace(params);
}

size_t mamba_layer_cuda_workspace(const mamba_layer_params* params) {
  return mamba::Entry::workspace(params);
}

mamba_status mamba_layer_step_cuda(const mamba_layer_params* params, void* workspace,
                                   void* stream) {
  return mamba::Entry::step(params, workspace, stream);
}

mamba_status mamba_layer_cuda(const mamba_layer_params* params, mamba_multiply multiply,
                              void* context, void* workspace, void* stream) {
  return mamba::Entry::run(params, {}, multiply, context, workspace, stream);
}

int mamba_layer_packed_is_step_cuda(const mamba_layer_packed_params* params) {
  return mamba::Entry::is_step(mamba::layer_of(params), mamba::codes_of(params));
}

size_t mamba_layer_packed_cuda_workspace(const mamba_layer_packed_params* params) {
  return mamba::Entry::workspace(mamba::layer_of(params), mamba::codes_of(params));
}

mamba_status mamba_layer_packed_cuda(const mamba_layer_packed_params* params,
                                     mamba_multiply multiply, void* context, void* workspace,
                                     void* stream) {
  return mamba::Entry::run(mamba::layer_of(params), mamba::codes_of(params), multiply, context,
                           workspace, stream);
}

}  // extern "C"
