// How the length of state space duality is split into parts, and the workspace of a split one.
// Plain C++.
#pragma once

#include <algorithm>
#include <cstddef>

#include "mamba_kernels.h"

namespace mamba {

constexpr int64_t kSsdRows = 64;   // of head_dim that a block has, about
constexpr int64_t kSsdChunk = 64;  // steps
constexpr int64_t kShortestSsdPart = kSsdChunk;
constexpr int64_t kMostSsdBlocks = 512;  // that a split makes, on the largest GPU

// Blocks of a pass over a length that is not split.
inline int64_t count_ssd_blocks(const mamba_state_space_dual_params& p, int64_t batch) {
  return batch * p.heads * ((p.head_dim + kSsdRows - 1) / kSsdRows);
}

// 1 where the length is not split. blocks: those that fill the GPU.
inline int64_t count_ssd_parts(const mamba_state_space_dual_params& p, int64_t batch,
                               int64_t blocks) {
  const int64_t wanted = std::min(blocks, kMostSsdBlocks) / count_ssd_blocks(p, batch);
  return std::max<int64_t>(1, std::min(wanted, p.length / kShortestSsdPart));
}

struct SsdWorkspace {
  size_t states, decays;  // bytes
  SsdWorkspace(const mamba_state_space_dual_params& p, int64_t batch, int64_t parts)
      : states(rounded(parts * batch * p.heads * p.head_dim * p.d_state * 4)),
        decays(rounded(parts * batch * p.heads * 4)) {}
  size_t bytes() const { return states + decays; }

 private:
  static size_t rounded(int64_t bytes) { return (bytes + 255) / 256 * 256; }
};

// Bytes for these sizes, which were checked, and every smaller batch and length, on any GPU.
inline size_t ssd_parts_workspace(const mamba_state_space_dual_params& p) {
  // A smaller batch may be split where this one is not, so every batch that can be split counts.
  size_t most = 0;
  for (int64_t batch = 1; batch <= p.batch; ++batch) {
    if (2 * count_ssd_blocks(p, batch) > kMostSsdBlocks) break;
    const int64_t parts = count_ssd_parts(p, batch, kMostSsdBlocks);
    if (parts > 1) most = std::max(most, SsdWorkspace(p, batch, parts).bytes());
  }
  return most;
}

}  // namespace mamba
