// How a length is split into parts, and the workspace of a split one. Plain C++.
#pragma once

#include <algorithm>
#include <cstddef>

#include "common/checks.h"
#include "common/cuda/tuning.cuh"
#include "mamba_kernels.h"

namespace mamba {

constexpr int kMaxTileStates = 256;

inline int64_t rounded_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// 1 where the length is not split.
inline int64_t count_parts(const mamba_selective_scan_params& p, int64_t batch,
                           const Tuning& tuning) {
  if (p.d_state > kMaxTileStates || p.exact_zoh) return 1;
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

// Bytes of workspace for these sizes, which were checked, and every smaller batch and length.
// More than is used where the scan of few states takes a length that could be split.
inline size_t scan_workspace(const mamba_selective_scan_params& p) {
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

}  // namespace mamba
