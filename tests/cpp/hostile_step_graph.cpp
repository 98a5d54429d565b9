// Captured steps on a CUDA runtime of this program's own, whose device is host memory: which copies
// a graph is refused for, that one which is replayed reads and writes no memory that is gone, and
// that the wait for a choice ends with it, or with what CUDA says.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "mamba_decode.h"
#include "seeded.h"

namespace {

using seeded::expect;
using seeded::Random;

struct Node {
  cudaGraphNodeType type;
  cudaMemcpy3DParms copy;
};

struct Runtime {
  std::vector<Node> queued;  // while it captures
  bool is_capturing = false;
  int graphs = 0;  // executable ones that live
  std::set<void*> host;
  int busy = 0;                            // queries of the stream that say it is at work
  cudaError_t state = cudaSuccess;         // what it says then
  std::vector<int64_t>* chosen = nullptr;  // what its work writes at its end
  std::vector<unsigned char> device = std::vector<unsigned char>(4096);
} runtime;

bool is_device(const void* memory) {
  const auto* at = static_cast<const unsigned char*>(memory);
  return at >= runtime.device.data() && at < runtime.device.data() + runtime.device.size();
}

cudaError_t queue(const Node& node) {
  if (runtime.is_capturing) runtime.queued.push_back(node);
  return cudaSuccess;
}

Node copy_of(void* to, const void* from, size_t bytes) {
  Node node = {cudaGraphNodeTypeMemcpy, {}};
  node.copy.dstPtr = {to, bytes, bytes, 1};
  node.copy.srcPtr = {const_cast<void*>(from), bytes, bytes, 1};
  node.copy.extent = {bytes, 1, 1};
  return node;
}

}  // namespace

