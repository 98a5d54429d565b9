// What check_kernels needs of CUDA: the products of layers, graphs, and which kernels a GPU has.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "check_memory.h"
#include "mamba_kernels.h"
#include "plain_numbers.h"

namespace check {

#if CHECK_CUDA

class Stream {
 public:
  Stream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// c = a b, plus addend, on the host: it shares nothing with the layers that call it.
inline int multiply(void*, const mamba_product* product, void* stream) {
  const mamba_product& p = *product;
  check_cuda(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "ahead of a product");
  const auto read = [&](const void* from, int64_t rows, int64_t columns, int64_t stride,
                        mamba_dtype dtype) {
    std::vector<char> content(((rows - 1) * stride + columns) * plain::bytes_of(dtype));
    copy_on_gpu(content.data(), from, content.size());
    return content;
  };
  const auto a = read(p.a, p.rows, p.depth, p.a_stride, p.dtype);
  const auto b = read(p.b, p.depth, p.columns, p.columns, p.dtype);
  auto c = read(p.c, p.rows, p.columns, p.c_stride, p.c_dtype);
  const auto addend = read(p.addend ? p.addend : p.c, p.rows, p.columns, p.c_stride, p.c_dtype);
  std::vector<double> factors(p.depth * p.columns), sums(p.columns);
  for (size_t i = 0; i < factors.size(); ++i) factors[i] = plain::load(b.data(), i, p.dtype);
  for (int64_t row = 0; row < p.rows; ++row) {
    for (int64_t j = 0; j < p.columns; ++j) {
      sums[j] = p.addend ? plain::load(addend.data(), row * p.c_stride + j, p.c_dtype) : 0;
    }
    for (int64_t k = 0; k < p.depth; ++k) {
      const double factor = plain::load(a.data(), row * p.a_stride + k, p.dtype);
      for (int64_t j = 0; j < p.columns; ++j) sums[j] += factor * factors[k * p.columns + j];
    }
    for (int64_t j = 0; j < p.columns; ++j) {
      plain::store(c.data(), row * p.c_stride + j, p.c_dtype, sums[j]);
    }
  }
  copy_on_gpu(p.c, c.data(), c.size());
  return 0;
}

// Runs what launch queues on the stream from a CUDA graph.
template <typename Launch>
void replay(Launch launch, cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  launch();
  check_cuda(cudaStreamEndCapture(stream, &graph), "capture");
  check_cuda(cudaGraphInstantiate(&executable, graph, 0), "graph");
  check_cuda(cudaGraphLaunch(executable, stream), "graph");
  check_cuda(cudaStreamSynchronize(stream), "graph");
  check_cuda(cudaGraphExecDestroy(executable), "graph");
  check_cuda(cudaGraphDestroy(graph), "graph");
}

// The kernels of state space duality that the GPU has.
inline std::set<std::string> forms_of_gpu() {
  int major = 0, minor = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "device");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "device");
  std::set<std::string> forms = {"step", "tile", "any"};
  if (major >= 8) forms.insert("mma");
  if (major == 9 && minor == 0) forms.insert("hopper");
  return forms;
}

#else

inline std::set<std::string> forms_of_gpu() { return {}; }

#endif

}  // namespace check
