// What check_kernels runs: for each operator a few sizes that reach every kernel of its own, and
// the numbers that its tensors are drawn from. Names, shapes and dtypes are those of the contract's
// table.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "spec.h"

namespace cases {

// Sizes that are no product, in the order of the operator's row.
using Sizes = std::vector<int64_t>;

struct Cases {
  const char* prefix;  // of the names of the operator's forms
  std::vector<Sizes> sizes;
};

inline std::vector<Sizes> cases_of(const std::string& op, bool on_gpu) {
  // What only a GPU treats in its own way: so many channels that 16 bits of them are walked on
  // tensor cores, in blocks that have a multiprocessor each or share one, for more tiles of steps
  // than a block holds; more sequences than it runs at a time, four times over.
  static const Cases kOfGpus[] = {{"SelectiveScan", {{67, 101, 32, 16, 1}, {67, 131, 56, 8, 1}}},
                                  {"StateSpaceDual", {{3, 16, 356, 64, 64, 1, 1}}}};
  static const Cases kAll[] = {
      // A step, awkward lengths, a length that is split, several groups, few and many states, many
      // channels.
      {"SelectiveScan",
       {{1, 1, 24, 16, 1},
        {3, 1, 40, 128, 1},
        {2, 65, 24, 16, 3},
        {1, 1000, 8, 16, 1},
        {1, 70, 16, 256, 1},
        {2, 129, 20, 8, 1},
        {1, 7, 6, 1, 1},
        {2, 40, 1536, 16, 1}}},
      {"CausalConv1d",
       {{1, 1, 24, 4}, {3, 2, 40, 2}, {2, 65, 24, 4}, {1, 700, 8, 3}, {2, 40, 1536, 4}}},
      {"StateSpaceDual",
       {// A few steps: one vector and several, states of both dtypes, several groups; sizes that
        // fill
        // no vector.
        {1, 1, 24, 64, 128, 1, 1},
        {3, 1, 6, 80, 64, 2, 80},
        {2, 5, 3, 64, 256, 3, 1},
        {1, 8, 2, 128, 16, 1, 1},
        {3, 3, 3, 10, 6, 1, 1},
        // Many steps: chunks that end early, a length in parts, channels of two slices, a slice
        // that
        // is padded, pairs of slices, several groups.
        {1, 130, 5, 64, 128, 1, 1},
        {2, 257, 4, 64, 128, 2, 1},
        {1, 900, 2, 64, 64, 1, 64},
        {2, 70, 6, 80, 64, 3, 80},
        {1, 200, 2, 128, 128, 1, 1},
        {1, 66, 2, 40, 128, 1, 1},
        // What the copy engine does not take.
        {1, 300, 2, 64, 256, 1, 1},
        {1, 140, 2, 72, 32, 2, 9},
        {1, 66, 3, 10, 6, 1, 1},
        // More states than a thread's registers hold.
        {1, 20, 2, 8, 264, 1, 1},
        {2, 3, 2, 8, 300, 2, 2}}},
      {"GatedRmsNorm",
       {{1, 1, 1, 24}, {3, 5, 2, 65}, {2, 40, 1, 1536}, {1, 7, 8, 8}, {1, 2, 1, 9000}}},
      // One token, a few rows, many; widths that fill no vector; depths that are split.
      {"MambaLayer",
       {{1, 1, 96, 192, 16, 4, 6},
        {3, 1, 65, 130, 8, 3, 5},
        {1, 1, 768, 1536, 16, 4, 48},
        {1, 3, 12, 24, 64, 2, 3},
        {2, 40, 72, 144, 16, 4, 5},
        {1, 70, 65, 130, 1, 4, 1}}},
      {"Mamba2Layer",
       {{1, 1, 96, 1, 3, 64, 128, 4, 1},
        {2, 1, 65, 3, 2, 9, 6, 3, 9},
        {1, 1, 768, 1, 24, 64, 128, 4, 1},
        {1, 3, 24, 2, 2, 16, 64, 2, 1},
        {2, 40, 72, 2, 2, 64, 64, 4, 64},
        {1, 130, 96, 1, 3, 64, 128, 4, 1},
        {1, 70, 65, 1, 2, 9, 6, 4, 1}}},
      // One token, a few rows, more than are multiplied with the matrix as it lies.
      {"Linear", {{1, 1, 768, 65}, {3, 1, 65, 130}, {2, 5, 96, 33}, {1, 40, 72, 65}}},
  };
  std::vector<Sizes> found;
  const auto add = [&](const Cases& one) {
    if (op.rfind(one.prefix, 0) != 0) return;
    found.insert(found.end(), one.sizes.begin(), one.sizes.end());
  };
  for (const Cases& one : kAll) add(one);
  if (on_gpu) {
    for (const Cases& one : kOfGpus) add(one);
  }
  return found;
}

// A tensor's numbers: of a normal distribution.
struct Draw {
  float mean, spread;
};

// rows: the tensor's first size. has_softplus: steps pass it, and may be negative ahead of it.
inline Draw draw_of(const std::string& tensor, int64_t rows, bool has_softplus) {
  const auto ends_with = [&](const char* end) {
    const size_t length = std::strlen(end);
    return tensor.size() >= length && tensor.compare(tensor.size() - length, length, end) == 0;
  };
  if (tensor == "A") return {-2, 0.2F};
  if (tensor == "log_decay") return {-0.5F, 0.1F};
  if (tensor == "dt" || tensor == "delta") return {has_softplus ? 0.F : 2.F, 0.3F};
  if (ends_with("_proj_weight")) return {0, 1 / std::sqrt(static_cast<float>(rows))};
  if (ends_with("norm_weight")) return {1, 0.2F};
  if (ends_with("conv_weight")) return {0, 0.5F};
  if (ends_with("bias")) return {0, 0.2F};
  return {0, 1};
}

// A float attribute. limited: dt meets its limits at some steps and not at others.
inline double number_of(const char* attribute, bool limited) {
  if (std::strcmp(attribute, "dt_min") == 0) return limited ? 0.625 : 0;
  if (std::strcmp(attribute, "dt_max") == 0) return limited ? 0.875 : FLT_MAX;
  return 1e-5F;  // an epsilon
}

}  // namespace cases
