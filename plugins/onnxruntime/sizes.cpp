#include "operators.h"

namespace mamba_ort {
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

std::string text_of(const int64_t* shape, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace

void Sizes::match(const Tensor& tensor, const int64_t* shape, size_t rank) {
  const Sizes before = *this;  // the message tells what was known before this tensor
  bool fits = rank == tensor.rank;
  for (size_t i = 0; fits && i < rank; ++i) {
    int64_t& known = values_[tensor.axes[i].size];
    const int64_t given = shape[i] + tensor.axes[i].less;
    if (known == kUnknown) known = given;
    fits = known == given;
  }
  if (!fits) {
    throw InputError(std::string(tensor.name) + " has shape " + text_of(shape, rank) +
                     ", expected " + before.expected(tensor));
  }
  for (size_t i = 0; i < rank; ++i) {
    const Size size = tensor.axes[i].size;
    if (values_[size] < 1) {
      throw InputError(std::string(tensor.name) + " has shape " + text_of(shape, rank) + ": " +
                       name_of(size) + " is 0, expected at least 1");
    }
  }
}

std::string Sizes::expected(const Tensor& tensor) const {
  std::string text = "(";
  for (size_t i = 0; i < tensor.rank; ++i) {
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

}  // namespace mamba_ort
