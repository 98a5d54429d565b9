// The TensorRT plugins under hostile fields, ranks, counts, sizes and types, with the harness in
// TensorRT's place: every call is answered, or refused with one line in the log.
#include <cuda_runtime_api.h>

#include <cmath>
#include <vector>

#include "common/checks.h"
#include "common/errors.h"
#include "contract.h"
#include "harness.h"
#include "seeded.h"
#include "selective_scan/cuda/scan_parts.h"

// --- What stands for the GPU: the checks of the kernels, and no kernel
// ----------------------------

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "no error"; }
mamba_status mamba_cuda_check_device(int) { return MAMBA_OK; }

size_t mamba_selective_scan_cuda_workspace(const mamba_selective_scan_params* params) {
  return mamba::check_sizes(params) == MAMBA_OK ? mamba::scan_workspace(*params) : 0;
}
mamba_status mamba_selective_scan_cuda(const mamba_selective_scan_params* params, void*, void*) {
  return mamba::check(params);
}
mamba_status mamba_causal_conv1d_cuda(const mamba_causal_conv1d_params* params, void*) {
  return mamba::check(params);
}
size_t mamba_state_space_dual_cuda_workspace(const mamba_state_space_dual_params* params) {
  return mamba::check_sizes(params) == MAMBA_OK ? 256 : 0;
}
mamba_status mamba_state_space_dual_cuda(const mamba_state_space_dual_params* params, void*,
                                         void*) {
  return mamba::check(params);
}
mamba_status mamba_gated_rms_norm_cuda(const mamba_gated_rms_norm_params* params, void*) {
  return mamba::check(params);
}
// TensorRT's plugins call none of the others; the table of operators names them.
mamba_status mamba_selective_scan_cpu(const mamba_selective_scan_params*, mamba_parallel_for,
                                      void*) {
  return MAMBA_INTERNAL;
}
mamba_status mamba_causal_conv1d_cpu(const mamba_causal_conv1d_params*, mamba_parallel_for, void*) {
  return MAMBA_INTERNAL;
}
mamba_status mamba_state_space_dual_cpu(const mamba_state_space_dual_params*, mamba_parallel_for,
                                        void*) {
  return MAMBA_INTERNAL;
}
mamba_status mamba_gated_rms_norm_cpu(const mamba_gated_rms_norm_params*, mamba_parallel_for,
                                      void*) {
  return MAMBA_INTERNAL;
}
mamba_status mamba_layer_cpu(const mamba_layer_params*, mamba_parallel_for, void*) {
  return MAMBA_INTERNAL;
}
mamba_status mamba2_layer_cpu(const mamba2_layer_params*, mamba_parallel_for, void*) {
  return MAMBA_INTERNAL;
}
int mamba_layer_is_step_cuda(const mamba_layer_params*) { return 0; }
size_t mamba_layer_cuda_workspace(const mamba_layer_params*) { return 0; }
mamba_status mamba_layer_step_cuda(const mamba_layer_params*, void*, void*) {
  return MAMBA_INTERNAL;
}
mamba_status mamba_layer_cuda(const mamba_layer_params*, mamba_multiply, void*, void*, void*) {
  return MAMBA_INTERNAL;
}
int mamba2_layer_is_step_cuda(const mamba2_layer_params*) { return 0; }
size_t mamba2_layer_cuda_workspace(const mamba2_layer_params*) { return 0; }
mamba_status mamba2_layer_step_cuda(const mamba2_layer_params*, void*, void*) {
  return MAMBA_INTERNAL;
}
mamba_status mamba2_layer_cuda(const mamba2_layer_params*, mamba_multiply, void*, void*, void*) {
  return MAMBA_INTERNAL;
}
int mamba_layer_packed_is_step_cuda(const mamba_layer_packed_params*) { return 0; }
size_t mamba_layer_packed_cuda_workspace(const mamba_layer_packed_params*) { return 0; }
mamba_status mamba_layer_packed_cuda(const mamba_layer_packed_params*, mamba_multiply, void*, void*,
                                     void*) {
  return MAMBA_INTERNAL;
}
int mamba2_layer_packed_is_step_cuda(const mamba2_layer_packed_params*) { return 0; }
size_t mamba2_layer_packed_cuda_workspace(const mamba2_layer_packed_params*) { return 0; }
mamba_status mamba2_layer_packed_cuda(const mamba2_layer_packed_params*, mamba_multiply, void*,
                                      void*, void*) {
  return MAMBA_INTERNAL;
}
mamba_status mamba_linear_cpu(const mamba_linear_params*, mamba_parallel_for, void*) {
  return MAMBA_INTERNAL;
}
int mamba_linear_packed_is_step_cuda(const mamba_linear_packed_params*) { return 0; }
size_t mamba_linear_packed_cuda_workspace(const mamba_linear_packed_params*) { return 0; }
mamba_status mamba_linear_packed_cuda(const mamba_linear_packed_params*, mamba_multiply, void*,
                                      void*, void*) {
  return MAMBA_INTERNAL;
}

}  // extern "C"

