// Chooses tokens as mamba_run does: from logits on standard input, as raw numbers of a type.
//
//   mamba_choose fp32|fp16|bf16 TEMPERATURE TOP_K SEED COUNT < logits
//
// Writes COUNT tokens, one a line: the first as it is, the others from a CUDA graph.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <vector>

#include "chooser.h"
#include "error.h"

namespace {

using mamba_run::check;

std::vector<char> standard_input() {
  std::vector<char> bytes;
  char part[4096];
  while (const size_t count = fread(part, 1, sizeof part, stdin)) {
    bytes.insert(bytes.end(), part, part + count);
  }
  return bytes;
}

void choose(char** arguments) {
  const char* type = arguments[0];
  const bool is_wide = !std::strcmp(type, "fp32");
  const mamba_dtype dtype = is_wide                      ? MAMBA_FP32
                            : !std::strcmp(type, "fp16") ? MAMBA_FP16
                                                         : MAMBA_BF16;
  const std::vector<char> bytes = standard_input();
  const auto count = static_cast<int64_t>(bytes.size() / (is_wide ? 4 : 2));
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  mamba_run::Memory logits(bytes.size(), mamba_run::Memory::Place::kDevice);
  mamba_run::Memory next(sizeof(int64_t), mamba_run::Memory::Place::kDevice);
  check(cudaMemcpy(logits.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "logits");

  mamba_run::Chooser chooser(count, dtype);
  chooser.start({std::atof(arguments[1]), std::atoll(arguments[2]),
                 static_cast<uint64_t>(std::atoll(arguments[3]))});
  const auto queue = [&] {
    if (!chooser.queue(logits.data(), static_cast<int64_t*>(next.data()), stream)) {
      throw mamba_run::Error(mamba_last_error());
    }
  };
  cudaGraphExec_t executable = nullptr;
  for (int i = 0; i < std::atoi(arguments[4]); ++i) {
    chooser.draw();
    if (executable) {
      check(cudaGraphLaunch(executable, stream), "launch");
    } else {
      queue();
    }
    int64_t written = -1;
    check(cudaMemcpyAsync(&written, next.data(), sizeof written, cudaMemcpyDeviceToHost, stream),
          "next");
    check(cudaStreamSynchronize(stream), "choice");
    const int64_t token = chooser.chosen();
    if (token != written) throw mamba_run::Error("next is not the token that was chosen");
    printf("%lld\n", static_cast<long long>(token));
    if (!executable) {
      cudaGraph_t graph = nullptr;
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
      queue();
      check(cudaStreamEndCapture(stream, &graph), "capture");
      check(cudaGraphInstantiate(&executable, graph, 0), "graph");
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) return 1;
  try {
    choose(arguments + 1);
    return 0;
  } catch (const mamba_run::Error& error) {
    fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
