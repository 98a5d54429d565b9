#include <cmath>

#include "fake_model.h"

namespace {

// One thread a logit; each walks the states for itself.
__global__ void model(const int64_t* tokens, int64_t length, const float* past, float* present,
                      float* logits, bool gives_nan) {
  int state[kStates];
  for (int i = 0; i < kStates; ++i) state[i] = static_cast<int>(past[i]);
  const int v = threadIdx.x;
  for (int64_t step = 0; step < length; ++step) {
    for (int i = 0; i < kStates; ++i) {
      state[i] = (3 * state[i] + static_cast<int>(tokens[step]) + i) % 97;
    }
    const int sum = 7 * v + 5 * state[0] + 3 * state[1] + state[2];
    logits[step * kVocabSize + v] = gives_nan ? NAN : static_cast<float>(sum % 256) / 4;
  }
  if (v < kStates) present[v] = static_cast<float>(state[v]);
}

}  // namespace

bool launch_model(const int64_t* tokens, int64_t length, const float* past, float* present,
                  float* logits, bool gives_nan, cudaStream_t stream) {
  model<<<1, kVocabSize, 0, stream>>>(tokens, length, past, present, logits, gives_nan);
  return cudaGetLastError() == cudaSuccess;
}