namespace {

using namespace mamba_contract;
using seeded::expect;
using seeded::Random;

constexpr int32_t kMostAxes = 8;
constexpr int32_t kFloat32 = 1, kInt32 = 5;  // nvinfer1::PluginFieldType
constexpr int32_t kMostOutputs = 2;          // of an operator that has a plugin

void* library() {
  static void* const opened = harness_open(nullptr, 10);  // this program has the plugins
  return opened;
}

// Whether the call was refused, which its log must say in one line; a call that was answered must
// not have logged.
void expect_logged(bool is_refused) {
  const std::string log = harness_log();
  expect(log.empty() != is_refused, is_refused ? "refused without a line" : "logged: " + log);
  expect(log.find('\n') == std::string::npos, "more than one line: " + log);
}

const Operator& row(int32_t creator) {
  for (const Operator& op : kOperators) {
    if (op.has_plugin && creator-- == 0) return op;
  }
  std::abort();
}

// A plugin of right fields, or of hostile ones; null where they were refused.
void* make(Random& random, int32_t creator, const Operator& op, bool is_hostile) {
  struct Value {
    int64_t data;  // of 8 bytes, so that a value of any type can be read
  } values[kMaxAttributes + 4];
  std::vector<harness_field> fields;
  const auto add = [&](const char* name, int32_t number) {
    values[fields.size()].data = number;
    fields.push_back({name, kInt32, 1, &values[fields.size()].data});
  };
  for (const Attribute& attribute : op.attributes) {
    add(attribute.name, static_cast<int32_t>(random.between(0, 1)));
    if (attribute.kind != AttributeKind::kFloat) continue;
    const float number = static_cast<float>(random.between(0, 1000)) / 1000.f;
    std::memcpy(&values[fields.size() - 1].data, &number, sizeof number);
    fields.back().type = kFloat32;
  }
  const int32_t phase = static_cast<int32_t>(random.between(0, 1));
  if (phase == 1) add("contract_version", kContractVersion);
  int32_t count = static_cast<int32_t>(fields.size());
  if (is_hostile) {
    static constexpr const char* kNames[] = {"",     "silu", "reverse", "contract_version",
                                             "%s%n", "a\nb", "\xff"};
    for (int64_t changes = random.between(1, 3); changes > 0; --changes) {
      harness_field& one = fields[random.between(0, static_cast<int64_t>(fields.size()) - 1)];
      switch (random.between(0, 5)) {
        case 0:
          one.name = random.once_in(8) ? nullptr : random.pick(kNames);
          break;
        case 1:
          one.type = static_cast<int32_t>(random.between(0, 12));
          break;
        case 2:
          one.length = static_cast<int32_t>(random.hostile_size());
          break;
        case 3:
          one.data = nullptr;
          break;
        case 4:
          const_cast<int64_t&>(*static_cast<const int64_t*>(
              one.data ? one.data : &values[0].data)) = random.hostile_size();
          break;
        default:
          count = static_cast<int32_t>(random.between(-1, static_cast<int64_t>(fields.size())));
      }
    }
  }
  void* made = harness_create(library(), creator, random.once_in(4) ? nullptr : "a layer",
                              fields.data(), count, phase);
  expect_logged(!made);
  expect(made || is_hostile, "right fields were refused");
  return made;
}

// The tensors of a node, from sizes that fit.
std::vector<harness_tensor> tensors_of(Random& random, const Operator& op) {
  int64_t sizes[kMaxSizes];
  for (int32_t i = 0; i < op.sizes.count; ++i) sizes[i] = random.between(2, 5);
  for (int32_t i = 0; i < op.sizes.count; ++i) {
    if (op.sizes[i].divides != kNone) sizes[op.sizes[i].divides] = sizes[i] * random.between(1, 3);
    const int32_t* const factors = op.sizes[i].factors;
    if (op.sizes[i].is_product()) sizes[i] = sizes[factors[0]] * sizes[factors[1]];
  }
  const int32_t T = static_cast<int32_t>(random.between(0, 1));  // fp32, fp16
  const int32_t R = random.once_in(2) ? T : 0;
  std::vector<harness_tensor> made;
  const int32_t count = op.inputs.count + op.outputs.count;
  for (int32_t position = 0; position < count; ++position) {
    const Tensor& tensor = at_position(op, position);
    harness_tensor one = {};
    one.rank = tensor.rank;
    one.type = tensor.dtype == DtypeClass::kT ? T : tensor.dtype == DtypeClass::kR ? R : 0;
    for (int32_t axis = 0; axis < tensor.rank; ++axis) {
      one.sizes[axis] = tensor.axes[axis].constant;
      for (const Term& term : tensor.axes[axis].terms) {
        if (term.size != kNone) one.sizes[axis] += term.factor * sizes[term.size];
      }
    }
    made.push_back(one);
  }
  return made;
}

void damage(Random& random, std::vector<harness_tensor>& tensors) {
  for (int64_t changes = random.between(1, 4); changes > 0; --changes) {
    harness_tensor& one = tensors[random.between(0, static_cast<int64_t>(tensors.size()) - 1)];
    switch (random.between(0, 3)) {
      case 0:
        one.rank = static_cast<int32_t>(random.once_in(4) ? random.next() : random.between(-2, 12));
        break;
      case 1:
        one.type = static_cast<int32_t>(random.between(0, 10));
        break;
      case 2:
        one.format = static_cast<int32_t>(random.between(0, 12));
        break;
      default:
        for (int64_t axes = random.between(1, 4); axes > 0; --axes) {
          one.sizes[random.between(0, kMostAxes - 1)] = random.hostile_size();
        }
    }
  }
}

void call(Random& random, void* plugin, const Operator& op, bool is_hostile) {
  std::vector<harness_tensor> tensors = tensors_of(random, op);
  if (is_hostile) damage(random, tensors);
  int32_t count = op.inputs.count;
  harness_tensor* const inputs = tensors.data();
  harness_tensor* const outputs = inputs + count;
  if (is_hostile && random.once_in(6)) count = static_cast<int32_t>(random.between(0, count));

  harness_tensor shapes[kMostOutputs] = {};
  int32_t types[kMostOutputs] = {};
  const int32_t statuses[] = {harness_output_shapes(plugin, inputs, count, shapes)};
  expect_logged(statuses[0] != 0);
  expect_logged(harness_output_types(plugin, inputs, count, types) != 0);
  const bool is_configured = harness_configure(plugin, inputs, count, outputs) == 0;
  expect_logged(!is_configured);
  const bool fits = harness_shape_change(plugin, inputs, count, outputs) == 0;
  expect_logged(!fits);
  expect(is_hostile || (is_configured && fits && statuses[0] == 0), "right shapes were refused");
  const size_t workspace = harness_workspace(plugin, inputs, count, outputs);
  harness_log();  // it has no other way to say that shapes do not fit
  expect(workspace <= size_t{1} << 30, "a workspace of " + std::to_string(workspace) + " bytes");
  harness_supports(plugin, static_cast<int32_t>(random.between(-2, count + op.outputs.count + 1)),
                   inputs, count, op.outputs.count);
  expect_logged(false);
  if (count != op.inputs.count) return;  // enqueue is not told how many there are

  alignas(256) static char memory[256];
  std::vector<const void*> data(static_cast<size_t>(count), memory);
  std::vector<void*> results(kMostOutputs, memory);
  if (is_hostile && random.once_in(2)) data[random.between(0, count - 1)] = nullptr;
  if (is_hostile && random.once_in(4)) results[random.between(0, 1)] = nullptr;
  const bool has_no_data = is_hostile && random.once_in(16);
  const bool ran =
      harness_enqueue(plugin, inputs, outputs, count, has_no_data ? nullptr : data.data(),
                      results.data(), memory, nullptr) == 0;
  expect_logged(!ran);
  expect(ran || is_hostile, "a right call was refused");
  expect(!ran || fits, "a call ran whose shapes were refused");
}

void run_case(Random& random, int64_t) {
  const int32_t creator =
      static_cast<int32_t>(random.between(0, harness_creator_count(library()) - 1));
  const Operator& op = row(creator);
  void* plugin = make(random, creator, op, random.once_in(2));
  if (!plugin) return;
  if (random.once_in(2)) {
    void* again = random.once_in(2) ? harness_clone(plugin) : harness_reload(library(), plugin);
    expect(again, "a copy was refused");
    harness_destroy(plugin);
    plugin = again;
  }
  call(random, plugin, op, !random.once_in(4));
  harness_destroy(plugin);
}

}  // namespace

int main(int argc, char** argv) { return seeded::run(argc, argv, 5000, run_case); }
