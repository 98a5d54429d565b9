// Chooses tokens on the GPU, by the kernel that ONNX Runtime's sessions choose by: logits stay
// there, and the host reads one number a token.
#pragma once

#include <cstdint>
#include <random>

#include "gpu_memory.h"
#include "mamba_decode.h"
#include "sampling.h"

namespace mamba_run {

// Of one sequence. The random stream is this program's own: a seed gives the same text in every run
// of it, not the text that Python's sessions give.
class Chooser {
 public:
  // dtype is that of the logits.
  Chooser(int64_t vocab_size, mamba_dtype dtype);

  // How the tokens to come are chosen; the random stream starts anew.
  void start(const Sampling& sampling);

  // Before each run of what was queued: a number of the random stream for its choice.
  void draw();

  // Queues the choice from logits (vocab_size,) on the GPU, into next, there too. It may be
  // captured. False where CUDA refuses it, and mamba_last_error says why.
  bool queue(const void* logits, int64_t* next, cudaStream_t stream);

  // The token, once the stream has come to its end. Throws Error where the logits are not finite.
  int64_t chosen() const;

 private:
  mamba_choose_params params_{};
  Memory scores_, seen_;
  // Read and written by the GPU when the work runs.
  Memory options_, draw_, chosen_;
  std::mt19937_64 random_;
};

}  // namespace mamba_run
