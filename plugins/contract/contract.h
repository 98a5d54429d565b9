// A call of an operator, by its row: what its tensors' shapes say, and the parameters of its
// kernels.
#pragma once

#include <algorithm>
#include <cstring>
#include <iterator>
#include <new>
#include <stdexcept>
#include <string>

#include "table.h"

namespace mamba_contract {

// The most that a row of the table has of something.
template <typename Count>
constexpr size_t most(Count count) {
  size_t found = 0;
  for (const Operator& op : kOperators) {
    const size_t own = static_cast<size_t>(count(op));
    if (own > found) found = own;
  }
  return found;
}
constexpr size_t kMaxSizes = most([](const Operator& op) { return op.sizes.count; });
constexpr size_t kMaxAttributes = most([](const Operator& op) { return op.attributes.count; });
constexpr size_t kMaxInputs = most([](const Operator& op) { return op.inputs.count; });
constexpr size_t kMaxOutputs = most([](const Operator& op) { return op.outputs.count; });
constexpr size_t kMaxParamsBytes = most([](const Operator& op) { return op.params_bytes; });

// The tensor at a position that counts inputs, then outputs.
constexpr const Tensor& at_position(const Operator& op, int32_t position) {
  return position < op.inputs.count ? op.inputs[position] : op.outputs[position - op.inputs.count];
}

// Index of the first input of a class, whose dtype the others follow; kNone where there is none.
constexpr int32_t first_of(const Operator& op, DtypeClass dtype) {
  for (int32_t index = 0; index < op.inputs.count; ++index) {
    if (op.inputs[index].dtype == dtype) return index;
  }
  return kNone;
}

constexpr bool has_residual(const Operator& op) { return op.residual_dtype_offset != kNone; }
constexpr bool has_state_dtype(const Operator& op) { return op.state_dtype_offset != kNone; }

// Why a call cannot be done, with the status that the kernels have for it.
struct Failure : std::runtime_error {
  Failure(mamba_status status_, const std::string& text)
      : std::runtime_error(text), status(status_) {}
  mamba_status status;
};

// What is refused; the text names the tensor, the attribute or the field and what was expected.
struct Refusal : Failure {
  explicit Refusal(const std::string& text) : Failure(MAMBA_INVALID, text) {}
};

// Throws what a kernel answered, unless it is MAMBA_OK.
inline void check(mamba_status status) {
  if (status != MAMBA_OK) throw Failure(status, mamba_last_error());
}

// What an exception that is no Failure is: no memory, or a fault of ours.
inline mamba_status status_of(const std::exception& error) {
  if (const auto* failure = dynamic_cast<const Failure*>(&error)) return failure->status;
  return dynamic_cast<const std::bad_alloc*>(&error) ? MAMBA_OUT_OF_MEMORY : MAMBA_INTERNAL;
}
inline std::string text_of(const std::exception& error) {
  const mamba_status status = status_of(error);
  if (status == MAMBA_OUT_OF_MEMORY && !dynamic_cast<const Failure*>(&error)) {
    return "failed to allocate memory";
  }
  return (status == MAMBA_INTERNAL ? "an internal error: " : "") + std::string(error.what());
}

// Throws Refusal unless the value is one that a float attribute may have.
void check_float(const char* name, double value);

// The sizes of a tensor's axes, as many as it has itself: its row may have another number.
struct Shape {
  const int64_t* sizes;
  int32_t rank;
  int64_t operator[](int32_t axis) const { return sizes[axis]; }
};

// The sizes of one call. A size that is not known yet, such as a dynamic batch while an engine is
// built, is kUnknown and agrees with every value.
class Sizes {
 public:
  static constexpr int64_t kUnknown = -1;

  explicit Sizes(const Operator& op) : op_(&op) {
    std::fill(std::begin(values_), std::end(values_), kUnknown);
  }

  int64_t operator[](int32_t size) const;

  // An axis in numbers; kUnknown where a size of it is.
  int64_t resolve(const Axis& axis) const;

  // Takes the shape of every input, shape_of(index) -> Shape. The first tensor that gives a size
  // sets it, the others must agree: throws Refusal where a shape is not its tensor's, or where a
  // size does not divide the one that it must.
  template <typename ShapeOf>
  void match(ShapeOf shape_of) {
    // A tensor may give two sizes in one axis: the second pass compares them when both are known.
    for (int pass = 0; pass < 2; ++pass) {
      for (int32_t i = 0; i < op_->inputs.count; ++i) {
        const Tensor& tensor = op_->inputs[i];
        if (pass == 1 && !has_several(tensor)) continue;
        match(tensor, shape_of(i));
      }
    }
    check_divisors();
  }

  // Takes the shape of an input where it gives a size that is not known. Throws Refusal where the
  // number of axes is not the tensor's, and checks nothing else.
  void estimate(const Tensor& tensor, const Shape& shape);

 private:
  bool has_several(const Tensor& tensor) const;
  void match(const Tensor& tensor, const Shape& shape);
  [[noreturn]] void refuse(const Tensor& tensor, const Shape& shape) const;
  bool take(const Axis& axis, int64_t given);
  void check_divisors() const;
  std::string expected(const Tensor& tensor) const;

  const Operator* op_;
  int64_t values_[kMaxSizes];
};

// Values of an operator's attributes, in its order: a flag as 0 or 1; a float without loss.
using AttributeValues = double[kMaxAttributes];

// The dtypes of a call's tensors, by their class.
struct Dtypes {
  mamba_dtype T, R, S;  // R and S are read of an operator that has them

  mamba_dtype of(const Tensor& tensor) const {
    switch (tensor.dtype) {
      case DtypeClass::kT:
        return T;
      case DtypeClass::kR:
        return R;
      case DtypeClass::kS:
        return S;
      default:
        return MAMBA_FP32;
    }
  }
};

// What a call is made of, by position in the operator's row. All tensors are dense.
struct Arguments {
  const Sizes& sizes;
  const Dtypes& dtypes;
  const AttributeValues& attributes;
  bool has_constant_weights;
  const void* const* inputs;  // null, and outputs too, where sizes alone are asked about
  void* const* outputs;
  int bits = 0;  // of the codes of packed matrices
};

// The bytes of an operator's parameter struct.
class Params {
 public:
  const void* get() const { return bytes_; }

  template <typename Value>
  void put(size_t offset, const Value& value) {
    std::memcpy(bytes_ + offset, &value, sizeof value);
  }

 private:
  alignas(std::max_align_t) unsigned char bytes_[kMaxParamsBytes] = {};
};

// The one place where a kernel's parameters are filled.
Params fill(const Operator& op, const Arguments& arguments);

}  // namespace mamba_contract
