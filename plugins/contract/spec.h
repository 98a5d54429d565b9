// What an operator is, as values: the types of the rows in table.h, which mirror
// mamba_export/contract/spec.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mamba_kernels.h"

namespace mamba_contract {

constexpr int32_t kNone = -1;  // no such field, tensor or size

// What its terms and a number add up to: d_inner, d_conv - 1, dt_rank + 2 * d_state.
struct Term {
  int32_t size = kNone;  // index into the operator's sizes
  int64_t factor = 1;
};
constexpr int32_t kMaxTerms = 3;
struct Axis {
  Term terms[kMaxTerms];  // those after the last have no size
  int64_t constant = 0;
};
constexpr int32_t kMaxAxes = 4;

// The operator's own dtype; a residual stream's, and states' beside it, each fp32 or T; fp32
// whatever T is; codes of a packed matrix.
enum class DtypeClass { kT, kR, kS, kFp32, kQ };

// Values of one type, of an array that lasts as long as the process.
template <typename Value>
struct List {
  const Value* first = nullptr;
  int32_t count = 0;

  constexpr List() = default;
  template <size_t Count>
  constexpr List(const Value (&values)[Count]) : first(values), count(Count) {}
  constexpr const Value* begin() const { return first; }
  constexpr const Value* end() const { return first + count; }
  constexpr const Value& operator[](int32_t index) const { return first[index]; }
};

// A size, of at least 1.
struct Size {
  const char* name;
  size_t offset;            // of its field in the parameter struct, an int64_t
  int32_t divides = kNone;  // index of a size
  // Indices of the two sizes whose product it is: no tensor gives it, and no field has it.
  int32_t factors[2] = {kNone, kNone};

  constexpr bool is_product() const { return factors[0] != kNone; }
};

enum class Role {
  kInput,
  kStridedInput,  // its field in the parameter struct is a mamba_sequence; of the others a pointer
  kWeight,        // an input that is stored in the file
  kOutput,
  kLastState  // an output that the next call takes as an input
};

struct Tensor {
  const char* name;
  Role role;
  DtypeClass dtype;
  int32_t rank;
  Axis axes[kMaxAxes];
  size_t offset;         // of its field in the parameter struct
  int32_t like = kNone;  // of an output: the input that has its axes and dtype
};

enum class AttributeKind { kFlag, kFloat };

struct Attribute {
  const char* name;
  AttributeKind kind;
  size_t offset;  // of its field in the parameter struct: an int or a float
};

// The operator's functions of mamba_kernels.h. params is the operator's struct.
struct Kernels {
  // Null where the row has no kernel for CPUs.
  mamba_status (*cpu)(const void* params, mamba_parallel_for parallel_for, void* scheduler);
  // Bytes for these sizes; reads no tensor.
  size_t (*cuda_workspace)(const void* params);
  // Null where the row has none for GPUs.
  mamba_status (*cuda)(const void* params, void* workspace, void* stream);
  // Null, but for an operator whose kernel calls back for large products: where these sizes need
  // them, cuda_with_products takes the place of cuda.
  bool (*needs_products)(const void* params);
  mamba_status (*cuda_with_products)(const void* params, mamba_multiply multiply, void* context,
                                     void* workspace, void* stream);
};

// A form of an operator: a node that a file may hold.
struct Operator {
  const char* name;
  List<Size> sizes;
  List<Attribute> attributes;
  List<Tensor> inputs;
  List<Tensor> outputs;
  size_t params_bytes;  // of the parameter struct, and offsets of fields in it
  size_t dtype_offset;
  int32_t residual_dtype_offset;    // kNone where no tensor is of class R
  int32_t state_dtype_offset;       // kNone where no tensor is of class S
  int32_t constant_weights_offset;  // kNone where the kernel does not ask
  List<Attribute> flags_on;         // the flags that this name sets
  bool has_cpu_kernel;
  bool has_plugin;  // TensorRT can run it: its CUDA kernel never calls back
  const Kernels* kernels;
  List<size_t> bits_offsets;      // of the numbers of bits of packed matrices; empty without
  bool has_signed_codes = false;  // else codes of packed matrices are unsigned

  constexpr bool is_packed() const { return bits_offsets.count > 0; }
};

}  // namespace mamba_contract
