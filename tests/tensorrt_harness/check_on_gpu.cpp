// Runs every operator of a TensorRT plugin library on the GPU, directly and from a CUDA graph, and
// holds the results against the CPU's kernels. A program of its own, so that compute-sanitizer can
// watch it: each tensor has its own allocation of its exact size, and outputs start as NaN.
//
//   compute-sanitizer --tool memcheck check_on_gpu libmamba_export_trt.so
//   compute-sanitizer --tool racecheck check_on_gpu libmamba_export_trt.so
#include <NvInferRuntime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "harness.h"
#include "mamba_kernels.h"

namespace {

struct Case {
  int64_t batch, length, inner, state, groups;
};

// A step, awkward lengths, a length that is split, several groups, few and many states, many
// channels.
constexpr Case kCases[] = {{1, 1, 24, 16, 1},   {3, 1, 40, 128, 1},  {2, 65, 24, 16, 3},
                           {1, 1000, 8, 16, 1}, {1, 70, 16, 256, 1}, {2, 129, 20, 8, 1},
                           {1, 7, 6, 1, 1},     {2, 40, 1536, 16, 1}};

[[noreturn]] void fail(const std::string& text) {
  fprintf(stderr, "check_on_gpu: %s\n", text.c_str());
  exit(1);
}

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(error));
}

// fp32 numbers in one of the operators' types, on the host and on the device.
struct Buffer {
  harness_tensor tensor{};
  std::vector<char> bytes;
  void* device = nullptr;

  Buffer() = default;
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(tensor, other.tensor);
    std::swap(bytes, other.bytes);
    std::swap(device, other.device);
    return *this;
  }
  ~Buffer() { cudaFree(device); }

  Buffer(std::vector<int64_t> shape, mamba_dtype dtype) {
    static constexpr nvinfer1::DataType types[] = {
        nvinfer1::DataType::kFLOAT, nvinfer1::DataType::kHALF, nvinfer1::DataType::kBF16};
    tensor.rank = static_cast<int32_t>(shape.size());
    size_t count = 1;
    for (size_t i = 0; i < shape.size(); ++i) {
      tensor.sizes[i] = shape[i];
      count *= static_cast<size_t>(shape[i]);
    }
    tensor.type = static_cast<int32_t>(types[dtype]);
    bytes.assign(count * (dtype == MAMBA_FP32 ? 4 : 2), '\xff');  // NaN in every type
    check(cudaMalloc(&device, bytes.size()), "cudaMalloc");
    to_device();
  }

  size_t count() const { return bytes.size() / (is(nvinfer1::DataType::kFLOAT) ? 4 : 2); }
  bool is(nvinfer1::DataType type) const { return tensor.type == static_cast<int32_t>(type); }

  void set(size_t i, float value) {
    if (is(nvinfer1::DataType::kFLOAT)) {
      std::memcpy(&bytes[4 * i], &value, 4);
    } else if (is(nvinfer1::DataType::kHALF)) {
      const __half half = __float2half(value);
      std::memcpy(&bytes[2 * i], &half, 2);
    } else {
      const __nv_bfloat16 brain = __float2bfloat16(value);
      std::memcpy(&bytes[2 * i], &brain, 2);
    }
  }
  float get(size_t i) const {
    if (is(nvinfer1::DataType::kFLOAT)) {
      float value;
      std::memcpy(&value, &bytes[4 * i], 4);
      return value;
    }
    if (is(nvinfer1::DataType::kHALF)) {
      __half half;
      std::memcpy(&half, &bytes[2 * i], 2);
      return __half2float(half);
    }
    __nv_bfloat16 brain;
    std::memcpy(&brain, &bytes[2 * i], 2);
    return __bfloat162float(brain);
  }
  void draw(std::mt19937& random, float mean, float spread) {
    std::normal_distribution<float> normal(mean, spread);
    for (size_t i = 0; i < count(); ++i) set(i, normal(random));
    to_device();
  }
  void to_device() {
    check(cudaMemcpy(device, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "upload");
  }
  std::vector<char> from_device() const {
    std::vector<char> found(bytes.size());
    check(cudaMemcpy(found.data(), device, found.size(), cudaMemcpyDeviceToHost), "download");
    return found;
  }
};

struct Call {
  std::string name;
  bool flag, reverse;
  std::vector<Buffer> inputs, outputs;

  std::vector<harness_tensor> tensors(const std::vector<Buffer>& buffers) const {
    std::vector<harness_tensor> found;
    for (const Buffer& buffer : buffers) found.push_back(buffer.tensor);
    return found;
  }
};

