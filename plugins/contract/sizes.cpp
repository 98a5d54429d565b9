#include "operators.h"

namespace mamba_contract {
namespace {

const char* name_of(Size size) {
  static constexpr const char* names[kSizes] = {"batch",
                                                "length",
                                                "d_inner",
                                                "d_state",
                                                "n_groups",
                                                "channels",
                                                "d_conv",
                                                "d_model",
                                                "2 * d_inner",
                                                "dt_rank",
                                                "dt_rank + 2 * d_state"};
  return names[size];
}

std::string text_of(const int64_t* shape, int32_t rank) {
  std::string text = "[";
  for (int32_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace

void Sizes::match(const Tensor& tensor, const int64_t* shape, int32_t rank) {
  const Sizes before = *this;  // the message tells what was known before this tensor
  bool fits = rank == tensor.rank;
  for (int32_t i = 0; fits && i < rank; ++i) {
    if (shape[i] == kUnknown) continue;
    int64_t& known = values_[tensor.axes[i].size];
    const int64_t given = shape[i] + tensor.axes[i].less;
    if (known == kUnknown) known = given;
    fits = known == given;
  }
  if (!fits) {
    throw Refusal(std::string(tensor.name) + " has shape " + text_of(shape, rank) + ", expected " +
                  before.expected(tensor));
  }
  for (int32_t i = 0; i < rank; ++i) {
    const Size size = tensor.axes[i].size;
    if (values_[size] != kUnknown && values_[size] < 1) {
      throw Refusal(std::string(tensor.name) + " has shape " + text_of(shape, rank) + ": " +
                    name_of(size) + " is " + std::to_string(values_[size]) +
                    ", expected at least 1");
    }
  }
}

void Sizes::check_groups() const {
  const int64_t inner = values_[kInner], groups = values_[kGroups];
  if (inner != kUnknown && groups != kUnknown && inner % groups != 0) {
    throw Refusal("B has n_groups " + std::to_string(groups) + ", which does not divide d_inner " +
                  std::to_string(inner));
  }
}

std::string Sizes::expected(const Tensor& tensor) const {
  std::string text = "(";
  for (int32_t i = 0; i < tensor.rank; ++i) {
    const Axis axis = tensor.axes[i];
    text += i ? ", " : "";
    text += name_of(axis.size);
    if (axis.less) text += " - " + std::to_string(axis.less);
    if (values_[axis.size] != kUnknown) {
      text += " = " + std::to_string(values_[axis.size] - axis.less);
    }
  }
  return text + ")";
}

}  // namespace mamba_contract
