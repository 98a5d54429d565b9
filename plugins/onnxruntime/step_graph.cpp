// Streams, memory and CUDA graphs: what mamba_decode.h promises but for the
// choice.
//
// The graph is captured here, not by ONNX Runtime's enable_cuda_graph, because that keeps a graph,
// and the handles of cuBLAS and cuDNN, for every thread that ever ran a step, and a replay there
// still checks every bound tensor.
#include <cuda_runtime_api.h>

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "common/cuda/status.h"
#include "host_memory.h"
#include "mamba_decode.h"

namespace mamba {
namespace {

// Sets a device for the calling thread, and puts the one before back.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    changed_ = cudaGetDevice(&before_) == cudaSuccess && before_ != device &&
               cudaSetDevice(device) == cudaSuccess;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

bool is_on_device(const void* memory) {
  cudaPointerAttributes attributes = {};
  if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) return false;
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

// What mamba_host_alloc gave out. It stays until the process ends, when CUDA may be gone already.
HostMemory& host_memory() {
  static auto* memory = new HostMemory([](void* block) { cudaFreeHost(block); });
  return *memory;
}

struct Graph {
  cudaGraphExec_t executable = nullptr;
  int device = 0;
  std::vector<HostMemory::Holder> memory;  // of the host, that it copies from or to
  ~Graph() {
    if (executable) cudaGraphExecDestroy(executable);
  }
};

// Whether one side of a copy stays where it is: on the device, or in memory that the graph holds
// from now on.
bool stays(const cudaPitchedPtr& side, const cudaPos& at, const cudaExtent& extent, Graph* graph) {
  if (is_on_device(side.ptr)) return true;
  const size_t rows = extent.height * extent.depth;
  if (rows != 1) return false;  // ours are of one row
  const size_t begin = at.x + side.pitch * (at.y + side.ysize * at.z);
  auto holder = host_memory().hold(static_cast<const char*>(side.ptr) + begin, extent.width);
  if (!holder) return false;
  graph->memory.push_back(std::move(holder));
  return true;
}

// What makes a node unfit to be repeated, or null: other host memory of a copy may be gone by then,
// and a call of the host would free its memory twice.
const char* unfit(cudaGraphNode_t node, Graph* graph) {
  cudaGraphNodeType type;
  if (cudaGraphNodeGetType(node, &type) != cudaSuccess) return "work of an unknown kind";
  if (type == cudaGraphNodeTypeHost) return "a call of the host";
  if (type != cudaGraphNodeTypeMemcpy) return nullptr;
  cudaMemcpy3DParms copy = {};
  if (cudaGraphMemcpyNodeGetParams(node, &copy) != cudaSuccess) return "a copy of an unknown kind";
  const bool fits = !copy.srcArray && !copy.dstArray &&
                    stays(copy.srcPtr, copy.srcPos, copy.extent, graph) &&
                    stays(copy.dstPtr, copy.dstPos, copy.extent, graph);
  return fits ? nullptr : "a copy between the GPU and host memory that is not ours";
}

mamba_status make(cudaGraph_t captured, cudaStream_t stream, std::unique_ptr<Graph>* made) {
  size_t count = 0;
  if (mamba_status bad = status_of("capture", cudaGraphGetNodes(captured, nullptr, &count))) {
    return bad;
  }
  std::vector<cudaGraphNode_t> nodes(count);
  if (mamba_status bad = status_of("capture", cudaGraphGetNodes(captured, nodes.data(), &count))) {
    return bad;
  }
  auto graph = std::make_unique<Graph>();
  for (cudaGraphNode_t node : nodes) {
    if (const char* what = unfit(node, graph.get())) {
      return fail(MAMBA_INVALID, "this model cannot be captured: it holds %s", what);
    }
  }
  cudaGetDevice(&graph->device);
  if (mamba_status bad =
          status_of("capture", cudaGraphInstantiateWithFlags(&graph->executable, captured, 0))) {
    return bad;
  }
  // Else the first launch takes the GPU's memory for it: where there is none, it shows here.
  if (mamba_status bad = status_of("capture", cudaGraphUpload(graph->executable, stream))) {
    return bad;
  }
  *made = std::move(graph);
  return MAMBA_OK;
}

}  // namespace
}  // namespace mamba