// The part of CUDA's runtime that step_graph.cpp calls.
extern "C" {
struct CUgraph_st {
  std::vector<Node> nodes;
};
struct CUgraphExec_st {
  std::vector<Node> nodes;
};

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamQuery(cudaStream_t) {
  if (--runtime.busy >= 0) return cudaErrorNotReady;
  if (runtime.chosen) std::fill(runtime.chosen->begin(), runtime.chosen->end(), 7);
  return runtime.state;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory) {
  attributes->type = is_device(memory) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  if (bytes > 1 << 20) return cudaErrorMemoryAllocation;
  *memory = bytes ? new unsigned char[bytes] : nullptr;
  if (bytes) runtime.host.insert(*memory);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  expect(runtime.host.erase(memory) == 1, "memory is freed that is not there");
  delete[] static_cast<unsigned char*>(memory);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (bytes > 1 << 20) return cudaErrorMemoryAllocation;
  *memory = new unsigned char[bytes];
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  delete[] static_cast<unsigned char*>(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  return queue(copy_of(to, from, bytes));
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  runtime.is_capturing = true;
  runtime.queued.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  runtime.is_capturing = false;
  *graph = new CUgraph_st{runtime.queued};
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  *count = graph->nodes.size();
  for (size_t i = 0; nodes && i < *count; ++i) {
    nodes[i] = reinterpret_cast<cudaGraphNode_t>(&graph->nodes[i]);
  }
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  *type = reinterpret_cast<const Node*>(node)->type;
  return cudaSuccess;
}

cudaError_t cudaGraphMemcpyNodeGetParams(cudaGraphNode_t node, cudaMemcpy3DParms* copy) {
  *copy = reinterpret_cast<const Node*>(node)->copy;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph,
                                          unsigned long long) {
  *made = new CUgraphExec_st{graph->nodes};
  ++runtime.graphs;
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (const Node& node : graph->nodes) {
    const auto& copy = node.copy;  // AddressSanitizer looks at what it reads and writes
    if (node.type != cudaGraphNodeTypeMemcpy || copy.srcArray) continue;
    std::memcpy(static_cast<char*>(copy.dstPtr.ptr) + copy.dstPos.x,
                static_cast<char*>(copy.srcPtr.ptr) + copy.srcPos.x, copy.extent.width);
  }
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  --runtime.graphs;
  delete graph;
  return cudaSuccess;
}
}  // extern "C"

namespace {

unsigned char* host_alloc(size_t bytes) {
  void* memory = nullptr;
  expect(mamba_host_alloc(bytes, &memory) == MAMBA_OK && memory, "no host memory");
  return static_cast<unsigned char*>(memory);
}

// Captures a node beside a sound copy; null where it is refused, which the text must say.
void* captured(const Node& node) {
  mamba_capture_begin(nullptr);
  mamba_copy(runtime.device.data(), runtime.device.data() + 512, 16, nullptr);
  queue(node);
  void* graph = nullptr;
  const bool is_refused = mamba_capture_end(nullptr, &graph) != MAMBA_OK;
  expect(is_refused == !graph, "a status without what it says");
  if (is_refused) {
    expect(
        std::string(mamba_last_error()).find("cannot be captured: it holds") != std::string::npos,
        mamba_last_error());
  }
  return graph;
}

void expect_refused(const Node& node, const char* what) { expect(!captured(node), what); }

// A sample in and a forecast out, whose memory is freed before the graph is: replayed all the same.
void try_replay(Random& random) {
  const size_t size = random.between(1, 256);
  unsigned char* const device = runtime.device.data() + 1024;
  unsigned char *sample = host_alloc(size), *forecast = host_alloc(size);
  mamba_capture_begin(nullptr);
  mamba_copy(device, sample, size, nullptr);
  mamba_copy(forecast, device, size, nullptr);
  void* graph = nullptr;
  expect(mamba_capture_end(nullptr, &graph) == MAMBA_OK, mamba_last_error());
  for (int step = 0; step < 3; ++step) {
    random.fill(sample, size);
    expect(mamba_graph_run(graph, nullptr) == MAMBA_OK, mamba_last_error());
    expect(std::memcmp(sample, forecast, size) == 0, "a replay copied something else");
  }
  for (unsigned char* one : {sample, forecast}) {
    mamba_host_free(one);
    mamba_host_free(one);
    expect_refused(copy_of(device, one, size), "a copy from memory that was freed");
  }
  expect(runtime.host.size() == 2, "a graph's memory is gone before the graph");
  mamba_graph_run(graph, nullptr);
  mamba_graph_destroy(graph);
}

// A copy with one side in host memory: captured where it lies in one block of ours, and only there.
void try_copy(Random& random) {
  const size_t size = random.between(1, 256), offset = random.between(0, 300);
  const size_t bytes = random.once_in(4) ? static_cast<size_t>(random.hostile_size())
                                         : static_cast<size_t>(random.between(1, 300));
  unsigned char* const host = host_alloc(size);
  unsigned char* const device = runtime.device.data() + 1024;
  const bool is_upload = random.once_in(2), by_position = random.once_in(2);
  unsigned char* const at = by_position ? host : host + offset;
  Node node = is_upload ? copy_of(device, at, bytes) : copy_of(at, device, bytes);
  if (by_position) (is_upload ? node.copy.srcPos : node.copy.dstPos).x = offset;
  const bool fits = offset <= size && bytes <= size - offset;
  void* const graph = captured(node);
  expect(!graph == !fits, "whether a copy lies in a block");
  mamba_host_free(host);
  if (graph) mamba_graph_run(graph, nullptr);
  if (graph) mamba_graph_destroy(graph);
}

void try_refused() {
  unsigned char stack[64];
  unsigned char* const host = host_alloc(64);
  unsigned char* const device = runtime.device.data();
  expect_refused(copy_of(device, stack, 64), "a copy from others' memory");
  expect_refused(copy_of(stack, device, 64), "a copy to others' memory");
  expect_refused(copy_of(host, stack, 64), "a copy between host memory of ours and of others");
  expect_refused({cudaGraphNodeTypeHost, {}}, "a call of the host");
  Node node = copy_of(device, host, 16);
  node.copy.extent.height = 2;
  expect_refused(node, "several rows");
  node = copy_of(device, host, 16);
  node.copy.srcArray = reinterpret_cast<cudaArray_t>(device);
  expect_refused(node, "an array");
  mamba_host_free(host);
  void* none = &node;
  expect(mamba_host_alloc(size_t{1} << 40, &none) == MAMBA_OUT_OF_MEMORY && !none,
         "memory for all");
  expect(mamba_host_alloc(0, &none) == MAMBA_OK && !none, "memory for nothing");
  expect(mamba_device_alloc(0, size_t{1} << 40, &none) == MAMBA_OUT_OF_MEMORY && !none,
         "the device's memory for all");
  expect(std::string(mamba_last_error()).find("failed to allocate 1099511627776 bytes") !=
             std::string::npos,
         mamba_last_error());
  expect(mamba_device_alloc(0, 64, &none) == MAMBA_OK && none, "no memory of the device");
  mamba_device_free(none);
  mamba_device_free(nullptr);
  mamba_host_free(nullptr);
  mamba_host_free(stack);
}

void try_wait(Random& random) {
  std::vector<int64_t> tokens(static_cast<size_t>(random.between(1, 5)), 3);
  const auto batch = static_cast<int64_t>(tokens.size());
  expect(mamba_wait_choice(tokens.data(), batch, nullptr) == MAMBA_OK, "a choice that is there");
  const auto wait = [&](cudaError_t state, bool chooses) {
    tokens[static_cast<size_t>(random.between(0, batch - 1))] = MAMBA_NOT_CHOSEN;
    runtime.busy = static_cast<int>(random.between(0, 2));
    runtime.state = state;
    runtime.chosen = chooses ? &tokens : nullptr;
    return mamba_wait_choice(tokens.data(), batch, nullptr);
  };
  expect(wait(cudaSuccess, true) == MAMBA_OK, "a choice that comes with the end");
  expect(tokens == std::vector<int64_t>(tokens.size(), 7), "it returns before all is chosen");
  expect(wait(cudaSuccess, false) == MAMBA_INTERNAL, "work that ends without a choice");
  expect(wait(cudaErrorIllegalAddress, false) == MAMBA_CUDA_ERROR, "work that failed");
}

}  // namespace

int main(int argc, char** argv) {
  return seeded::run(argc, argv, 2000, [](Random& random, int64_t) {
    const int64_t which = random.between(0, 9);
    which < 1   ? try_refused()
    : which < 3 ? try_wait(random)
    : which < 5 ? try_replay(random)
                : try_copy(random);
    expect(runtime.host.empty(), "host memory is left");
    expect(runtime.graphs == 0, "a graph is left");
  });
}
