// A call of an operator as its row in the contract's table describes it, with drawn numbers.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "contract.h"
#include "kernel_cases.h"
#include "plain_loops.h"

namespace check {

using mamba_contract::AttributeKind;
using mamba_contract::Dtypes;
using mamba_contract::kNone;
using mamba_contract::Operator;
using mamba_contract::Tensor;

constexpr const char* kDtypes[] = {"fp32", "fp16", "bf16"};
// One call of an operator: its tensors, and how it is made.
struct Case {
  const Operator& op;
  const cases::Sizes& sizes;
  Dtypes dtypes;
  bool constant_weights;
  plain::Call values;                               // what the truth reads
  mamba_contract::AttributeValues attributes = {};  // the same, by position

  std::string text() const {
    std::string found = std::string(op.name) + " " + kDtypes[dtypes.T];
    if (has_residual(op)) found += std::string("/") + kDtypes[dtypes.R];
    if (has_state_dtype(op)) found += std::string("/") + kDtypes[dtypes.S];
    for (size_t i = 0; i < sizes.size(); ++i) {
      found += (i ? ", " : " (") + std::to_string(sizes[i]);
    }
    found += ")";
    for (int32_t i = 0; i < op.attributes.count; ++i) {
      if (op.attributes[i].kind == AttributeKind::kFlag && attributes[i] != 0) {
        found += std::string(" ") + op.attributes[i].name;
      }
    }
    return found;
  }

  std::vector<int64_t> shape_of(const Tensor& tensor) const {
    std::vector<int64_t> values;  // of all sizes, products too
    size_t given = 0;
    for (const mamba_contract::Size& size : op.sizes) {
      values.push_back(size.is_product() ? values[size.factors[0]] * values[size.factors[1]]
                                         : sizes[given++]);
    }
    std::vector<int64_t> shape;
    for (int32_t i = 0; i < tensor.rank; ++i) {
      int64_t length = tensor.axes[i].constant;
      for (const mamba_contract::Term& term : tensor.axes[i].terms) {
        if (term.size != kNone) length += term.factor * values[term.size];
      }
      shape.push_back(length);
    }
    return shape;
  }
};

inline std::vector<char> bytes_of(const plain::Array& array, mamba_dtype dtype) {
  std::vector<char> bytes(array.values.size() * plain::bytes_of(dtype));
  for (size_t i = 0; i < array.values.size(); ++i) {
    plain::store(bytes.data(), i, dtype, array.values[i]);
  }
  return bytes;
}

inline void draw(Case& c, std::mt19937& random) {
  bool has_softplus = true, limited = random() % 4 == 0;
  for (int32_t i = 0; i < c.op.attributes.count; ++i) {
    const mamba_contract::Attribute& one = c.op.attributes[i];
    const bool is_flag = one.kind == AttributeKind::kFlag;
    c.attributes[i] = is_flag ? random() % 2 : cases::number_of(one.name, limited);
    c.values.attributes[one.name] = c.attributes[i];
    if (is_flag && std::string(one.name).find("softplus") != std::string::npos) {
      has_softplus = c.attributes[i] != 0;
    }
  }
  for (const mamba_contract::Attribute& flag : c.op.flags_on) c.values.attributes[flag.name] = 1;
  c.values.dtype = c.dtypes.T;
  for (const Tensor& tensor : c.op.inputs) {
    plain::Array array(c.shape_of(tensor));
    const cases::Draw from = cases::draw_of(tensor.name, array.shape[0], has_softplus);
    std::normal_distribution<double> normal(from.mean, from.spread);
    for (double& value : array.values) value = normal(random);
    c.values.inputs[tensor.name] = std::move(array).rounded_to(c.dtypes.of(tensor));
  }
}

}  // namespace check
