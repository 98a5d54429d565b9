/* The arithmetic of mamba_export's operators, behind a plain C interface.
 *
 * Nothing here knows PyTorch, ONNX Runtime or TensorRT: a caller fills a struct of pointers and
 * sizes and gets an error code. The operators are those of mamba_export/contract.py;
 * mamba_export/ops/reference.py defines them. Arithmetic and recurrent state are fp32 whatever the
 * dtype T of the sequences is.
 *
 * The same input gives the same bits, whatever the number of threads.
 */
#ifndef MAMBA_KERNELS_H
#define MAMBA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MAMBA_API __attribute__((visibility("default")))
#else
#define MAMBA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Rises when a struct or the meaning of a field changes. */
#define MAMBA_KERNELS_VERSION 1

typedef enum { MAMBA_FP32 = 0, MAMBA_FP16 = 1, MAMBA_BF16 = 2 } mamba_dtype;

typedef enum {
  MAMBA_OK = 0,
  MAMBA_INVALID = 1, /* a size or pointer that the operator cannot take */
} mamba_status;

/* Runs body(context, i) for every i in [0, tasks), in any order, on any threads, and returns when
 * all are done. scheduler is passed through untouched. */
typedef void (*mamba_parallel_for)(void* scheduler, size_t tasks,
                                   void (*body)(void* context, size_t task), void* context);

/* Sequences (batch, length, channels): channels are contiguous; batch_stride and step_stride are in
 * elements, so that a slice of a projection's output needs no copy. */
typedef struct {
  const void* data;
  int64_t batch_stride;
  int64_t step_stride;
} mamba_sequence;

typedef struct {
  int64_t batch, length, d_inner, d_state, n_groups;
  mamba_dtype dtype; /* of u, delta, B, C, z and y */
  int delta_softplus;
  int reverse;
  mamba_sequence u, delta, z; /* z.data is NULL for the ungated form */
  mamba_sequence B, C;        /* n_groups * d_state contiguous numbers a step */
  const float* A;             /* (d_inner, d_state) */
  const float* D;             /* (d_inner,) */
  const float* delta_bias;    /* (d_inner,) */
  const float* initial_state; /* (batch, d_inner, d_state) */
  void* y;                    /* (batch, length, d_inner), contiguous */
  float* last_state;          /* (batch, d_inner, d_state); may be initial_state */
} mamba_selective_scan_params;

typedef struct {
  int64_t batch, length, channels, d_conv;
  mamba_dtype dtype; /* of x, initial_state, y and last_state */
  int silu;
  int reverse;
  mamba_sequence x;
  const float* weight;       /* (channels, d_conv) */
  const float* bias;         /* (channels,) */
  const void* initial_state; /* (batch, channels, d_conv - 1), oldest step first */
  void* y;                   /* (batch, length, channels), contiguous */
  void* last_state;          /* (batch, channels, d_conv - 1); may be initial_state */
} mamba_causal_conv1d_params;

/* MAMBA_KERNELS_VERSION of the library that was loaded. */
MAMBA_API int mamba_kernels_version(void);

/* Instruction set that the CPU kernels use on this machine: "avx512", "avx2" or "baseline". */
MAMBA_API const char* mamba_cpu_instruction_set(void);

/* One line about the last call on this thread that did not return MAMBA_OK; "" where there was
 * none. */
MAMBA_API const char* mamba_last_error(void);

/* parallel_for may be NULL: then the calling thread does all the work. */
MAMBA_API mamba_status mamba_selective_scan_cpu(const mamba_selective_scan_params* params,
                                                mamba_parallel_for parallel_for, void* scheduler);
MAMBA_API mamba_status mamba_causal_conv1d_cpu(const mamba_causal_conv1d_params* params,
                                               mamba_parallel_for parallel_for, void* scheduler);

#ifdef __cplusplus
}
#endif
#endif /* MAMBA_KERNELS_H */
