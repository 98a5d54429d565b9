// What the operators are called and what they take: the C++ copy of mamba_export/contract.py.
// tests/test_native_onnxruntime.py holds the two against each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace mamba_ort {

constexpr char kDomain[] = "mamba_export";
constexpr char kReverse[] = "reverse";
// The version that export writes on every node; the domain's own version is not shown to a kernel.
constexpr char kVersionAttribute[] = "plugin_version";
constexpr char kVersion[] = "1";

enum Size {
  kBatch,
  kLength,
  kInner,
  kState,
  kGroups,
  kChannels,
  kTaps,
  kModel,
  kTwoInner,
  kRank,
  kProjected,
  kSizes
};

// One axis of a tensor: a size, or a size less something.
struct Axis {
  Size size = kSizes;
  int64_t less = 0;
};

constexpr size_t kMostAxes = 4;
constexpr size_t kMostInputs = 9;

struct Tensor {
  const char* name;
  bool is_fp32;  // else T
  size_t rank;
  Axis axes[kMostAxes];
};

// y, the first output, has dtype and shape of the first input; last_state, the second, those of the
// last input, which is initial_state.
struct Operator {
  const char* name;
  const char* flag;  // attribute beside reverse
  const Tensor* inputs;
  size_t input_count;
  bool is_convolution;
  bool has_gate;
};

constexpr size_t kOutputs = 2;
constexpr size_t like_input(const Operator& op, size_t output) {
  return output == 0 ? 0 : op.input_count - 1;
}

constexpr Tensor kU = {"u", false, 3, {{kBatch}, {kLength}, {kInner}}};
constexpr Tensor kDelta = {"delta", false, 3, {{kBatch}, {kLength}, {kInner}}};
constexpr Tensor kA = {"A", true, 2, {{kInner}, {kState}}};
constexpr Tensor kB = {"B", false, 4, {{kBatch}, {kLength}, {kGroups}, {kState}}};
constexpr Tensor kC = {"C", false, 4, {{kBatch}, {kLength}, {kGroups}, {kState}}};
constexpr Tensor kD = {"D", true, 1, {{kInner}}};
constexpr Tensor kZ = {"z", false, 3, {{kBatch}, {kLength}, {kInner}}};
constexpr Tensor kDeltaBias = {"delta_bias", true, 1, {{kInner}}};
constexpr Tensor kScanState = {"initial_state", true, 3, {{kBatch}, {kInner}, {kState}}};
constexpr Tensor kX = {"x", false, 3, {{kBatch}, {kLength}, {kChannels}}};
constexpr Tensor kWeight = {"weight", true, 2, {{kChannels}, {kTaps}}};
constexpr Tensor kBias = {"bias", true, 1, {{kChannels}}};
constexpr Tensor kConvState = {"initial_state", false, 3, {{kBatch}, {kChannels}, {kTaps, 1}}};

constexpr Tensor kGatedInputs[] = {kU, kDelta, kA, kB, kC, kD, kZ, kDeltaBias, kScanState};
constexpr Tensor kUngatedInputs[] = {kU, kDelta, kA, kB, kC, kD, kDeltaBias, kScanState};
constexpr Tensor kConvInputs[] = {kX, kWeight, kBias, kConvState};

constexpr Operator kOperators[] = {
    {"SelectiveScan", "delta_softplus", kGatedInputs, 9, false, true},
    {"SelectiveScanUngated", "delta_softplus", kUngatedInputs, 8, false, false},
    {"CausalConv1d", "silu", kConvInputs, 4, true, false},
};

// An error that the caller can act on; its text names the tensor or the attribute.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The sizes of one call: the first tensor that has a size sets it, the later ones must agree.
class Sizes {
 public:
  int64_t operator[](Size size) const { return values_[size]; }

  // Throws InputError where the shape is not the tensor's.
  void match(const Tensor& tensor, const int64_t* shape, size_t rank);

 private:
  std::string expected(const Tensor& tensor) const;

  static constexpr int64_t kUnknown = -1;
  int64_t values_[kSizes] = {kUnknown, kUnknown, kUnknown, kUnknown, kUnknown, kUnknown,
                             kUnknown, kUnknown, kUnknown, kUnknown, kUnknown};
};

}  // namespace mamba_ort
