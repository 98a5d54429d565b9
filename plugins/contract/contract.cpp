#include "contract.h"

#include <cfloat>

#include "common/sizes.h"

namespace mamba_contract {
namespace {

using mamba::kTooMany;
using mamba::product;

std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (int32_t i = 0; i < shape.rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string text_of(const Operator& op, const Axis& axis) {
  std::string text;
  for (const Term& term : axis.terms) {
    if (term.size == kNone) break;
    if (!text.empty()) text += " + ";
    if (term.factor != 1) text += std::to_string(term.factor) + " * ";
    text += op.sizes[term.size].name;
  }
  if (axis.constant < 0) text += " - " + std::to_string(-axis.constant);
  if (axis.constant > 0) text += " + " + std::to_string(axis.constant);
  return text;
}

}  // namespace

void check_float(const char* name, double value) {
  if (value >= 0 && value <= FLT_MAX) return;  // a NaN is not
  throw Refusal(std::string(name) + " is " + std::to_string(value) +
                ", expected a finite number of at least 0");
}

int64_t Sizes::operator[](int32_t index) const {
  const Size& size = op_->sizes[index];
  if (!size.is_product()) return values_[index];
  const int64_t one = (*this)[size.factors[0]], other = (*this)[size.factors[1]];
  return one == kUnknown || other == kUnknown ? kUnknown : product(one, other);
}

int64_t Sizes::resolve(const Axis& axis) const {
  int64_t sum = axis.constant;
  for (const Term& term : axis.terms) {
    if (term.size == kNone) break;
    const int64_t value = (*this)[term.size];
    if (value == kUnknown) return kUnknown;
    if (__builtin_add_overflow(sum, product(term.factor, value), &sum)) return kTooMany;
  }
  return sum;
}

// Whether an axis depends on several sizes.
bool Sizes::has_several(const Tensor& tensor) const {
  return std::any_of(tensor.axes, tensor.axes + tensor.rank, [this](const Axis& axis) {
    const int32_t first = axis.terms[0].size;
    return axis.terms[1].size != kNone || (first != kNone && op_->sizes[first].is_product());
  });
}

// Whether the axis may have this number; sets the size that the axis alone does not know.
bool Sizes::take(const Axis& axis, int64_t given) {
  int64_t rest = 0;
  if (given < 0 || __builtin_sub_overflow(given, axis.constant, &rest)) return false;
  const Term* unknown = nullptr;
  for (const Term& term : axis.terms) {
    if (term.size == kNone) break;
    const int64_t value = (*this)[term.size];
    if (value != kUnknown) {
      if (__builtin_sub_overflow(rest, product(term.factor, value), &rest)) return false;
    } else if (unknown || op_->sizes[term.size].is_product()) {
      return true;  // several are not known: later tensors give them
    } else {
      unknown = &term;
    }
  }
  if (!unknown) return rest == 0;
  if (rest % unknown->factor != 0) return false;
  const int64_t value = rest / unknown->factor;
  if (value < 0) return false;
  values_[unknown->size] = value;
  return true;
}

void Sizes::refuse(const Tensor& tensor, const Shape& shape) const {
  throw Refusal(std::string(tensor.name) + " has shape " + text_of(shape) + ", expected " +
                expected(tensor));
}

void Sizes::match(const Tensor& tensor, const Shape& shape) {
  const Sizes before = *this;  // the message tells what was known before this tensor
  if (shape.rank != tensor.rank) refuse(tensor, shape);
  for (int32_t i = 0; i < tensor.rank; ++i) {
    if (shape[i] != kUnknown && !take(tensor.axes[i], shape[i])) before.refuse(tensor, shape);
  }
  for (int32_t i = 0; i < tensor.rank; ++i) {
    for (const Term& term : tensor.axes[i].terms) {
      if (term.size == kNone) break;
      if (values_[term.size] == 0) {
        throw Refusal(std::string(tensor.name) + " has shape " + text_of(shape) + ": " +
                      op_->sizes[term.size].name + " is 0, expected at least 1");
      }
    }
  }
}

void Sizes::estimate(const Tensor& tensor, const Shape& shape) {
  if (shape.rank != tensor.rank) refuse(tensor, shape);
  for (int32_t i = 0; i < tensor.rank; ++i) {
    if (shape[i] > 0) take(tensor.axes[i], shape[i]);
  }
}

void Sizes::check_divisors() const {
  for (int32_t i = 0; i < op_->sizes.count; ++i) {
    const Size& size = op_->sizes[i];
    if (size.divides == kNone) continue;
    const int64_t divisor = values_[i], whole = (*this)[size.divides];
    if (divisor == kUnknown || whole == kUnknown || whole % divisor == 0) continue;
    const auto gives_it = [i](const Tensor& tensor) {
      return std::any_of(tensor.axes, tensor.axes + tensor.rank,
                         [i](const Axis& axis) { return axis.terms[0].size == i; });
    };
    const Tensor& tensor = *std::find_if(op_->inputs.begin(), op_->inputs.end(), gives_it);
    throw Refusal(std::string(tensor.name) + " has " + size.name + " " + std::to_string(divisor) +
                  ", which does not divide " + op_->sizes[size.divides].name + " " +
                  std::to_string(whole));
  }
}

std::string Sizes::expected(const Tensor& tensor) const {
  std::string text = "(";
  for (int32_t i = 0; i < tensor.rank; ++i) {
    text += (i ? ", " : "") + text_of(*op_, tensor.axes[i]);
    const int64_t value = resolve(tensor.axes[i]);
    if (value != kUnknown) text += " = " + std::to_string(value);
  }
  return text + ")";
}

Params fill(const Operator& op, const Arguments& arguments) {
  const Sizes& sizes = arguments.sizes;
  Params params;
  for (int32_t i = 0; i < op.sizes.count; ++i) {
    if (!op.sizes[i].is_product()) params.put(op.sizes[i].offset, sizes[i]);
  }
  params.put(op.dtype_offset, arguments.dtypes.T);
  if (has_residual(op)) params.put(op.residual_dtype_offset, arguments.dtypes.R);
  if (has_state_dtype(op)) params.put(op.state_dtype_offset, arguments.dtypes.S);
  for (size_t offset : op.bits_offsets) params.put(offset, arguments.bits);
  for (int32_t i = 0; i < op.attributes.count; ++i) {
    const Attribute& attribute = op.attributes[i];
    if (attribute.kind == AttributeKind::kFloat) {
      params.put(attribute.offset, static_cast<float>(arguments.attributes[i]));
    } else {
      params.put(attribute.offset, static_cast<int>(arguments.attributes[i]));
    }
  }
  for (const Attribute& flag : op.flags_on) params.put(flag.offset, 1);
  if (op.constant_weights_offset != kNone) {
    params.put(op.constant_weights_offset, static_cast<int>(arguments.has_constant_weights));
  }
  if (!arguments.inputs) return params;
  for (int32_t i = 0; i < op.inputs.count; ++i) {
    const Tensor& tensor = op.inputs[i];
    if (tensor.role == Role::kStridedInput) {
      int64_t width = 1;  // of a step
      for (int32_t axis = 2; axis < tensor.rank; ++axis) {
        width = product(width, sizes.resolve(tensor.axes[axis]));
      }
      const int64_t length = sizes.resolve(tensor.axes[1]);
      params.put(tensor.offset, mamba_sequence{arguments.inputs[i], product(length, width), width});
    } else {
      params.put(tensor.offset, arguments.inputs[i]);
    }
  }
  for (int32_t i = 0; i < op.outputs.count; ++i) {
    params.put(op.outputs[i].offset, arguments.outputs[i]);
  }
  return params;
}

}  // namespace mamba_contract