Call make_call(const std::string& name, const Case& c, mamba_dtype dtype, bool flag, bool reverse,
               std::mt19937& random) {
  Call call{name, flag, reverse, {}, {}};
  const auto input = [&](std::vector<int64_t> shape, mamba_dtype type, float mean, float spread) {
    call.inputs.emplace_back(std::move(shape), type);
    call.inputs.back().draw(random, mean, spread);
  };
  const std::vector<int64_t> sequence{c.batch, c.length, c.inner};
  if (name == "CausalConv1d") {
    input(sequence, dtype, 0, 1);
    input({c.inner, 4}, MAMBA_FP32, 0, 0.5F);
    input({c.inner}, MAMBA_FP32, 0, 1);
    input({c.batch, c.inner, 3}, dtype, 0, 1);
  } else {
    const std::vector<int64_t> wide{c.batch, c.length, c.groups, c.state};
    input(sequence, dtype, 0, 1);
    input(sequence, dtype, flag ? 0 : 2, 0.3F);  // without softplus a step must not be negative
    input({c.inner, c.state}, MAMBA_FP32, -2, 0.2F);
    input(wide, dtype, 0, 1);
    input(wide, dtype, 0, 1);
    input({c.inner}, MAMBA_FP32, 0, 1);
    if (name == "SelectiveScan") input(sequence, dtype, 0, 1);
    input({c.inner}, MAMBA_FP32, 0, 0.2F);
    input({c.batch, c.inner, c.state}, MAMBA_FP32, 0, 1);
  }
  call.outputs.emplace_back(sequence, dtype);
  std::vector<int64_t> state(call.inputs.back().tensor.sizes, call.inputs.back().tensor.sizes + 3);
  call.outputs.emplace_back(state, name == "CausalConv1d" ? dtype : MAMBA_FP32);
  return call;
}

// What the CPU's kernels make of the same bytes, into the outputs' host side.
void run_on_cpu(Call& call, const Case& c, mamba_dtype dtype) {
  size_t next = 0;
  const auto data = [&] { return call.inputs[next++].bytes.data(); };
  const auto numbers = [&] { return reinterpret_cast<const float*>(data()); };
  const auto sequence = [&](int64_t width) {
    return mamba_sequence{data(), c.length * width, width};
  };
  mamba_status status;
  if (call.name == "CausalConv1d") {
    mamba_causal_conv1d_params p{};
    p.batch = c.batch, p.length = c.length, p.channels = c.inner, p.d_conv = 4, p.dtype = dtype;
    p.silu = call.flag, p.reverse = call.reverse;
    p.x = sequence(c.inner), p.weight = numbers(), p.bias = numbers(), p.initial_state = data();
    p.y = call.outputs[0].bytes.data(), p.last_state = call.outputs[1].bytes.data();
    status = mamba_causal_conv1d_cpu(&p, nullptr, nullptr);
  } else {
    mamba_selective_scan_params p{};
    p.batch = c.batch, p.length = c.length, p.d_inner = c.inner, p.d_state = c.state;
    p.n_groups = c.groups, p.dtype = dtype;
    p.delta_softplus = call.flag, p.reverse = call.reverse;
    p.u = sequence(c.inner), p.delta = sequence(c.inner), p.A = numbers();
    p.B = sequence(c.groups * c.state), p.C = sequence(c.groups * c.state), p.D = numbers();
    if (call.name == "SelectiveScan") p.z = sequence(c.inner);
    p.delta_bias = numbers(), p.initial_state = numbers();
    p.y = call.outputs[0].bytes.data();
    p.last_state = reinterpret_cast<float*>(call.outputs[1].bytes.data());
    status = mamba_selective_scan_cpu(&p, nullptr, nullptr);
  }
  if (status != MAMBA_OK) fail(std::string("the CPU's kernel: ") + mamba_last_error());
}

// ||found - expected|| / ||expected||
double relative_error(Buffer& expected, const std::vector<char>& found) {
  double difference = 0, scale = 0;
  std::vector<float> truth(expected.count());
  for (size_t i = 0; i < truth.size(); ++i) truth[i] = expected.get(i);
  const std::vector<char> kept = expected.bytes;
  expected.bytes = found;
  for (size_t i = 0; i < truth.size(); ++i) {
    const double off = double(expected.get(i)) - truth[i];
    difference += off * off;
    scale += double(truth[i]) * truth[i];
  }
  expected.bytes = kept;
  return std::sqrt(difference / scale);
}

