// The model of the fake TensorRT. It counts, so that every number is exact:
//
//   state[i] = (3 * state[i] + token + i) mod 97
//   logits[v] = ((7 * v + 5 * state[0] + 3 * state[1] + state[2]) mod 256) / 4
//
// tests/test_mamba_run_gpu.py has it in Python.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

constexpr int64_t kStates = 3, kVocabSize = 256;

// tokens (1, length), past and present (1, kStates), logits (1, length, kVocabSize). False where
// CUDA refuses it.
bool launch_model(const int64_t* tokens, int64_t length, const float* past, float* present,
                  float* logits, bool gives_nan, cudaStream_t stream);