using mamba::status_of;

extern "C" {

mamba_status mamba_stream_create(int device, void** stream) {
  const mamba::OnDevice on(device);
  return status_of("stream", cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream),
                                                       cudaStreamNonBlocking));
}

mamba_status mamba_host_alloc(size_t bytes, void** memory) {
  *memory = nullptr;
  mamba_status status =
      status_of("host memory", cudaHostAlloc(memory, bytes, cudaHostAllocPortable));
  if (status == MAMBA_OK && *memory) {
    std::memset(*memory, 0, bytes);
    try {
      mamba::host_memory().add(*memory, bytes);
    } catch (const std::exception&) {  // std::bad_alloc
      *memory = nullptr;
      status = MAMBA_OUT_OF_MEMORY;
    }
  }
  if (status == MAMBA_OUT_OF_MEMORY) {
    return mamba::fail(status, "failed to allocate %zu bytes of host memory for the GPU", bytes);
  }
  return status;
}

void mamba_host_free(void* memory) { mamba::host_memory().remove(memory); }

mamba_status mamba_device_alloc(int device, size_t bytes, void** memory) {
  *memory = nullptr;
  const mamba::OnDevice on(device);
  const mamba_status status = status_of("device memory", cudaMalloc(memory, bytes));
  if (status != MAMBA_OUT_OF_MEMORY) return status;
  return mamba::fail(status, "out of memory on cuda: failed to allocate %zu bytes of states",
                     bytes);
}

void mamba_device_free(void* memory) { cudaFree(memory); }

mamba_status mamba_copy(void* to, const void* from, size_t bytes, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return status_of("copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, queue));
}

mamba_status mamba_wait(void* stream) {
  return status_of("decode", cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

mamba_status mamba_wait_choice(const int64_t* chosen, int64_t batch, void* stream) {
  constexpr int kLooksBetweenQueries = 1 << 14;  // a look takes nanoseconds, a query microseconds
  const volatile int64_t* tokens = chosen;       // the GPU writes them
  bool is_idle = false;
  for (int64_t row = 0, looks = 1; row < batch; ++looks) {
    if (tokens[row] != MAMBA_NOT_CHOSEN) {
      ++row;
    } else if (is_idle) {
      return mamba::fail(MAMBA_INTERNAL, "decode: a step ended without a choice");
    } else if (looks % kLooksBetweenQueries == 0) {
      const cudaError_t state = cudaStreamQuery(static_cast<cudaStream_t>(stream));
      if (state != cudaErrorNotReady && state != cudaSuccess) return status_of("decode", state);
      is_idle = state == cudaSuccess;
    }
  }
  return MAMBA_OK;
}

// Relaxed: other threads, and the runtime's allocator in this one, may go on allocating.
mamba_status mamba_capture_begin(void* stream) {
  return status_of("capture", cudaStreamBeginCapture(static_cast<cudaStream_t>(stream),
                                                     cudaStreamCaptureModeRelaxed));
}

mamba_status mamba_capture_end(void* stream, void** graph) {
  cudaGraph_t captured = nullptr;
  const mamba_status ended =
      status_of("capture", cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &captured));
  if (graph) *graph = nullptr;
  if (ended != MAMBA_OK || !captured) return ended;
  mamba_status status = MAMBA_OK;
  if (graph) {
    std::unique_ptr<mamba::Graph> made;
    try {
      status = mamba::make(captured, static_cast<cudaStream_t>(stream), &made);
    } catch (const std::exception&) {  // std::bad_alloc
      status = mamba::fail(MAMBA_OUT_OF_MEMORY, "capture: failed to allocate memory");
    }
    *graph = made.release();
  }
  cudaGraphDestroy(captured);
  return status;
}

mamba_status mamba_graph_run(void* graph, void* stream) {
  const auto& self = *static_cast<mamba::Graph*>(graph);
  const mamba::OnDevice on(self.device);
  return status_of("decode", cudaGraphLaunch(self.executable, static_cast<cudaStream_t>(stream)));
}

void mamba_graph_destroy(void* graph) { delete static_cast<mamba::Graph*>(graph); }

}  // extern "C"