void* prepare(void* library, int32_t creator, const Call& call) {
  const int32_t reverse = call.reverse, flag = call.flag;
  constexpr int32_t kInt32 = static_cast<int32_t>(nvinfer1::PluginFieldType::kINT32);
  const harness_field fields[] = {
      {"reverse", kInt32, 1, &reverse},
      {call.name == "CausalConv1d" ? "silu" : "delta_softplus", kInt32, 1, &flag}};
  void* built = harness_create(library, creator, "node", fields, 2, 0);
  if (!built) fail("create: " + std::string(harness_log()));
  void* loaded = harness_reload(library, built);
  if (!loaded) fail("reload: " + std::string(harness_log()));
  void* attached = harness_attach(loaded);
  if (!attached) fail("attach: " + std::string(harness_log()));
  harness_destroy(loaded);
  harness_destroy(built);
  return attached;
}

void check_call(void* library, int32_t creator, Call& call, const Case& c, mamba_dtype dtype) {
  static constexpr const char* names[] = {"fp32", "fp16", "bf16"};
  static constexpr double bounds[] = {2e-5, 2e-3, 1.6e-2};
  const std::string where = call.name + " " + names[dtype] + " (" + std::to_string(c.batch) + ", " +
                            std::to_string(c.length) + ", " + std::to_string(c.inner) +
                            ") d_state " + std::to_string(c.state) +
                            (call.reverse ? " reverse" : "");
  void* plugin = prepare(library, creator, call);
  const auto in = call.tensors(call.inputs), out = call.tensors(call.outputs);
  const auto count = static_cast<int32_t>(in.size());
  std::vector<const void*> input_data;
  for (const Buffer& buffer : call.inputs) input_data.push_back(buffer.device);
  void* const output_data[] = {call.outputs[0].device, call.outputs[1].device};
  const size_t workspace_bytes = harness_workspace(plugin, in.data(), count, out.data());
  void* workspace = nullptr;
  if (workspace_bytes) check(cudaMalloc(&workspace, workspace_bytes), "workspace");
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");

  const auto enqueue = [&] {
    if (harness_enqueue(plugin, in.data(), out.data(), count, input_data.data(), output_data,
                        workspace, stream)) {
      fail(where + ": enqueue: " + harness_log());
    }
  };
  if (harness_shape_change(plugin, in.data(), count, out.data()))
    fail(where + ": " + harness_log());
  enqueue();
  check(cudaStreamSynchronize(stream), where.c_str());
  const std::vector<char> direct[] = {call.outputs[0].from_device(), call.outputs[1].from_device()};

  for (Buffer& buffer : call.outputs) buffer.to_device();  // NaN again
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  enqueue();
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&executable, graph, 0), "graph");
  check(cudaGraphLaunch(executable, stream), "graph");
  check(cudaStreamSynchronize(stream), where.c_str());

  double error = 0;
  for (int32_t i = 0; i < 2; ++i) {
    if (call.outputs[i].from_device() != direct[i]) fail(where + ": the graph gives other bits");
  }
  run_on_cpu(call, c, dtype);
  for (int32_t i = 0; i < 2; ++i) {
    const double own = relative_error(call.outputs[i], direct[i]);
    error = std::isnan(own) || own > error ? own : error;
  }
  printf("%-70s %.1e\n", where.c_str(), error);
  if (!(error <= bounds[dtype])) fail(where + ": too far from the CPU's result");
  check(cudaGraphExecDestroy(executable), "graph");
  check(cudaGraphDestroy(graph), "graph");
  check(cudaStreamDestroy(stream), "stream");
  check(cudaFree(workspace), "workspace");
  harness_destroy(plugin);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) fail("expected one argument, the plugin library");
  void* library = harness_open(argv[1], 0);  // no logger: errors go to standard error
  if (!library) fail(harness_log());
  std::mt19937 random(0);
  int checks = 0;
  for (int32_t creator = 0; creator < harness_creator_count(library); ++creator) {
    const std::string name = harness_creator_text(library, creator, 0);
    for (const mamba_dtype dtype : {MAMBA_FP32, MAMBA_FP16, MAMBA_BF16}) {
      for (const Case& c : kCases) {
        const bool reverse = checks % 2;
        Call call = make_call(name, c, dtype, checks % 3 != 0, reverse, random);
        check_call(library, creator, call, c, dtype);
        ++checks;
      }
    }
  }
  printf("%d checks passed\n", checks);
  return 0;
}
