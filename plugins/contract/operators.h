// What the operators are called and what they take: the C++ copy of mamba_export/contract, for
// the libraries of ONNX Runtime and TensorRT. tests/test_native_onnxruntime.py and
// tests/test_tensorrt_plugin.py hold the two against each other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>

namespace mamba_contract {

constexpr char kDomain[] = "mamba_export";  // of a node; to TensorRT the plugins' namespace
constexpr char kReverse[] = "reverse";

constexpr int32_t kContractVersion = 1;
// The same, as export writes it on every node.
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
  kModel,  // this and the next ones: of a layer
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

constexpr int32_t kMostAxes = 4;
constexpr int32_t kMostInputs = 9;
constexpr int32_t kOutputs = 2;

struct Tensor {
  const char* name;
  bool is_fp32;  // else T
  int32_t rank;
  Axis axes[kMostAxes];
};

// y, the first output, has type and shape of the first input; last_state, the second, those of the
// last input, which is initial_state.
struct Operator {
  const char* name;
  const char* flag;  // attribute beside reverse
  const Tensor* inputs;
  int32_t input_count;
  bool is_convolution;
  bool has_gate;
};

constexpr int32_t like_input(const Operator& op, int32_t output) {
  return output == 0 ? 0 : op.input_count - 1;
}

// The tensor at a position that counts inputs, then outputs; an output is described by the input
// that it is like.
constexpr const Tensor& at_position(const Operator& op, int32_t position) {
  return op
      .inputs[position < op.input_count ? position : like_input(op, position - op.input_count)];
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
constexpr size_t kOperatorCount = sizeof(kOperators) / sizeof(kOperators[0]);

// What is refused; the text names the tensor, the attribute or the field and what was expected.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The sizes of one call. A size that is not known yet, such as a dynamic batch while an engine is
// built, is kUnknown and agrees with every value.
class Sizes {
 public:
  static constexpr int64_t kUnknown = -1;

  Sizes() { std::fill(std::begin(values_), std::end(values_), kUnknown); }

  int64_t operator[](Size size) const { return values_[size]; }

  // The first tensor that has a size sets it, the later ones must agree: throws Refusal where the
  // shape is not the tensor's.
  void match(const Tensor& tensor, const int64_t* shape, int32_t rank);

  // Throws Refusal where the groups of B do not divide the channels; call it after the last match.
  void check_groups() const;

 private:
  std::string expected(const Tensor& tensor) const;

  int64_t values_[kSizes];
};

}  // namespace mamba_contract
